"""Which method wins, and by how much: each method's best trial trained again from fresh seeds, judged on test data."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tune_sparsity.tuner.study.goal import Goal
from tune_sparsity.tuner.study.objective import ACCURACY, Objective
from tune_sparsity.tuner.study.pareto import best_trial
from tune_sparsity.tuner.study.trial import TrialRecord

_FIRST_SEED = 1_000_000  # as a trial's number: beyond every trial of a search, so that no seed is used twice


@dataclass(frozen=True)
class Retrained:
    """A method's best feasible trial, trained again. The metric's values are on the test data, one for each seed under
    which the training did not fail; at least one."""

    method: str
    trial: str
    sparsity: float
    test_values: tuple[float, ...]
    target: float | None = None  # at which it is the method's best, where the goal has several
    failed: int = 0  # seeds under which the training failed
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
    """What training again gave."""

    methods: Sequence[Retrained] = ()
    problems: Sequence[str] = ()  # a line for each reason why a training or its measuring failed


@dataclass(frozen=True)
class Chosen:
    """A method's best feasible trial at a target; `target` is None where the goal has only one."""

    target: float | None
    record: TrialRecord


def best_of_each(records: Iterable[TrialRecord], methods: Sequence[str], goal: Goal) -> list[Chosen]:
    """Return the best trial of every method that has a feasible one, in the order of `methods`, for every target in
    turn."""
    records = list(records)
    several = len(goal.targets) > 1
    return [
        Chosen(target if several else None, record)
        for target in goal.targets
        for method in methods
        if (record := best_trial([r for r in records if r.method == method], target)) is not None
    ]


def _trials(chosen: Iterable[Chosen]) -> list[TrialRecord]:
    """Return every trial once: it may be the best at several targets."""
    return list({one.record.number: one.record for one in chosen}.values())


def jobs(chosen: Iterable[Chosen], seeds: int) -> list[dict[str, Any]]:
    """Return the trainings to run: each trial's method and params under `seeds` seed numbers, trial by trial."""
    return [
        {"number": _FIRST_SEED + seed, "method": record.method, "params": record.params}
        for record in _trials(chosen)
        for seed in range(seeds)
    ]


def summarise(chosen: Sequence[Chosen], values: Sequence[float | None], seeds: int) -> list[Retrained]:
    """Return the metric's values, in the order of `jobs` and None for a training that failed, by target and method; a
    target's best mean first. A method whose trainings all failed is left out."""
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
    """Return which method wins and by how much, in one line for each target that more than one method meets."""
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
