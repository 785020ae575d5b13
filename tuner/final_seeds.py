"""Which method wins, and by how much: each method's best trial trained again from fresh seeds, judged on test data."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.pareto import best_trial
from tuner.records import TrialRecord

_FIRST_SEED = 1_000_000  # as a trial's number: beyond every trial of a search, so that no seed is used twice


@dataclass(frozen=True)
class Retrained:
    """A method's best feasible trial, trained again. Accuracies are on the test data, one for each seed."""

    method: str
    trial: str
    sparsity: float
    test_accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.test_accuracies)

    def to_dict(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "trial": self.trial,
            "sparsity": self.sparsity,
            "test_accuracy": {
                "mean": self.mean,
                "min": min(self.test_accuracies),
                "max": max(self.test_accuracies),
                "seeds": list(self.test_accuracies),
            },
        }


def best_of_each(records: Iterable[TrialRecord], methods: Sequence[str], target: float) -> list[TrialRecord]:
    """The best feasible trial of every method that has one, in the order of `methods`."""
    records = list(records)
    found = [best_trial([r for r in records if r.method == method], target) for method in methods]
    return [record for record in found if record is not None]


def jobs(best: Iterable[TrialRecord], seeds: int) -> list[dict[str, Any]]:
    """The trainings to run: each record's method and params under `seeds` seed numbers, record by record."""
    return [
        {"number": _FIRST_SEED + seed, "method": record.method, "params": record.params}
        for record in best
        for seed in range(seeds)
    ]


def summarise(best: Sequence[TrialRecord], accuracies: Sequence[float], seeds: int) -> list[Retrained]:
    """The accuracies, in the order of `jobs`, by method; the best mean first."""
    found = [
        Retrained(record.method, record.name, record.sparsity or 0.0, tuple(accuracies[i * seeds : (i + 1) * seeds]))
        for i, record in enumerate(best)
    ]
    return sorted(found, key=lambda one: -one.mean)


def verdict(retrained: Sequence[Retrained]) -> str:
    """Which method wins at the target and by how much, in one line; empty for fewer than two."""
    if len(retrained) < 2:
        return ""
    first, second = retrained[:2]
    points = 100 * (first.mean - second.mean)
    overlap = min(first.test_accuracies) <= max(second.test_accuracies)
    certain = "within the spread of their seeds" if overlap else "beyond the spread of their seeds"
    return f"{first.method} is {points:.2f} points ahead of {second.method}, {certain}"
