"""Define schedules: values that change during the training. A schedule is an immutable function of the progress, which
is the fraction of training steps done, in [0, 1]."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

# Each shape maps u in [0, 1], the position between begin and end, to the remaining share of the starting value.
_EXP_RATE = 5.0  # the exponential shape falls to e^-5 = 0.7 %, and is then rescaled to end exactly at 0
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
    """A value that changes from `start` to `stop` while the progress goes from `begin` to `end`. The argument `kind`,
    one of KINDS, is the shape of the change.

    The value is `start` before `begin` and `stop` after `end`. With "constant" it is always `start`. If start and stop
    are sparsities, "cubic" is the shape of gradual pruning by Zhu and Gupta (arXiv 1710.01878).

    >>> rising = Schedule("cubic", 0.0, 0.9, begin=0.1, end=0.7)
    >>> [round(rising(progress), 3) for progress in (0, 0.4, 1)]
    [0.0, 0.788, 0.9]

    Raises:
        ValueError: if `kind` is unknown, or if 0 <= begin <= end <= 1 does not hold.
    """

    kind: str
    start: float
    stop: float = 0.0
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in _SHAPES:
            raise ValueError(f"unknown schedule {self.kind!r}: choose one of {', '.join(KINDS)}")
        if not 0.0 <= self.begin <= self.end <= 1.0:
            raise ValueError(f"a schedule needs 0 <= begin <= end <= 1, got {self.begin} and {self.end}")

    def __call__(self, progress: float) -> float:
        """Return the value at `progress`, the fraction of training steps done, in [0, 1]."""
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
    """A value that is linear between (progress, value) knots, and constant before the first and after the last knot.

    >>> PiecewiseLinear(((0, 0.1), (0.5, 1.0), (1, 0.0)))(0.25)
    0.55

    Raises:
        ValueError: if there are no knots, or if they are not in order of progress.
    """

    knots: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        at = [x for x, _ in self.knots]
        if len(at) < 1 or at != sorted(at):
            raise ValueError(f"a schedule needs at least one knot, and knots in order of progress, got {self.knots}")

    def __call__(self, progress: float) -> float:
        """Return the value at `progress`, the fraction of training steps done, in [0, 1]."""
        right = bisect_right([x for x, _ in self.knots], progress)
        if right == 0:
            return self.knots[0][1]
        if right == len(self.knots):
            return self.knots[-1][1]
        (x0, y0), (x1, y1) = self.knots[right - 1], self.knots[right]
        return y0 + (y1 - y0) * (progress - x0) / (x1 - x0)


Curve = Schedule | PiecewiseLinear
_PARTS = {"shape": "kind", "start": "start", "stop": "stop", "begin": "begin", "end": "end"}


def schedule_from(name: str, value: Any, default: Schedule | None = None) -> Curve:
    """Return the schedule that the value of a setting describes.

    Args:
        name: the name of the setting, for errors.
        value: a schedule, or a mapping of its parts. The parts are shape (the `kind` of a Schedule), start, stop, begin
            and end, or the knots at1, value1, at2, value2, ...
        default: a schedule that gives the missing parts. `value` may then also be a shape, such as "cosine". If None,
            the parts shape and start are required.

    Raises:
        ValueError: for any other value. The message begins with the name of the part, such as threshold.start.
    """
    if isinstance(value, Schedule | PiecewiseLinear):
        return value
    if isinstance(value, str) and value in KINDS and default is not None:
        value = {"shape": value}
    if not isinstance(value, Mapping) or not value:
        shapes = f"{', '.join(KINDS)}, or " if default is not None else ""
        raise ValueError(f"{name} = {value!r} is not accepted: it takes {shapes}the parts of a schedule")
    if "shape" in value and value["shape"] not in KINDS:
        raise ValueError(f"{name}.shape = {value['shape']!r} is not accepted: it takes {', '.join(KINDS)}")
    for part, number in value.items():
        if part != "shape" and not _finite(number):
            raise ValueError(f"{name}.{part} = {number!r} is not accepted: it takes a number")
    if any(part in value for part in ("at1", "value1")):
        return _through_knots(name, value)
    if unknown := [part for part in value if part not in _PARTS]:
        raise ValueError(f"{name}.{unknown[0]} is no part of a schedule: the parts are {', '.join(_PARTS)}, or knots")
    if default is None and not {"shape", "start"} <= set(value):
        raise ValueError(f"{name} needs its parts shape and start, or knots")
    parts = {_PARTS[part]: number for part, number in value.items()}
    try:
        return Schedule(**parts) if default is None else replace(default, **parts)
    except ValueError as error:
        place = next((part for part in ("begin", "end") if part in value), "shape")
        raise ValueError(f"{name}.{place} is not accepted: {error}") from error


def _through_knots(name: str, value: Mapping[str, Any]) -> PiecewiseLinear:
    """Return a schedule through knots. The knots may be numbered in any order."""
    count = len(value) // 2
    expected = {f"{part}{index}" for index in range(1, count + 1) for part in ("at", "value")}
    if set(value) != expected:
        given = ", ".join(map(str, value))
        raise ValueError(f"{name} needs the knots at1, value1, at2, value2, ... and no other parts, got {given}")
    knots = sorted((float(value[f"at{index}"]), float(value[f"value{index}"])) for index in range(1, count + 1))
    if not 0 <= knots[0][0] <= knots[-1][0] <= 1:
        raise ValueError(f"{name}.at1 and the other knots must lie in [0, 1], got {[at for at, _ in knots]}")
    return PiecewiseLinear(tuple(knots))


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def extremes(curve: Curve) -> tuple[float, float]:
    """Return the smallest and the largest value of a schedule."""
    if isinstance(curve, PiecewiseLinear):
        values = [value for _, value in curve.knots]
    else:
        values = [curve.start] if curve.kind == "constant" else [curve.start, curve.stop]
    return min(values), max(values)


def published_learning_rate(epochs: int) -> PiecewiseLinear:
    """Return the learning rate of the LpSS paper (arXiv 2103.16013) as a multiple of its peak. For E epochs, the knots
    lie at the epochs 0, E/6, E/3, E-3 and E. The values at these knots are .02, 1, .25, .002 and .0001: the published
    learning rates, divided by their peak. If E-3 is less than E/3, the fourth knot lies at E/3, too."""
    late = max(1.0 / 3.0, 1.0 - 3.0 / epochs)
    return PiecewiseLinear(((0.0, 0.02), (1 / 6, 1.0), (1 / 3, 0.25), (late, 0.002), (1.0, 0.0001)))


def warmup_cosine(progress: float, warmup: float = 0.05) -> float:
    """Return the learning rate as a share of its peak. It rises linearly during the first fraction `warmup` of the
    training and then falls to 0 as a cosine."""
    if progress < warmup:
        return max(progress / warmup, 0.01)
    return 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / (1.0 - warmup)))


def hold(tail: float, begin: float) -> PiecewiseLinear:
    """Return a learning rate, as a share of its peak, that does not fall to 0. It rises to 1 until the progress .05,
    and stays at 1 until the progress .75 * `begin`. Then it falls linearly. From the progress `begin` on, it stays at
    `tail`."""
    return PiecewiseLinear(((0.0, 0.01), (0.05, 1.0), (0.75 * begin, 1.0), (begin, tail)))
