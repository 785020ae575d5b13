"""Asynchronous successive halving under a constraint: the decisions alone, without Ray.

At a rung, that is after a fixed number of epochs, a trial goes on if it ranks among the best 1/`reduction` of the
trials that have come that far, itself included; otherwise it is stopped, at once and for good. No trial waits for
another (the stopping form of Li et al., arXiv 1810.05934). With one target, feasible trials rank before infeasible ones
and then by merit: sparsity beyond the target counts for nothing. Where several sparsities are wanted, a trial is
compared with those of like sparsity (`LikeStopping`).

A rung never compares a dense moment of one trial with a sparse one of another: all its values were measured after the
same number of epochs, each on the network as projected to the sparsity that its trial ends on. Trials of different
methods are never compared, since their schedules are laid over the epochs in different ways: a network that is sparse
from the start leads early, and may lose.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

from tune_sparsity.tuner.search.cover import log_sparsity
from tune_sparsity.tuner.search.monotone import NOISE, deviation, residuals
from tune_sparsity.tuner.study.goal import Goal

Value = tuple[float, float]
"""What a trial has at a rung: (the merit of val_accuracy_at_target or its kin, the sparsity that it ends on)."""


class Entry(NamedTuple):
    """A trial at a rung."""

    merit: float
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
BAND = 12  # trials of like sparsity that a trial is
EVIDENCE = 10  # of them that there must be before any is stopped
CLEARLY = 2.0  # standard deviations below the median of its band, from which on a trial is stopped
PART = 2.5
"""Of n trials along a range each PART / n of it is a part: one of its trials finishes."""


def rung_epochs(epochs: int, first: float = FIRST_RUNG, spacing: float = SPACING) -> tuple[int, ...]:
    """Return the epochs after which trials of `epochs` epochs are judged: first x epochs, `spacing` times as many, ...

    Trials of fewer than three epochs have none, and the last epoch is never one: a trial that gets there has finished.
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
    had (`recall`, `ended`), and decides as if it had not stopped.

    Args:
        rungs: epochs, rising, as `rung_epochs` gives them. None at all: every trial goes on.
        target: smallest feasible final sparsity, in [0, 1]; None: there is no constraint.
        reduction: 1 / the share of trials that a rung lets go on; above 1.
        window: how many trials a rung remembers.
    """

    def __init__(
        self,
        rungs: Sequence[int],
        *,
        target: float | None,
        reduction: float = REDUCTION,
        window: int = WINDOW,
    ) -> None:
        if not reduction > 1:
            raise ValueError(f"reduction must be above 1, got {reduction}")
        self.rungs, self.target = tuple(rungs), target
        self.reduction, self.window = reduction, window
        self._values: dict[tuple[str, int], dict[int, Value | None]] = {}  # None: the trial has failed since

    def goes_on(self, number: int, method: str, epoch: int, value: Value) -> bool:
        """Return whether trial `number` may train on; at a rung its value is remembered.

        A value that is not finite is not remembered, and its trial is stopped.
        """
        if epoch not in self.rungs:
            return True
        if not all(map(math.isfinite, value)):
            return False
        self._remember(number, method, epoch, value)
        known = {n: v for n, v in self._values[method, epoch].items() if v is not None} | {number: value}
        return self._good_enough(number, method, [Entry(*v, n) for n, v in known.items()])

    def _good_enough(self, number: int, method: str, entries: list[Entry]) -> bool:
        """Return whether trial `number` is among the best of the entries, which it is one of."""
        best = sorted(entries, key=self._rank)[: math.ceil(len(entries) / self.reduction)]
        return any(entry.number == number for entry in best)

    def _rank(self, entry: Entry) -> tuple[bool, float, float, float]:
        """Sorts the best first; of equal merits the sparser trial, entirely equal ones by their lots."""
        infeasible = self.target is not None and entry.sparsity < self.target
        return infeasible, -entry.merit, -entry.sparsity, entry.lot

    def recall(self, number: int, method: str, values: Iterable[tuple[int, Value]]) -> None:
        """Take up what a trial of an earlier process had: (epoch, value) pairs. Epochs of no rung are passed over."""
        for epoch, value in values:
            if epoch in self.rungs and all(map(math.isfinite, value)):
                self._remember(number, method, epoch, value)

    def ended(self, number: int, method: str, sparsity: float | None, completed: bool) -> None:
        """Take note that a trial has ended, otherwise than by failing.

        Args:
            sparsity: that the trial was to end on; None if it is not known.
            completed: whether it trained to its end; else it was stopped.
        """

    def forget(self, number: int) -> None:
        """Take a trial's values out of all rungs: one that failed sets no standard."""
        for values in self._values.values():
            if number in values:
                values[number] = None

    def _remember(self, number: int, method: str, epoch: int, value: Value) -> None:
        values = self._values.setdefault((method, epoch), {})
        values[number] = value
        if len(values) > self.window:
            del values[min(values)]


class LikeStopping(Halving):
    """Compares a trial with trials of like sparsity, for studies of several sparsities.

    A trial's lead at a rung is by how much its merit is above the monotone fit of its band: the trials next to it
    on the logarithm of the density. So a sparse trial is not stopped for being sparse. It is stopped where its lead
    is clearly below the band's median, and nothing is stopped before a band has `EVIDENCE` trials: on a front every
    completed trial may gain, and of two that differ by chance neither is worth stopping. The only trial of a part of
    the range is never stopped while no trial has been completed there: of a cover laid out evenly at least one trial in
    three finishes.

    Args:
        rungs: epochs, rising, as `rung_epochs` gives them.
        low, high: the range's ends, sparsities with 0 <= low < high < 1.
        window: how many trials a rung remembers.
        noise: the least standard deviation of merits.
    """

    def __init__(
        self, rungs: Sequence[int], *, low: float, high: float, window: int = WINDOW, noise: float = NOISE
    ) -> None:
        super().__init__(rungs, target=None, window=window)
        self._noise = noise
        self._extent = log_sparsity(high) - log_sparsity(low)
        self._completed: dict[str, list[float]] = {}  # positions by method, sorted
        self._alive: dict[str, dict[int, float]] = {}  # positions of trials that passed a rung and have not ended
        self._count: dict[str, int] = {}  # trials that came to a rung, or ended

    def goes_on(self, number: int, method: str, epoch: int, value: Value) -> bool:
        if epoch in self.rungs and math.isfinite(value[1]):
            self._meet(number, method, value[1])
        return super().goes_on(number, method, epoch, value)

    def _meet(self, number: int, method: str, sparsity: float) -> None:
        alive = self._alive.setdefault(method, {})
        if number not in alive:
            self._count[method] = self._count.get(method, 0) + 1
        alive[number] = log_sparsity(sparsity)

    def _good_enough(self, number: int, method: str, entries: list[Entry]) -> bool:
        at = self._alive[method][number]
        band = sorted(entries, key=lambda entry: (abs(log_sparsity(entry.sparsity) - at), -entry.number))[: BAND + 1]
        if len(band) < EVIDENCE or self._alone(number, method, at):
            return True
        leads = residuals([(log_sparsity(entry.sparsity), entry.merit) for entry in band])
        own = next(lead for entry, lead in zip(band, leads, strict=True) if entry.number == number)
        return own >= median(leads) - CLEARLY * deviation(leads, self._noise)

    def _alone(self, number: int, method: str, at: float) -> bool:
        """Return whether no other trial of this part of the range has been completed or may still be."""
        reach = PART / 2 * self._extent / self._count[method]
        done = self._completed.get(method, [])
        place = bisect_left(done, at - reach)
        near = place < len(done) and done[place] < at + reach
        return not near and not any(abs(other - at) < reach for n, other in self._alive[method].items() if n != number)

    def recall(self, number: int, method: str, values: Iterable[tuple[int, Value]]) -> None:
        values = list(values)
        for _, (_, sparsity) in values:
            self._meet(number, method, sparsity)
        super().recall(number, method, values)

    def ended(self, number: int, method: str, sparsity: float | None, completed: bool) -> None:
        if self._alive.get(method, {}).pop(number, None) is None:
            self._count[method] = self._count.get(method, 0) + 1
        if completed and sparsity is not None:
            insort(self._completed.setdefault(method, []), log_sparsity(sparsity))

    def forget(self, number: int) -> None:
        super().forget(number)
        for alive in self._alive.values():
            alive.pop(number, None)


def halving_for(scheduler: str, goal: Goal, epochs: int) -> Halving:
    """Return the early stopping of a study.

    Args:
        scheduler: "none" for no early stopping.
        goal: what the study looks for.
        epochs: of a trial that is not stopped.
    """
    if scheduler == "none":
        return Halving((), target=None)
    if goal.multi_objective:
        return LikeStopping(rung_epochs(epochs), low=goal.lowest, high=goal.highest, noise=NOISE * goal.scale)
    return Halving(rung_epochs(epochs), target=goal.lowest)
