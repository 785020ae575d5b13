"""Decides on early stopping by asynchronous successive halving (ASHA) under a constraint. It does not need Ray.

A rung is an epoch after which trials are compared. A trial continues if it ranks among the best third of the trials
that have reached the rung, including itself (`reduction` is 3). Otherwise it is stopped immediately. No trial waits for
another trial (the stopping variant of Li et al., arXiv 1810.05934). If the goal has one target, feasible trials rank
before infeasible trials. Among feasible trials only the merit counts, which is the metric, negated if it is minimised:
a sparsity above the target is no advantage. If the goal is a front or has several targets, a trial is compared with
trials of similar sparsity (`LikeStopping`).

All values at a rung were measured after the same number of epochs. For the measurement, each network is pruned to its
final sparsity for a moment. So a method that prunes only later in the training has no advantage. Trials of different
methods are never compared, because the methods prune at different times: a network that is sparse from the start may
lead early and lose later.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

from tune_sparsity.search_spaces.priors import log_sparsity
from tune_sparsity.tuner.search.monotone import NOISE, deviation, residuals
from tune_sparsity.tuner.study.goal import Goal

Value = tuple[float, float]
"""The value of a trial at a rung: (merit, final sparsity). The network was pruned to its final sparsity before the
merit was measured."""


class Entry(NamedTuple):
    """The value of a trial at a rung, which is an epoch where trials are compared."""

    merit: float
    sparsity: float
    number: int

    @property
    def lot(self) -> float:
        """Return a number in [0, 1) that ranks trials with equal merit and equal sparsity. It depends only on the
        trial's number.

        Many trials may be equal, for example if all have the accuracy of a random guess. For successive trials, the
        returned numbers are evenly spread over [0, 1), so a constant share of equal trials continues. If equal trials
        were ranked by age, only the first trials would continue.
        """
        return self.number * _GOLDEN % 1


# Chosen with benchmarks.curves.simulate and benchmarks.search --stopping (benchmarks/HISTORY.md, "Early stopping"). On
# recorded searches of digits, these values save 58% of the epochs, and the best trial's accuracy is 0.19 percentage
# points lower. FIRST_RUNG = 1 / 5 saves 51% and loses 0.17 points. REDUCTION = 4 saves more, but about a quarter fewer
# trials are completed, so the front has fewer networks. The rank correlation between the accuracy at a rung and the
# final accuracy is 0.2 for a rung after a sixth of the epochs, and 0.4 for a rung after half of them. So later rungs
# decide better, but save less.
FIRST_RUNG, SPACING, REDUCTION = 1 / 8, 3.0, 3.0
WINDOW = 256  # trials that a rung remembers
_GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of the golden ratio, modulo 1, are spread very evenly
BAND = 12  # the number of trials of similar sparsity with which a trial is compared
EVIDENCE = 10  # no trial is stopped while its band, including itself, has fewer trials
CLEARLY = 2.0  # a trial is stopped if its lead (LikeStopping) is so many standard deviations below its band's median
PART = 2.5
"""Of n trials, those within a part PART / n of the range have similar sparsity. One trial of each part is completed."""


def rung_epochs(epochs: int, first: float = FIRST_RUNG, spacing: float = SPACING) -> tuple[int, ...]:
    """Return the rungs, which are the epochs after which trials are compared, in ascending order. The last epoch is
    never a rung, and trials with fewer than three epochs have no rungs.

    Args:
        epochs: the number of epochs of a complete trial.
        first: the first rung as a fraction of the epochs.
        spacing: the factor from each rung to the next.
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
    """Decides at each rung whether a trial continues.

    A rung remembers only the `window` trials with the highest numbers. Time and memory therefore do not grow with the
    study. In a long study, new trials are therefore not compared with the first trials, for which the sampler had
    learned little.

    The decisions depend only on the reported values and their order. A resumed study reports its earlier trials with
    `recall` and `ended`. Its decisions are then the same as in an uninterrupted study.

    Args:
        rungs: the result of `rung_epochs`. Without rungs, every trial continues.
        target: the smallest feasible final sparsity, in [0, 1]. If None, all sparsities are feasible.
        reduction: the factor by which a rung reduces the number of trials, above 1. About 1 of `reduction` trials
            continues.
        window: the number of trials that a rung remembers.

    Raises:
        ValueError: if `reduction` is not above 1.
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
        # The outer keys are (method, rung), and the inner keys are numbers of trials. If a trial fails after the rung,
        # its value becomes None.
        self._values: dict[tuple[str, int], dict[int, Value | None]] = {}

    def goes_on(self, number: int, method: str, epoch: int, value: Value) -> bool:
        """Return whether a trial may continue after an epoch. If this epoch is a rung, remember the trial's value.

        Args:
            number: the trial's number.
            method: the trial's method.
            epoch: the number of the epoch, from 1.
            value: (merit, final sparsity), as for `Value`. If one of these numbers is not finite at a rung, the trial
                is stopped and `value` is not remembered.
        """
        if epoch not in self.rungs:
            return True
        if not all(map(math.isfinite, value)):
            return False
        self._remember(number, method, epoch, value)
        known = {n: v for n, v in self._values[method, epoch].items() if v is not None} | {number: value}
        return self._good_enough(number, method, [Entry(*v, n) for n, v in known.items()])

    def _good_enough(self, number: int, method: str, entries: list[Entry]) -> bool:
        """Return whether trial `number` is among the best of the entries at a rung. The entries include this trial."""
        best = sorted(entries, key=self._rank)[: math.ceil(len(entries) / self.reduction)]
        return any(entry.number == number for entry in best)

    def _rank(self, entry: Entry) -> tuple[bool, float, float, float]:
        """Return a key that sorts the best trial first. Among equal merits, the sparser trial is first. Among equal
        sparsities, the trial with the smaller `Entry.lot` is first."""
        infeasible = self.target is not None and entry.sparsity < self.target
        return infeasible, -entry.merit, -entry.sparsity, entry.lot

    def recall(self, number: int, method: str, values: Iterable[tuple[int, Value]]) -> None:
        """Remember the values of a trial from an earlier process of the study.

        Args:
            number: the trial's number.
            method: the trial's method.
            values: (epoch, value) pairs, with values as in `goes_on`. Epochs that are not rungs are ignored.
        """
        for epoch, value in values:
            if epoch in self.rungs and all(map(math.isfinite, value)):
                self._remember(number, method, epoch, value)

    def ended(self, number: int, method: str, sparsity: float | None, completed: bool) -> None:
        """Record that a trial has been completed or stopped. For failed trials, call `forget` instead.

        Args:
            number: the trial's number.
            method: the trial's method.
            sparsity: the trial's final sparsity; None if unknown.
            completed: whether the trial was trained for all its epochs. If False, the trial was stopped.
        """

    def forget(self, number: int) -> None:
        """Remove the values of a failed trial from all rungs, so that no trial is compared with it."""
        for values in self._values.values():
            if number in values:
                values[number] = None

    def _remember(self, number: int, method: str, epoch: int, value: Value) -> None:
        values = self._values.setdefault((method, epoch), {})
        values[number] = value
        if len(values) > self.window:
            del values[min(values)]


class LikeStopping(Halving):
    """Compares a trial with trials of similar sparsity, for studies of a front or of several targets.

    The band of a trial at a rung consists of this trial and the `BAND` other trials at this rung whose final sparsities
    are most similar to its own. The difference between two sparsities is that of their values of log(1 - sparsity). The
    lead of a trial at a rung is its merit minus its expected merit. The expected merit comes from the other trials of
    the band: a non-increasing function of the sparsity is fitted to their merits. So a trial is not stopped only
    because it is sparse. It is stopped if its lead is more than `CLEARLY` standard deviations below the median lead of
    its band.

    There are two exceptions. A trial is not stopped if its band has fewer than `EVIDENCE` trials, because small
    differences may be chance. A trial is not stopped if no other trial of similar sparsity is completed or running,
    because the front needs a trial at about this sparsity. If trials cover the range evenly, at least one trial in
    three is completed.

    Args:
        rungs: the result of `rung_epochs`.
        low: the lower end of the range of sparsities, at least 0.
        high: the upper end of the range of sparsities, above `low` and below 1.
        window: the number of trials that a rung remembers.
        noise: the smallest standard deviation of leads that is assumed.
    """

    def __init__(
        self, rungs: Sequence[int], *, low: float, high: float, window: int = WINDOW, noise: float = NOISE
    ) -> None:
        super().__init__(rungs, target=None, window=window)
        self._noise = noise
        self._extent = log_sparsity(high) - log_sparsity(low)
        # The keys of these three dicts are the names of methods. A position is a `log_sparsity`.
        self._completed: dict[str, list[float]] = {}  # the positions of completed trials, sorted
        self._alive: dict[str, dict[int, float]] = {}  # the positions of trials that reached a rung and have not ended
        self._count: dict[str, int] = {}  # the number of trials that have reached a rung or ended

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
        """Return whether no other trial with a similar final sparsity is completed or running."""
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
    """Return the object that decides on early stopping in a study.

    Args:
        scheduler: the value of --scheduler. With "none", no trial is stopped.
        goal: the study's target sparsities and limits, as a `Goal`.
        epochs: the number of epochs of a complete trial.
    """
    if scheduler == "none":
        return Halving((), target=None)
    if goal.multi_objective:
        return LikeStopping(rung_epochs(epochs), low=goal.lowest, high=goal.highest, noise=NOISE * goal.scale)
    return Halving(rung_epochs(epochs), target=goal.lowest)
