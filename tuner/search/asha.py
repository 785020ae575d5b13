"""Asynchronous successive halving over two objectives and a constraint: the decisions alone, without Ray.

At a rung, that is after a fixed number of epochs, a trial goes on if it ranks among the best 1/`reduction` of the
trials that have come that far, itself included; otherwise it is stopped, at once and for good. No trial waits for
another (the stopping form of Li et al., arXiv 1810.05934). Trials rank feasible before infeasible, non-dominated before
dominated, and inside a front by accuracy, or spread over the front (Schmucker et al., arXiv 2106.12639, without a
constraint). Sparsity beyond what the study asks for is no merit: with one target feasible trials rank by accuracy.

A rung never compares a dense moment of one trial with a sparse one of another: all its values were measured after the
same number of epochs, each on the network as projected to the sparsity that its trial ends on. Trials of different
methods are never compared, since their schedules are laid over the epochs in different ways: a network that is sparse
from the start leads early, and may lose.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

Value = tuple[float, float]
"""What a trial has at a rung: (val_accuracy_at_target, the sparsity that it ends on), both maximised, in [0, 1]."""


class Entry(NamedTuple):
    """A trial at a rung."""

    accuracy: float
    sparsity: float
    number: int

    @property
    def lot(self) -> float:
        """Decides between equal trials, evenly spread over [0, 1): where many are equal, all at the accuracy of a guess
        say, the share that goes on is the same as elsewhere. By age, only the first would."""
        return self.number * _GOLDEN % 1


# Chosen on the recorded curves of ten searches on digits, as benchmarks.search --stopping replays them: of the rules
# that save half of the epochs one that loses least. Later rungs know more (rank correlation with the final accuracy .2
# after a sixth of the epochs, .4 after half of them), and save less.
FIRST_RUNG, SPACING, REDUCTION = 1 / 5, 3.0, 3.0
WINDOW = 256  # trials that a rung remembers
_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples, modulo 1, are spread as evenly as can be


def rung_epochs(epochs: int, first: float = FIRST_RUNG, spacing: float = SPACING) -> tuple[int, ...]:
    """The epochs after which trials of `epochs` epochs are judged: first x epochs, then `spacing` times as many, ...

    Trials of fewer than three epochs have none, and the last epoch is never one: who gets there has finished.
    """
    if epochs < 3:
        return ()
    rungs = set()
    at = max(1.0, first * epochs)
    while round(at) < epochs:
        rungs.add(round(at))
        at *= spacing
    return tuple(sorted(rungs))


class Halving:
    """Decides which trials go on, from what trials had at the rungs.

    A rung remembers the `window` youngest trials (by number). So its cost and memory do not grow with the study, and a
    searcher that has become better must not have new trials measured against its first attempts. The decisions depend
    on what was reported and in which order, on nothing else: a study that goes on after a crash tells what its trials
    had (`recall`), and decides as if it had not stopped.

    Args:
        rungs: epochs, rising, as `rung_epochs` gives them. None at all: every trial goes on.
        target: smallest feasible final sparsity, in [0, 1]; None: there is no constraint.
        ceiling: sparsity above it counts for nothing. By default the target: accuracy alone ranks feasible trials.
        spread: rank the trials of one front so that the best of them cover it, instead of by accuracy: for a study
            that wants the whole front, or several targets.
        reduction: 1 / the share of trials that a rung lets go on; above 1.
        window: how many trials a rung remembers.
    """

    def __init__(
        self,
        rungs: Sequence[int],
        *,
        target: float | None,
        ceiling: float | None = None,
        spread: bool = False,
        reduction: float = REDUCTION,
        window: int = WINDOW,
    ) -> None:
        if not reduction > 1:
            raise ValueError(f"reduction must be above 1, got {reduction}")
        self.rungs, self.target, self.spread = tuple(rungs), target, spread
        self.ceiling = target if ceiling is None else ceiling
        self.reduction, self.window = reduction, window
        self._values: dict[tuple[str, int], dict[int, Value | None]] = {}  # None: the trial has failed since

    def goes_on(self, number: int, method: str, epoch: int, value: Value) -> bool:
        """Whether trial `number` may train on; at a rung its value is remembered.

        A value that is not finite is not remembered, and its trial is stopped.
        """
        if epoch not in self.rungs:
            return True
        if not all(map(math.isfinite, value)):
            return False
        self._remember(number, method, epoch, value)
        known = {n: v for n, v in self._values[method, epoch].items() if v is not None} | {number: value}
        entries = (Entry(*v, n) for n, v in known.items())
        places = math.ceil(len(known) / self.reduction)
        return any(entry.number == number for entry in islice(self._ranked(entries), places))

    def recall(self, number: int, method: str, values: Iterable[tuple[int, Value]]) -> None:
        """Takes up what a trial of an earlier process had: (epoch, value) pairs. Epochs of no rung are passed over."""
        for epoch, value in values:
            if epoch in self.rungs and all(map(math.isfinite, value)):
                self._remember(number, method, epoch, value)

    def forget(self, number: int) -> None:
        """Takes a trial's values out of all rungs: one that failed sets no standard."""
        for values in self._values.values():
            if number in values:
                values[number] = None

    def _ranked(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        return ranked(entries, self.target, self.ceiling, self.spread)

    def _remember(self, number: int, method: str, epoch: int, value: Value) -> None:
        values = self._values.setdefault((method, epoch), {})
        values[number] = value
        if len(values) > self.window:
            del values[min(values)]


def ranked(
    entries: Iterable[Entry], target: float | None, ceiling: float | None = None, spread: bool = False
) -> Iterator[Entry]:
    """The entries from the best to the worst, as `Halving` describes it. Of equal accuracies at sparsities that count
    as equal the sparser entry is better; entirely equal ones are in the order of their lots."""
    groups: tuple[list[Entry], list[Entry]] = ([], [])
    for entry in entries:
        groups[target is not None and entry.sparsity < target].append(entry)
    for group in groups:
        same: dict[Value, list[Entry]] = {}
        for entry in group:
            counted = entry.sparsity if ceiling is None else min(entry.sparsity, ceiling)
            same.setdefault((entry.accuracy, counted), []).append(entry)
        for front in fronts(same):
            for value in _order(front, spread):
                yield from sorted(same[value], key=lambda entry: (-entry.sparsity, entry.lot))


def fronts(values: Iterable[Value]) -> list[list[Value]]:
    """The different values by non-dominated sorting: the Pareto front, the front of the rest, and so on.

    Each front is by falling sparsity and rising accuracy. O(n log n).
    """
    sorted_out: list[list[Value]] = []
    least: list[float] = []  # minus each front's best accuracy so far: rises from front to front
    # From the sparsest on, a value is dominated by a front exactly if it is not more accurate than all in it so far.
    for value in sorted(set(values), key=lambda v: (-v[1], -v[0])):
        index = bisect_right(least, -value[0])
        if index == len(sorted_out):
            sorted_out.append([])
            least.append(0.0)
        sorted_out[index].append(value)
        least[index] = -value[0]
    return sorted_out


def _order(front: list[Value], spread: bool) -> list[Value]:
    """A front from its best to its worst member: by accuracy, or as an epsilon-net, in which every next member is the
    farthest from all before it, in units of the front's extent, from the most accurate on."""
    ranked = sorted(front, reverse=True)
    if not spread or len(ranked) < 3:
        return ranked
    extent = [max(column) - min(column) or 1.0 for column in zip(*ranked, strict=True)]
    distance = dict.fromkeys(ranked[1:], math.inf)
    net = [ranked[0]]
    while distance:
        for value in distance:
            away = math.hypot((value[0] - net[-1][0]) / extent[0], (value[1] - net[-1][1]) / extent[1])
            distance[value] = min(distance[value], away)
        net.append(max(distance, key=lambda value: distance[value]))
        del distance[net[-1]]
    return net
