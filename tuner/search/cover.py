"""Chooses the final sparsity of each trial in a study of a front or of several targets.

If a sampler chose the final sparsity from its prior, most of a front's range would stay empty. This module therefore
chooses the final sparsity, and the sampler proposes the other parameters. The first trials of a front cover the whole
range. Later trials get the sparsities at which the largest gain of hypervolume is expected. The distance between two
sparsities s is the difference of log(1 - s), because the step from s = .98 to .99 is as hard for a network as the step
from .5 to .75.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tune_sparsity.search_spaces.priors import from_log, log_sparsity
from tune_sparsity.tuner.search.monotone import NOISE, FallingFit
from tune_sparsity.tuner.study.goal import Goal, GoalKind
from tune_sparsity.tuner.study.pareto import Point

SLACK = 1.9
"""A gap is filled first if it is wider than SLACK / n of the range, where n is the mean number of trials of a method.
So no gap stays wider than (SLACK + 1) / n."""
FIRST_COVER = 9  # until so many trials have completed, each new trial fills the widest gap
SAME = 1e-9  # two positions count as equal if they differ by at most this
NEIGHBOURS = 5  # the number of nearest completed trials that give the standard deviation of merits at a sparsity
CANDIDATES = 64  # the number of sparsities that are compared in `most_to_gain`


@dataclass(frozen=True)
class Turn:
    """The final sparsity that `Cover` chooses for the next trial, and the trial's method. The method is None if the
    sampler chooses it."""

    sparsity: float
    method: str | None = None


@dataclass(frozen=True)
class Range:
    """The possible final sparsities of a method: all numbers from `low` to `high`. If `values` is not empty, only the
    numbers in `values` are possible."""

    low: float
    high: float
    values: tuple[float, ...] = ()

    def within(self, low: float, high: float) -> Range:
        """Return the part of this range that lies between the two arguments. If this part is empty, return the whole
        range."""
        if self.high < low or self.low > high:
            return self
        if not self.values:
            return Range(max(self.low, low), min(self.high, high))
        return self.of([value for value in self.values if low <= value <= high] or self.values)

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        return cls(min(values), max(values), tuple(sorted(values)))

    def between(self, first: float, last: float) -> float | None:
        """Return the possible sparsity nearest to the middle between two positions. A position is -log(1 - sparsity).
        The sparsity must lie strictly between the two positions. Return None if there is no such sparsity."""
        middle = (first + last) / 2
        if not self.values:
            return from_log(middle)
        inside = [value for value in self.values if first + SAME < log_sparsity(value) < last - SAME]
        return min(inside, key=lambda value: abs(log_sparsity(value) - middle), default=None)


class Cover:
    """Chooses the final sparsity of each trial, and the method of some trials.

    If the goal is a front, the trials of each method first cover the range: they fill the two ends, and then the middle
    of the widest gap. When no gap is wider than `SLACK` allows and `FIRST_COVER` trials are completed, a trial gets the
    sparsity with the largest expected gain of hypervolume, and the sampler chooses the method.

    If the goal has several targets, each round has one trial for each target. In two of three rounds, a trial gets the
    method with the fewest trials at its target. In the third round, the sampler chooses the method.

    The decisions depend only on the earlier trials, so a resumed search continues in the same way.

    Args:
        goal: a goal with several targets, or a front.
        ranges: a dict from the name of each method to the method's possible final sparsities. A method that never
            prunes has no entry.
    """

    def __init__(self, goal: Goal, ranges: Mapping[str, Range]) -> None:
        self._goal = goal
        self._ranges = {method: own.within(goal.lowest, goal.highest) for method, own in ranges.items()}

    def next(self, number: int, placed: Mapping[str, Sequence[float]], completed: Sequence[Point]) -> Turn | None:
        """Return the final sparsity of the next trial, and its method if the sampler does not choose the method. Return
        None if no method of the study searches a final sparsity.

        Args:
            number: the next trial's number.
            placed: a dict from the name of each method to the final sparsities of all its trials that have begun, in
                any state.
            completed: (sparsity, merit) of each completed trial. The merit is the metric, negated if it is minimised.
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
    """Return the width of the widest gap between the sparsities of trials, and the sparsity that fills this gap. The
    width is a share of the range.

    If one end of the range has no trial, the width is infinite. The sparser end is filled first, because a trial at
    this end gives a lower bound of the front over the whole range. If all possible sparsities have trials, return the
    one with the fewest trials.

    Args:
        own: the possible final sparsities.
        placed: the final sparsities of the trials so far.
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
    """Return the sparsity in a front's range at which one more trial has the largest expected gain of hypervolume.

    The merit of the new trial is assumed to have a normal distribution with the mean m and the standard deviation d.
    The mean is a curve that is fitted to the merits of the completed trials and never rises with the sparsity (monotone
    regression). The standard deviation is that of the nearest trials' merits around the curve. The front is a step
    function. A step with the height h gives the expected gain w d (f(z) + z F(z)), where w is the width of the step and
    z = (m - h) / d. The functions f and F are the density and the distribution function of the standard normal
    distribution (expected improvement, Mockus 1978).

    Args:
        goal: the study's goal, which is a front.
        completed: (sparsity, merit) of each completed trial, at least one. The merit is the metric, negated if it is
            minimised.
    """
    points = [(log_sparsity(sparsity), merit) for sparsity, merit in completed]
    fit = FallingFit(points)
    positions = np.linspace(log_sparsity(goal.lowest), log_sparsity(goal.highest), CANDIDATES + 1)[1:].tolist()
    steps = _steps(goal, completed)
    spreads = _spreads(points, fit, positions, NOISE * goal.scale)
    gains = [_gain(from_log(at), fit(at), d, goal.lowest, steps) for at, d in zip(positions, spreads, strict=True)]
    return min(from_log(positions[int(np.argmax(gains))]), goal.highest)


def _spreads(points: Sequence[Point], fit: FallingFit, positions: Sequence[float], noise: float) -> list[float]:
    """Return the standard deviation of the merits around their fit, at each position -log(1 - sparsity). Only the
    nearest trials count, because the merits of sparser networks vary more."""
    at = np.array([position for position, _ in points])
    squares = np.array([(merit - fit(position)) ** 2 for position, merit in points])
    near = (np.argsort(np.abs(at - position))[:NEIGHBOURS] for position in positions)
    return [max(noise, math.sqrt(float(squares[some].mean()))) for some in near]


def _steps(goal: Goal, completed: Sequence[Point]) -> list[Point]:
    """Return the steps of the front in the order of rising sparsity, each as (sparsity at the step's end, merit). The
    last step ends at the end of the range."""
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
