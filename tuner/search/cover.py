"""Where a study of several sparsities lays its trials out: over the whole range, and where its front gains most.

A final sparsity that is left to a sampler's prior leaves most of a front's range empty. Here the cover decides it for
every trial, and the sampler proposes all other parameters for that sparsity. Distances are measured on the logarithm of
the density 1 - s, since the step from .98 to .99 is as hard for a network as the step from .5 to .75.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tune_sparsity.tuner.search.monotone import NOISE, FallingFit
from tune_sparsity.tuner.study.goal import Goal, GoalKind
from tune_sparsity.tuner.study.pareto import Point

SLACK = 1.9
"""A gap that is wider than SLACK / n of the range, for a method's share n of the trials, is filled first:
no gap stays wider than (SLACK + 1) / n."""
FIRST_COVER = 9  # completed trials before which the range is only covered
SAME = 1e-9  # two positions that differ by no more are one
NEIGHBOURS = 5  # completed trials that say how much merits differ at a sparsity
CANDIDATES = 64  # sparsities of which the one with most to gain is taken


def log_sparsity(sparsity: float) -> float:
    """Return minus the logarithm of the density: 0 for a dense network, .69 at a sparsity of .5, 4.6 at .99."""
    return -math.log1p(-sparsity)


def from_log(position: float) -> float:
    """Return the sparsity at a position that `log_sparsity` gave."""
    return -math.expm1(-position)


@dataclass(frozen=True)
class Turn:
    """What is decided of the next trial before the sampler proposes the rest.

    Attributes:
        sparsity: that the trial ends on.
        method: None if the sampler chooses it.
    """

    sparsity: float
    method: str | None = None


@dataclass(frozen=True)
class Range:
    """The final sparsities that a method can have: all from low to high, or those of `values` alone."""

    low: float
    high: float
    values: tuple[float, ...] = ()

    def within(self, low: float, high: float) -> Range:
        """Return the part of it in [low, high]; all of it if there is none."""
        if self.high < low or self.low > high:
            return self
        if not self.values:
            return Range(max(self.low, low), min(self.high, high))
        return self.of([value for value in self.values if low <= value <= high] or self.values)

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        return cls(min(values), max(values), tuple(sorted(values)))

    def between(self, first: float, last: float) -> float | None:
        """Return its value nearest to the middle between two positions, neither of them included; None without one."""
        middle = (first + last) / 2
        if not self.values:
            return from_log(middle)
        inside = [value for value in self.values if first + SAME < log_sparsity(value) < last - SAME]
        return min(inside, key=lambda value: abs(log_sparsity(value) - middle), default=None)


class Cover:
    """Decides the final sparsity of every trial of a study, and whose turn it is of several methods.

    Along a front each method first covers the range: its ends, then the middle of its widest gap. As soon as no gap is
    wide, the trial goes where it is expected to add most hypervolume. With several targets they take turns, and two of
    three rounds belong to the method with the fewest trials at the target. The other turns are the sampler's to choose
    a method for.

    The decisions depend on the trials alone, so that a search that goes on after a crash goes on with the cover.

    Args:
        goal: with several targets, or a front.
        ranges: the final sparsities that a method can have, for every method that has one.
    """

    def __init__(self, goal: Goal, ranges: Mapping[str, Range]) -> None:
        self._goal = goal
        self._ranges = {method: own.within(goal.lowest, goal.highest) for method, own in ranges.items()}

    def next(self, number: int, placed: Mapping[str, Sequence[float]], completed: Sequence[Point]) -> Turn | None:
        """Return the next trial's turn; None if no method has a final sparsity.

        Args:
            number: of the trial.
            placed: by method, the final sparsities of all trials that have begun, however they ended.
            completed: (sparsity, merit) of the completed trials.
        """
        if not self._ranges:
            return None
        if self._goal.kind is GoalKind.TARGETS:
            return self._at_target(number, placed)
        gaps = [(*widest_gap(own, placed.get(method, ())), method) for method, own in self._ranges.items()]
        width, sparsity, method = max(gaps, key=lambda gap: gap[0])
        share = (sum(map(len, placed.values())) + 1) / len(self._ranges)
        if width * share > SLACK or len(completed) < FIRST_COVER:
            return Turn(sparsity, method)
        return Turn(most_to_gain(self._goal, completed))

    def _at_target(self, number: int, placed: Mapping[str, Sequence[float]]) -> Turn:
        targets = self._goal.targets
        target, turn = targets[number % len(targets)], number // len(targets)
        if turn % 3 == 2:
            return Turn(target)
        return Turn(target, min(self._ranges, key=lambda method: list(placed.get(method, ())).count(target)))


def widest_gap(own: Range, placed: Sequence[float]) -> tuple[float, float]:
    """Return the widest gap in the cover of a range, as a share of it, and the sparsity that fills it best.

    An end of the range that no trial lies on is the widest gap of all, the sparser end before the other: one trial
    there bounds the front from below over the whole range. Where all values have had trials, the gap is that at the
    value with the fewest.
    """
    inside = sorted(log_sparsity(sparsity) for sparsity in placed if own.low <= sparsity <= own.high)
    start, end = log_sparsity(own.low), log_sparsity(own.high)
    for at, sparsity in ((end, own.high), (start, own.low)):
        if not any(abs(position - at) <= SAME for position in inside):
            return math.inf, sparsity
    for first, last in sorted(pairwise(inside), key=lambda pair: pair[0] - pair[1]):
        if last - first > SAME and (between := own.between(first, last)) is not None:
            return (last - first) / (end - start), between
    values = own.values or (own.low,)
    fewest = min(reversed(values), key=lambda value: sum(abs(p - log_sparsity(value)) <= SAME for p in inside))
    return 1 / len(inside), fewest


def most_to_gain(goal: Goal, completed: Sequence[Point]) -> float:
    """Return the sparsity in a front's range at which one more trial is expected to add most hypervolume.

    The merit of a trial is assumed to be normally distributed around the monotone fit of those so far. Above a step
    of the front of height a the expected gain of a merit N(m, d^2) is d (f(z) + z F(z)) with z = (m - a)/d and the
    normal density f and distribution F (expected improvement, Mockus 1978), times the width of the step.
    """
    points = [(log_sparsity(sparsity), merit) for sparsity, merit in completed]
    fit = FallingFit(points)
    positions = np.linspace(log_sparsity(goal.lowest), log_sparsity(goal.highest), CANDIDATES + 1)[1:].tolist()
    steps = _steps(goal, completed)
    spreads = _spreads(points, fit, positions, NOISE * goal.scale)
    gains = [_gain(from_log(at), fit(at), d, goal.lowest, steps) for at, d in zip(positions, spreads, strict=True)]
    return min(from_log(positions[int(np.argmax(gains))]), goal.highest)


def _spreads(points: Sequence[Point], fit: FallingFit, positions: Sequence[float], noise: float) -> list[float]:
    """Return the standard deviation of the merits around their fit, at each position that of its neighbours: sparse
    networks differ more than others."""
    at = np.array([position for position, _ in points])
    squares = np.array([(merit - fit(position)) ** 2 for position, merit in points])
    near = (np.argsort(np.abs(at - position))[:NEIGHBOURS] for position in positions)
    return [max(noise, math.sqrt(float(squares[some].mean()))) for some in near]


def _steps(goal: Goal, completed: Sequence[Point]) -> list[Point]:
    """Return the front as steps by rising sparsity: (where a step ends, its merit); the last ends with the range."""
    steps: list[Point] = [(goal.highest, goal.least_merit)]
    for sparsity, merit in sorted(completed, reverse=True):
        if sparsity >= goal.lowest and merit > steps[-1][1]:
            steps.append((min(sparsity, goal.highest), merit))
    return steps[::-1]


def _gain(sparsity: float, mean: float, deviation: float, low: float, steps: Sequence[Point]) -> float:
    total, start = 0.0, low
    for end, height in steps:
        width = min(end, sparsity) - start
        if width > 0:
            z = (mean - height) / deviation
            density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
            total += width * deviation * (density + z * (1 + math.erf(z / math.sqrt(2))) / 2)
        start = max(start, end)
    return total
