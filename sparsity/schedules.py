"""Values that change over training: pure, frozen, and asked with the training's progress in [0, 1]."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

# Each shape maps u in [0, 1], the way from begin to end, to the share of the starting value that is left.
_EXP_RATE = 5.0  # the exponential shape has fallen to e^-5 = 0.7 % at its end; it is rescaled to end on 0 exactly
_SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda u: 1.0,
    "linear": lambda u: 1.0 - u,
    "cosine": lambda u: 0.5 * (1.0 + math.cos(math.pi * u)),
    "exponential": lambda u: (math.exp(-_EXP_RATE * u) - math.exp(-_EXP_RATE)) / (1.0 - math.exp(-_EXP_RATE)),
    "cubic": lambda u: (1.0 - u) ** 3,
}
KINDS = tuple(_SHAPES)


@dataclass(frozen=True)
class Schedule:
    """From `start` to `stop` between the progresses `begin` and `end`, in one of the shapes of KINDS.

    Before `begin` the value is `start`, after `end` it is `stop` (`start` throughout for "constant"). "cubic" is the
    gradual-pruning shape of Zhu and Gupta (arXiv 1710.01878) when start and stop are sparsities.
    """

    kind: str
    start: float
    stop: float = 0.0
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in _SHAPES:
            raise ValueError(f"unknown schedule {self.kind!r}: one of {', '.join(KINDS)}")
        if not 0.0 <= self.begin <= self.end <= 1.0:
            raise ValueError(f"a schedule needs 0 <= begin <= end <= 1, got {self.begin} and {self.end}")

    def __call__(self, progress: float) -> float:
        """The value at `progress`, the fraction of training steps done."""
        if progress <= self.begin:
            return self.start
        if self.kind == "constant":
            return self.start
        if progress >= self.end:
            return self.stop
        left = _SHAPES[self.kind]((progress - self.begin) / (self.end - self.begin))
        return self.stop + (self.start - self.stop) * left


@dataclass(frozen=True)
class PiecewiseLinear:
    """Linear interpolation through (progress, value) knots, constant outside them."""

    knots: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        at = [x for x, _ in self.knots]
        if len(at) < 1 or at != sorted(at):
            raise ValueError(f"knots must be at least one and in order of progress, got {self.knots}")

    def __call__(self, progress: float) -> float:
        """The value at `progress`, the fraction of training steps done."""
        right = bisect_right([x for x, _ in self.knots], progress)
        if right == 0:
            return self.knots[0][1]
        if right == len(self.knots):
            return self.knots[-1][1]
        (x0, y0), (x1, y1) = self.knots[right - 1], self.knots[right]
        return y0 + (y1 - y0) * (progress - x0) / (x1 - x0)


def published_learning_rate(epochs: int) -> PiecewiseLinear:
    """The LpSS paper's learning rate over knots (0, E/6, E/3, E-3, E), as a multiple of its peak: method of arXiv
    2103.16013, values (.04, 2, .5, .004, .0002) over a peak of 2. For short trainings the fourth knot is kept behind
    the third."""
    late = max(1.0 / 3.0, 1.0 - 3.0 / epochs)
    return PiecewiseLinear(((0.0, 0.02), (1 / 6, 1.0), (1 / 3, 0.25), (late, 0.002), (1.0, 0.0001)))


def warmup_cosine(progress: float, warmup: float = 0.05) -> float:
    """A learning rate's share of its peak: linear over the first `warmup` of training, then a cosine to 0."""
    if progress < warmup:
        return max(progress / warmup, 0.01)
    return 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / (1.0 - warmup)))
