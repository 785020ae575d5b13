"""Defines the goal of a study: one target, several targets, a front, or a limit of nonzero weights, bytes,
multiply-adds or milliseconds.

All code that depends on the kind of goal is here. The goal gives the range of final sparsities that the search tries,
decides which trials are feasible, and compares trials. A feasible trial has completed and meets the goal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

from tune_sparsity.tuner.study.layout import BEST
from tune_sparsity.tuner.study.objective import ACCURACY, Objective
from tune_sparsity.tuner.study.pareto import Point, best_trial, hypervolume, known_point, pareto_front, points_of
from tune_sparsity.tuner.study.trial import TrialRecord


class GoalKind(StrEnum):
    """The kinds of goals. Each value is the name of an option without "--", except the value of TARGETS: this kind is
    --target with several sparsities."""

    TARGET = "target"
    TARGETS = "targets"
    FRONT = "front"
    MAX_NONZERO = "max-nonzero"
    MAX_BYTES = "max-bytes"
    MAX_MACS = "max-macs"
    MAX_LATENCY = "max-latency"


@dataclass(frozen=True)
class Goal:
    """The goal of a study. Sparsities are fractions of zero weights in [0, 1). The functions of this module, such as
    `at_targets`, make goals.

    Attributes:
        targets: the sparsities for which the study searches the best network, in ascending order. A front has one
            target, its lower end. A goal with a limit has one target, which is computed from the limit.
        ceiling: the upper end of a front; None for the other goals.
        max_nonzero: the largest allowed number of nonzero weights; None for the other goals. The target is the sparsity
            of a network that has exactly this number of nonzero weights.
        max_bytes: the largest allowed size of a network's packed file (this package's smallest file format); None for
            the other goals. The target is the approximate sparsity of a network whose file has this size.
        max_macs: the largest allowed number of multiply-adds for an example; None for the other goals. A goal with
            `max_latency` also has this number, except while the number is not known yet. The target of a goal with
            `max_macs` is not a fraction of weights. It is the fraction of the prunable layers' multiply-adds that a
            network must save.
        max_latency: the longest allowed forward pass of a batch, in milliseconds; None for the other goals. During the
            search, `max_macs` is an estimate of the largest number of multiply-adds that meets this limit. At the end
            of the study, `max_macs` is the number of multiply-adds of the network that met the limit in a measurement.
            If no network met it, `max_macs` excludes all networks.
        latency_batch: for `max_latency`, the number of examples in the batch.
        objective: the metric that networks are judged by.
        baseline: the value of the metric from which the hypervolume is measured. It is the metric's worst value, such
            as 0 for accuracy. If no worst value is known, it is the metric's value for the untrained network.
    """

    targets: tuple[float, ...]
    ceiling: float | None = None
    max_nonzero: int | None = None
    max_bytes: int | None = None
    max_macs: int | None = None
    max_latency: float | None = None
    latency_batch: int = 1
    objective: Objective = ACCURACY
    baseline: float = 0.0

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in pairwise(self.ends))
        if not self.targets or not rising or not all(0 <= end < 1 for end in self.ends):
            raise ValueError(f"a goal's sparsities must lie in [0, 1) and ascend, got {self.ends}")
        counted = (self.ceiling, self.max_nonzero, self.max_bytes, self.max_macs)
        if len(self.targets) > 1 and any(count is not None for count in counted):
            raise ValueError("a front, or a limit of weights, bytes or multiply-adds, must have exactly one target")

    @property
    def kind(self) -> GoalKind:
        if self.ceiling is not None:
            return GoalKind.FRONT
        if self.max_nonzero is not None:
            return GoalKind.MAX_NONZERO
        if self.max_bytes is not None:
            return GoalKind.MAX_BYTES
        if self.max_latency is not None:
            return GoalKind.MAX_LATENCY
        if self.max_macs is not None:
            return GoalKind.MAX_MACS
        return GoalKind.TARGETS if len(self.targets) > 1 else GoalKind.TARGET

    @property
    def multi_objective(self) -> bool:
        """Return whether the goal has several targets or is a front. Sparsity is then a second objective of the
        search."""
        return self.kind in (GoalKind.TARGETS, GoalKind.FRONT)

    @property
    def lowest(self) -> float:
        """Return the lowest target. A feasible trial has at least this sparsity. If the goal has a limit of bytes,
        multiply-adds or milliseconds, a trial needs no particular sparsity."""
        return self.targets[0]

    @property
    def highest(self) -> float:
        """Return the highest target, or a front's upper end."""
        return self.targets[-1] if self.ceiling is None else self.ceiling

    @property
    def ends(self) -> tuple[float, ...]:
        """Return all targets, or both ends of a front, in ascending order."""
        return (*self.targets, *(() if self.ceiling is None else (self.ceiling,)))

    @property
    def searched(self) -> tuple[float, float]:
        """Return the range of the trials' final sparsities, as (lowest, highest). In the file of a search space, the
        word `target` means the lowest sparsity of this range, and the word `above` means the highest.

        With several targets or a front, the range has the same ends as the goal. With one target t, the highest
        sparsity is t + 0.2 (1 - t). The trials above the target show how much accuracy a higher sparsity costs.
        """
        if self.multi_objective:
            return self.lowest, self.highest
        return self.lowest, self.lowest + 0.2 * (1 - self.lowest)

    def feasible(self, record: TrialRecord) -> bool:
        for measured, most in ((record.size_bytes, self.max_bytes), (record.macs, self.max_macs)):
            if most is not None:
                return record.feasible(0.0) and measured is not None and measured <= most
        return record.feasible(self.lowest)

    @property
    def limited(self) -> bool:
        """Return whether the goal has a limit of bytes, multiply-adds or milliseconds. A trial then needs no particular
        sparsity."""
        return self.max_bytes is not None or self.max_macs is not None

    @property
    def condition(self) -> str:
        """Return a text about what the network of a feasible trial must have, such as "at most 5,000 multiply-adds"."""
        if self.max_bytes is not None:
            return f"a packed file of at most {self.max_bytes:,} bytes"
        if self.max_latency is not None:
            return f"at most {self.latency} ({self.max_macs:,} multiply-adds)"
        if self.max_macs is not None:
            return f"at most {self.max_macs:,} multiply-adds"
        return f"a sparsity of {100 * self.lowest:.6g}% or more"

    @property
    def latency(self) -> str:
        """Return the longest allowed latency in words."""
        return f"{self.max_latency:g} ms at batch size {self.latency_batch}"

    def _judged(self, records: Iterable[TrialRecord], target: float) -> tuple[list[TrialRecord], float]:
        """Return the two arguments of the functions in tuner.study.pareto: trials, and the smallest feasible sparsity.
        For a limit of bytes or multiply-adds, these are the trials within the limit, and 0."""
        if not self.limited:
            return list(records), target
        return [record for record in records if self.feasible(record)], 0.0

    def best(self, records: Iterable[TrialRecord]) -> TrialRecord | None:
        """Return the best feasible trial of the records (see `best_trial`). Return None if no trial is feasible."""
        return best_trial(*self._judged(records, self.lowest))

    def compared(self, records: Iterable[TrialRecord], target: float) -> list[TrialRecord]:
        """Return the trials from which the best trial at a target is chosen: the feasible trials that are at least as
        sparse as the target. For a limit of bytes or multiply-adds, return all feasible trials."""
        some, least = self._judged(records, target)
        return [record for record in some if record.feasible(least)]

    def candidates(self, records: Iterable[TrialRecord]) -> list[TrialRecord]:
        """Return the trials whose networks are timed if the goal has a limit of milliseconds. The first one is the best
        feasible trial. Each later one is the best feasible trial with fewer multiply-adds than the trial before it."""
        records, goal, found = list(records), self, list[TrialRecord]()
        while (best := goal.best(records)) is not None:
            found.append(best)
            goal = goal.below(best)
        return found

    def below(self, record: TrialRecord) -> Goal:
        """Return this goal with a stricter limit: networks must have fewer multiply-adds than the network of this
        trial."""
        assert record.macs is not None
        return replace(self, max_macs=record.macs - 1)

    def best_at(self, records: Iterable[TrialRecord]) -> list[tuple[float, TrialRecord | None]]:
        """Return a pair (target, trial) for each target. The trial is the best trial in the result of `compared`, or
        None if this result is empty."""
        records = list(records)
        return [(target, best_trial(*self._judged(records, target))) for target in self.targets]

    def front(self, records: Iterable[TrialRecord]) -> list[TrialRecord]:
        """Return the feasible front, in order of increasing sparsity."""
        return pareto_front(*self._judged(records, self.lowest))

    def reported(self, records: Iterable[TrialRecord]) -> list[TrialRecord]:
        """Return the trials whose networks are tested and written to files: the front, or the best trial at each
        target. The first trial is the study's best."""
        records = list(records)
        found = self.front(records) if self.kind is GoalKind.FRONT else [best for _, best in self.best_at(records)]
        return list({record.number: record for record in found if record is not None}.values())

    def folders(self, records: Iterable[TrialRecord]) -> dict[str, TrialRecord]:
        """Return a dict from the names of folders to trials. The study writes these folders into its own folder. Each
        folder contains the network of its trial.

        The folder of the best trial is `best`. With several targets, the best trial at each target also has a folder
        such as `best-0.8`. With a front, each trial on the front also has the folder `front/TRIAL`.
        """
        records = list(records)
        found = {} if (best := self.best(records)) is None else {BEST: best}
        if self.kind is GoalKind.TARGETS:
            found |= {f"best-{target!r}": best for target, best in self.best_at(records) if best is not None}
        if self.kind is GoalKind.FRONT:
            found |= {f"front/{record.name}": record for record in self.front(records)}
        return found

    def missing_above(self, records: Iterable[TrialRecord]) -> float | None:
        """Return the highest sparsity that a feasible trial has reached, if the goal asks for a higher sparsity. Return
        None if a trial has reached the goal's highest sparsity, or if no trial is feasible."""
        sparsest = max((record.sparsity or 0.0 for record in records if self.feasible(record)), default=None)
        return None if sparsest is None or sparsest >= self.highest else sparsest

    @property
    def reference(self) -> Point:
        """Return the reference point of the hypervolume: (lowest sparsity, baseline). This point never changes while a
        study runs, so the hypervolume never decreases."""
        return self.lowest, self.baseline

    @property
    def least_merit(self) -> float:
        """Return the merit (see Objective) of `baseline`."""
        return self.objective.merit(self.baseline)

    @property
    def scale(self) -> float:
        """Return the unit of constants that are compared with differences of the metric, for example the noise of a
        metric. The unit is 1 for a metric in [0, 1]. For any other metric, it is the absolute value of the baseline, or
        1 if the baseline is 0."""
        return 1.0 if self.objective.percent else abs(self.baseline) or 1.0

    def hypervolume(self, records: Iterable[TrialRecord]) -> float:
        """Return the hypervolume: the area that the feasible trials dominate, measured from the lowest sparsity and the
        merit of the baseline. If the goal is a front, a trial above the front's upper end counts as if its sparsity
        were the upper end."""
        points = points_of(record for record in records if self.feasible(record))
        if self.ceiling is not None:
            points = [(min(sparsity, self.ceiling), merit) for sparsity, merit in points]
        return hypervolume(points, (self.lowest, self.least_merit))

    def mean_value(self, area: float) -> float:
        """Convert the hypervolume of a front into a mean value of the metric.

        The result is a mean over all sparsities between the front's ends. The value at a sparsity is that of the best
        network with at least this sparsity, or `baseline` if there is no such network.

        Args:
            area: the result of `hypervolume`.
        """
        return self.objective.value(self.least_merit + area / (self.highest - self.lowest))

    def score(self, front: Sequence[TrialRecord]) -> tuple[float, ...]:
        """Return the score of a study so far, as a tuple of numbers that never decrease. A trial improves the study's
        result if at least one of the numbers increases.

        The tuple contains the best merit (see Objective) at each target, or minus infinity if no network meets the
        target. For a front, it contains two numbers: the hypervolume, and the best merit of a feasible network. The
        merit is needed because a network exactly at the front's lower end adds no hypervolume.

        Args:
            front: the study's feasible front.
        """
        area = (self.hypervolume(front),) if self.kind is GoalKind.FRONT else ()
        found = (best for _, best in self.best_at(front))
        return area + tuple(-math.inf if best is None else known_point(best)[1] for best in found)

    @property
    def option(self) -> str:
        """Return the value of --front if the goal is a front. For any other goal, return its targets as a value of
        --target."""
        return f"{self.lowest!r}:{self.ceiling!r}" if self.ceiling is not None else ",".join(map(repr, self.targets))

    def __str__(self) -> str:
        if self.ceiling is not None:
            return f"front {self.lowest:.6g}:{self.ceiling:.6g}"
        if self.max_nonzero is not None:
            return f"at most {self.max_nonzero:,} nonzero weights, a sparsity of {self.lowest:.6g}"
        if self.max_bytes is not None:
            return f"at most {self.max_bytes:,} bytes, a sparsity of about {self.lowest:.6g} or more"
        if self.max_latency is not None:
            return f"at most {self.latency}, about {self.max_macs:,} multiply-adds"
        if self.max_macs is not None:
            return f"at most {self.max_macs:,} multiply-adds, {self.lowest:.2%} fewer with prunable weights"
        numbers = ", ".join(f"{target:.6g}" for target in self.targets)
        return f"target{'s' if len(self.targets) > 1 else ''} {numbers}"


def at_targets(*targets: float) -> Goal:
    """Return the goal to find the best network at each of these sparsities. Raise ValueError if a sparsity is outside
    [0, 1), or if the sparsities are not in ascending order."""
    return Goal(targets)


def along_front(low: float, high: float) -> Goal:
    """Return the goal to find the front between two sparsities. Raise ValueError unless 0 <= low < high < 1."""
    return Goal((low,), ceiling=high)


def at_most(nonzero: int, weights: int) -> Goal:
    """Return the goal to find the best network with at most `nonzero` nonzero weights.

    Args:
        nonzero: the largest number of nonzero prunable weights.
        weights: the number of prunable weights in the network.

    Raises:
        ValueError: unless 1 <= nonzero <= weights.
    """
    if not 1 <= nonzero <= weights:
        raise ValueError(f"nonzero must lie in [1, {weights}], got {nonzero}")
    return Goal((sparsity_of(weights - nonzero, weights),), max_nonzero=nonzero)


def within_bytes(most: int, nonzero: int, weights: int) -> Goal:
    """Return the goal to find the best network whose packed file (see `Goal`) has at most `most` bytes.

    Args:
        most: the largest size of the packed file in bytes.
        nonzero: the approximate number of nonzero prunable weights in a file of this size.
        weights: the number of prunable weights in the network.

    Raises:
        ValueError: unless 1 <= nonzero <= weights.
    """
    return replace(at_most(nonzero, weights), max_nonzero=None, max_bytes=most)


def sparsity_of(zeros: int, weights: int) -> float:
    """Return the sparsity of a network in which `zeros` of the `weights` prunable weights are zero. The network meets a
    target of exactly this sparsity: the result is zeros / weights, or the next smaller float if rounding made this
    quotient too large."""
    from tune_sparsity.sparsity.masks import (
        sparsity_with,  # imported here, because it imports torch, which the progress display does not need
    )

    return sparsity_with(zeros, weights)
