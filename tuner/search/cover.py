"""Chooses the final sparsity of each trial in a study of a front or of several targets.

If a sampler chose the final sparsity from its prior, most of a front's range would stay empty. This module therefore
chooses the final sparsity, and the sampler proposes the other parameters. The trials of a front are spread evenly over
its range. The distance between two sparsities s is the difference of log(1 - s), because the step from s = .98 to .99
is as hard for a network as the step from .5 to .75.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tune_sparsity.search_spaces.priors import from_log, log_sparsity
from tune_sparsity.tuner.study.goal import Goal, GoalKind

SAME = 1e-9  # two positions count as equal if they differ by at most this


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

    def even(self, count: int) -> tuple[float, ...]:
        """Return `count` sparsities from the lower end to the upper end of this range, even in log(1 - sparsity), at
        least the two ends. If only some numbers are possible, return all of these."""
        if self.values:
            return self.values
        inner = np.linspace(log_sparsity(self.low), log_sparsity(self.high), max(2, count))[1:-1]
        return (self.low, *map(from_log, inner.tolist()), self.high)


class Cover:
    """Chooses the final sparsity and the method of each trial.

    If the goal is a front, the trials of each method take sparsities that are even in log(1 - sparsity) from the lower
    end of the range to the upper end. Each trial takes the sparsity that is farthest from all trials so far. So the
    trials are spread over the range at any time, and at the end no sparsity is left out. If the study is resumed with
    more trials, the sparsities of a finer division are filled in the same way.

    If the goal has several targets, each round has one trial for each target. In two of three rounds, a trial gets the
    method with the fewest trials at its target. In the third round, the sampler chooses the method.

    The decisions depend only on the earlier trials, so a resumed search continues in the same way.

    Args:
        goal: a goal with several targets, or a front.
        ranges: a dict from the name of each method to the method's possible final sparsities. A method that never
            prunes has no entry.
        trials: the number of trials of the study. It decides how finely a front is divided.
    """

    def __init__(self, goal: Goal, ranges: Mapping[str, Range], trials: int) -> None:
        self._goal = goal
        self._ranges = {method: own.within(goal.lowest, goal.highest) for method, own in ranges.items()}
        self._even = {method: own.even(math.ceil(trials / len(ranges))) for method, own in self._ranges.items()}

    def next(self, number: int, placed: Mapping[str, Sequence[float]]) -> Turn | None:
        """Return the final sparsity of the next trial, and its method if the sampler does not choose the method. Return
        None if no method of the study searches a final sparsity.

        Args:
            number: the next trial's number.
            placed: a dict from the name of each method to the final sparsities of all its trials that have begun, in
                any state.
        """
        if not self._ranges:
            return None
        if self._goal.kind is GoalKind.TARGETS:
            return self._at_target(number, placed)
        farthest = [(*farthest_from(placed.get(method, ()), even), method) for method, even in self._even.items()]
        _, sparsity, method = max(farthest, key=lambda one: one[0])
        return Turn(sparsity, method)

    def _at_target(self, number: int, placed: Mapping[str, Sequence[float]]) -> Turn:
        targets = self._goal.targets
        target, turn = targets[number % len(targets)], number // len(targets)
        if turn % 3 == 2:
            return Turn(target)
        return Turn(target, min(self._ranges, key=lambda method: list(placed.get(method, ())).count(target)))


def farthest_from(placed: Sequence[float], sparsities: Sequence[float]) -> tuple[float, float]:
    """Return how far a sparsity is from all trials, and the sparsity for which this distance is largest. Of equally far
    sparsities, take the highest.

    The distance is a share of the distance between the lowest and the highest sparsity. Without any trial it is
    infinite, and the highest sparsity is taken: a network at this end gives a lower bound of the front over the whole
    range. If each sparsity has a trial, the distance is minus the number of trials, and the sparsity with the fewest
    trials is taken.

    Args:
        placed: the final sparsities of the trials so far.
        sparsities: the sparsities to choose from, in ascending order.
    """
    if not placed:
        return math.inf, sparsities[-1]
    at, choices = np.sort(_positions(placed)), _positions(sparsities)
    right = np.searchsorted(at, choices)
    nearest = [at[np.clip(index, 0, len(at) - 1)] for index in (right - 1, right)]
    distances = np.abs(choices - nearest).min(0)
    if distances.max() > SAME:
        return distances.max() / ((choices[-1] - choices[0]) or 1.0), _last(sparsities, distances)
    counts = np.searchsorted(at, choices + SAME) - np.searchsorted(at, choices - SAME)
    return -len(placed), _last(sparsities, -counts)


def _positions(sparsities: Sequence[float]) -> np.ndarray:
    """Return `log_sparsity` of each sparsity."""
    return -np.log1p(-np.array(sparsities))


def _last(sparsities: Sequence[float], values: np.ndarray) -> float:
    """Return the last sparsity whose value is the largest."""
    return sparsities[int(np.flatnonzero(values >= values.max() - SAME)[-1])]
