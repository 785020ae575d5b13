"""Compares methods fairly: the best trial of each method is trained again with other seeds, and measured on the test
data."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tune_sparsity.tuner.study.goal import Goal
from tune_sparsity.tuner.study.objective import ACCURACY, Objective
from tune_sparsity.tuner.study.pareto import best_trial
from tune_sparsity.tuner.study.trial import TrialRecord

# The number of the first training. A seed depends on such a number, and the numbers of the search's trials are smaller.
# So a trial is trained again with new seeds.
_FIRST_SEED = 1_000_000


@dataclass(frozen=True)
class Retrained:
    """The results of training one method's best feasible trial again, with other seeds."""

    method: str
    trial: str
    sparsity: float
    test_values: tuple[float, ...]  # the metric on the test data, for each training that did not fail; at least one
    target: float | None = None  # the trial is the method's best at this target; None if the goal has one target
    failed: int = 0  # the number of trainings that failed
    objective: Objective = ACCURACY

    @property
    def mean(self) -> float:
        return statistics.mean(self.test_values)

    @property
    def merits(self) -> tuple[float, ...]:
        return tuple(map(self.objective.merit, self.test_values))

    def to_dict(self) -> dict[str, Any]:
        return {
            **({} if self.target is None else {"target": self.target}),
            "method": self.method,
            "trial": self.trial,
            "sparsity": self.sparsity,
            self.objective.test: {
                "mean": self.mean,
                "min": min(self.test_values),
                "max": max(self.test_values),
                "seeds": list(self.test_values),
            },
            **({"failed": self.failed} if self.failed else {}),
        }


@dataclass(frozen=True)
class Retraining:
    """The results of training the best trials of all methods again."""

    methods: Sequence[Retrained] = ()
    problems: Sequence[str] = ()  # the reasons why a training or its measurement failed, one line each


@dataclass(frozen=True)
class Chosen:
    """A method's best feasible trial at a target. `target` is None if the goal has only one target."""

    target: float | None
    record: TrialRecord


def best_of_each(records: Iterable[TrialRecord], methods: Sequence[str], goal: Goal) -> list[Chosen]:
    """Return the best feasible trial of each method at each target. The trials are ordered by target, and then in the
    order of `methods`. A method without a feasible trial at a target has no entry for this target."""
    records = list(records)
    several = len(goal.targets) > 1
    return [
        Chosen(target if several else None, record)
        for target in goal.targets
        for method in methods
        if (record := best_trial([r for r in records if r.method == method], target)) is not None
    ]


def _trials(chosen: Iterable[Chosen]) -> list[TrialRecord]:
    """Return the chosen trials without duplicates. A trial can occur several times, because it may be the best at
    several targets."""
    return list({one.record.number: one.record for one in chosen}.values())


def jobs(chosen: Iterable[Chosen], seeds: int) -> list[dict[str, Any]]:
    """Return the trainings to run, as configs for `TrialTrainable`. Each trial has one training for each seed. In the
    list, the trainings of a trial follow each other."""
    return [
        {"number": _FIRST_SEED + seed, "method": record.method, "params": record.params}
        for record in _trials(chosen)
        for seed in range(seeds)
    ]


def summarise(chosen: Sequence[Chosen], values: Sequence[float | None], seeds: int) -> list[Retrained]:
    """Return the results of all trainings. They are ordered by target, and then by the mean of the test metric, the
    best first. If all trainings of a trial failed, this trial is left out.

    Args:
        chosen: the trials that were trained again.
        values: the metric on the test data, in the order of `jobs`; None for a training that failed.
        seeds: the number of trainings for each trial.
    """
    of_trial = {
        record.number: [value for value in values[i * seeds : (i + 1) * seeds] if value is not None]
        for i, record in enumerate(_trials(chosen))
    }
    found = [
        Retrained(
            record.method,
            record.name,
            record.sparsity or 0.0,
            tuple(got),
            one.target,
            failed=seeds - len(got),
            objective=record.objective,
        )
        for one in chosen
        if (got := of_trial[(record := one.record).number])
    ]
    return sorted(found, key=lambda one: (one.target or 0.0, -one.objective.merit(one.mean)))


def verdicts(retrained: Sequence[Retrained]) -> list[str]:
    """Return a line for each target that at least two methods reach. The line names the best method and says how far
    its mean test metric is ahead of the second-best method."""
    lines = []
    for target in dict.fromkeys(one.target for one in retrained):
        there = [one for one in retrained if one.target == target]
        if len(there) > 1:
            at = "" if target is None else f"at {target:g} "
            lines.append(at + _verdict(*there[:2]))
    return lines


def _verdict(first: Retrained, second: Retrained) -> str:
    ahead = first.objective.difference(abs(first.mean - second.mean))
    overlap = min(first.merits) <= max(second.merits)
    certain = "within the spread of their seeds" if overlap else "beyond the spread of their seeds"
    return f"{first.method} is {ahead} ahead of {second.method}, {certain}"
