"""What a study looks for: one target, the best network at each of several, a whole front, a number of weights or bytes.

Everything that depends on which of them it is asks the goal: the range of the final sparsity that is searched, which
trials are feasible, which is the best, and what counts as a gain.
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
    """The five ways to say what is wanted; the values are the options' names."""

    TARGET = "target"
    TARGETS = "targets"
    FRONT = "front"
    MAX_NONZERO = "max-nonzero"
    MAX_BYTES = "max-bytes"


@dataclass(frozen=True)
class Goal:
    """What a study looks for. Sparsities are fractions of zero weights in [0, 1). Made by the functions below.

    Attributes:
        targets: rising; a best network is looked for at each. A front has one, its lower end.
        ceiling: a front's upper end.
        max_nonzero: the count of weights that the target was given as.
        max_bytes: the size that a network's packed file may have. The target is about the sparsity that it takes.
        objective: the metric that networks are judged by.
        baseline: the metric's value that is worth nothing: 0 of accuracy, that of the untrained network where no worst
            value is known.
    """

    targets: tuple[float, ...]
    ceiling: float | None = None
    max_nonzero: int | None = None
    max_bytes: int | None = None
    objective: Objective = ACCURACY
    baseline: float = 0.0

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in pairwise(self.ends))
        if not self.targets or not rising or not all(0 <= end < 1 for end in self.ends):
            raise ValueError(f"a goal's sparsities must rise within [0, 1), got {self.ends}")
        counted = (self.ceiling, self.max_nonzero, self.max_bytes)
        if len(self.targets) > 1 and any(count is not None for count in counted):
            raise ValueError("a front and a number of weights or bytes have one target")

    @property
    def kind(self) -> GoalKind:
        if self.ceiling is not None:
            return GoalKind.FRONT
        if self.max_nonzero is not None:
            return GoalKind.MAX_NONZERO
        if self.max_bytes is not None:
            return GoalKind.MAX_BYTES
        return GoalKind.TARGETS if len(self.targets) > 1 else GoalKind.TARGET

    @property
    def multi_objective(self) -> bool:
        """Return whether networks of several sparsities are wanted: then sparsity is an objective beside the metric."""
        return self.kind in (GoalKind.TARGETS, GoalKind.FRONT)

    @property
    def lowest(self) -> float:
        """Return the study's constraint, unless it is a number of bytes: a trial is feasible if it completed and is at
        least this sparse."""
        return self.targets[0]

    @property
    def highest(self) -> float:
        """Return the largest sparsity that a network is wanted at."""
        return self.targets[-1] if self.ceiling is None else self.ceiling

    @property
    def ends(self) -> tuple[float, ...]:
        """Return the sparsities that the goal names, rising: its targets, and a front's upper end."""
        return (*self.targets, *(() if self.ceiling is None else (self.ceiling,)))

    @property
    def searched(self) -> tuple[float, float]:
        """Return the range of the final sparsity, for spaces that say `target` and `above`. With one target it reaches
        a fifth of the way from it to 1: what lies beyond shows what more sparsity would cost."""
        if self.multi_objective:
            return self.lowest, self.highest
        return self.lowest, self.lowest + 0.2 * (1 - self.lowest)

    def feasible(self, record: TrialRecord) -> bool:
        if self.max_bytes is None:
            return record.feasible(self.lowest)
        return record.feasible(0.0) and record.size_bytes is not None and record.size_bytes <= self.max_bytes

    @property
    def condition(self) -> str:
        """Return what a feasible trial must have, in words."""
        if self.max_bytes is not None:
            return f"a packed file of at most {self.max_bytes:,} bytes"
        return f"a sparsity of {100 * self.lowest:.6g}% or more"

    def _judged(self, records: Iterable[TrialRecord], target: float) -> tuple[list[TrialRecord], float]:
        """Return the trials of which those are feasible that are sparse enough, and what is sparse enough."""
        if self.max_bytes is None:
            return list(records), target
        return [record for record in records if self.feasible(record)], 0.0

    def best(self, records: Iterable[TrialRecord]) -> TrialRecord | None:
        """Return the best feasible trial: the one that a study reports."""
        return best_trial(*self._judged(records, self.lowest))

    def best_at(self, records: Iterable[TrialRecord]) -> list[tuple[float, TrialRecord | None]]:
        """Return every target and the best trial that is at least as sparse."""
        records = list(records)
        return [(target, best_trial(*self._judged(records, target))) for target in self.targets]

    def front(self, records: Iterable[TrialRecord]) -> list[TrialRecord]:
        """Return the feasible front, by rising sparsity."""
        return pareto_front(*self._judged(records, self.lowest))

    def reported(self, records: Iterable[TrialRecord]) -> list[TrialRecord]:
        """Return the trials whose networks are kept, judged on the test data and written: each target's best, or the
        front's. The study's best is the first of them."""
        records = list(records)
        found = self.front(records) if self.kind is GoalKind.FRONT else [best for _, best in self.best_at(records)]
        return list({record.number: record for record in found if record is not None}.values())

    def folders(self, records: Iterable[TrialRecord]) -> dict[str, TrialRecord]:
        """Return the folders that reported networks are written to, under the study's: `best` for the study's best;
        with several targets also `best-0.8` and so on, one for each that is met; of a front also `front/TRIAL` for
        each."""
        records = list(records)
        found = {} if (best := self.best(records)) is None else {BEST: best}
        if self.kind is GoalKind.TARGETS:
            found |= {f"best-{target!r}": best for target, best in self.best_at(records) if best is not None}
        if self.kind is GoalKind.FRONT:
            found |= {f"front/{record.name}": record for record in self.front(records)}
        return found

    def missing_above(self, records: Iterable[TrialRecord]) -> float | None:
        """Return the sparsity above which no completed trial lies, though the goal reaches further; None if the goal's
        whole range is covered, or if nothing is feasible yet."""
        sparsest = max((record.sparsity or 0.0 for record in records if self.feasible(record)), default=None)
        return None if sparsest is None or sparsest >= self.highest else sparsest

    @property
    def reference(self) -> Point:
        """Return the corner that the hypervolume is measured from: (lowest sparsity, baseline), for accuracy a baseline
        of 0. It never changes while a study runs, so that the hypervolume never falls."""
        return self.lowest, self.baseline

    @property
    def least_merit(self) -> float:
        """Return the baseline's merit."""
        return self.objective.merit(self.baseline)

    @property
    def scale(self) -> float:
        """Return what a large difference of the metric is: 1 of metrics in [0, 1], else the size of the baseline."""
        return 1.0 if self.objective.percent else abs(self.baseline) or 1.0

    def hypervolume(self, records: Iterable[TrialRecord]) -> float:
        """Return the area that the feasible trials dominate beyond `reference`. A front's area ends at its upper
        end."""
        points = points_of(record for record in records if self.feasible(record))
        if self.ceiling is not None:
            points = [(min(sparsity, self.ceiling), merit) for sparsity, merit in points]
        return hypervolume(points, (self.lowest, self.least_merit))

    def mean_value(self, area: float) -> float:
        """Return a front's hypervolume as a value of the metric: the mean, over the sparsities from its lower to its
        upper end, of the best value that is to be had at that sparsity or a higher one (the baseline where nothing
        is)."""
        return self.objective.value(self.least_merit + area / (self.highest - self.lowest))

    def score(self, front: Sequence[TrialRecord]) -> tuple[float, ...]:
        """Return what the goal judges, of a study with this feasible front: the best merit at each target (minus
        infinity where there is none), and a front's hypervolume. It is a gain if any of the numbers rises; none ever
        falls. (The merit counts for a front too: what lies exactly at its lower end has an area of zero.)"""
        area = (self.hypervolume(front),) if self.kind is GoalKind.FRONT else ()
        found = (best for _, best in self.best_at(front))
        return area + tuple(-math.inf if best is None else known_point(best)[1] for best in found)

    @property
    def option(self) -> str:
        """Return the goal as the value of its option; of a count or a size the sparsity that it comes to."""
        return f"{self.lowest!r}:{self.ceiling!r}" if self.ceiling is not None else ",".join(map(repr, self.targets))

    def __str__(self) -> str:
        if self.ceiling is not None:
            return f"front {self.lowest:.6g}:{self.ceiling:.6g}"
        if self.max_nonzero is not None:
            return f"at most {self.max_nonzero:,} nonzero weights, a sparsity of {self.lowest:.6g}"
        if self.max_bytes is not None:
            return f"at most {self.max_bytes:,} bytes, a sparsity of about {self.lowest:.6g} or more"
        numbers = ", ".join(f"{target:.6g}" for target in self.targets)
        return f"target{'s' if len(self.targets) > 1 else ''} {numbers}"


def at_targets(*targets: float) -> Goal:
    """Return the best network at each of these sparsities. Raises ValueError unless they rise within [0, 1)."""
    return Goal(targets)


def along_front(low: float, high: float) -> Goal:
    """Return the whole front between two sparsities. Raises ValueError unless they rise within [0, 1)."""
    return Goal((low,), ceiling=high)


def at_most(nonzero: int, weights: int) -> Goal:
    """Return the best network with at most `nonzero` nonzero ones among its `weights` prunable weights.

    Raises:
        ValueError: unless 1 <= nonzero <= weights.
    """
    if not 1 <= nonzero <= weights:
        raise ValueError(f"nonzero must lie in [1, {weights}], got {nonzero}")
    return Goal((sparsity_of(weights - nonzero, weights),), max_nonzero=nonzero)


def within_bytes(most: int, nonzero: int, weights: int) -> Goal:
    """Return the best network whose packed file has at most `most` bytes, for which about `nonzero` nonzero ones among
    its `weights` prunable weights are what fits.

    Raises:
        ValueError: unless 1 <= nonzero <= weights.
    """
    return replace(at_most(nonzero, weights), max_nonzero=None, max_bytes=most)


def sparsity_of(zeros: int, weights: int) -> float:
    """Return `sparsity_with`: the largest sparsity that so many zeros reach."""
    from tune_sparsity.sparsity.masks import (
        sparsity_with,  # here: it brings torch, and the terminal's display needs none
    )

    return sparsity_with(zeros, weights)
