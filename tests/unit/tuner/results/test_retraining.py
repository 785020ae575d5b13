"""Tests --final-seeds: which trials are trained again, and how the results are averaged."""

from __future__ import annotations

import pytest

from tests.helpers.trials import trial
from tune_sparsity.tuner.reports.summary import retrained_line
from tune_sparsity.tuner.results.retraining import best_of_each, jobs, summarise, verdicts
from tune_sparsity.tuner.study.goal import along_front, at_targets

RECORDS = [
    trial(0, 0.9, 0.95, method="lpss"),
    trial(1, 0.8, 0.97, method="lpss"),
    trial(2, 0.92, 0.94, method="gmp"),
    trial(3, 0.5, 0.99, method="gmp"),
]
METHODS = ["lpss", "gmp", "rigl"]


def test_the_best_trial_of_each_method_at_each_target_is_retrained() -> None:
    chosen = best_of_each(RECORDS, METHODS, at_targets(0.8, 0.9))
    assert [(one.target, one.record.number) for one in chosen] == [(0.8, 1), (0.8, 2), (0.9, 0), (0.9, 2)]
    for goal in (at_targets(0.9), along_front(0.9, 0.95)):
        assert [(one.target, one.record.number) for one in best_of_each(RECORDS, METHODS, goal)] == [
            (None, 0),
            (None, 2),
        ]


def test_a_trial_that_is_the_best_at_two_targets_is_trained_once() -> None:
    chosen = best_of_each(RECORDS, METHODS, at_targets(0.8, 0.9))
    trained = jobs(chosen, 2)
    assert len(trained) == 3 * 2
    assert {job["number"] for job in trained} == {1_000_000, 1_000_001}
    found = summarise(chosen, [0.95, 0.96, 0.93, 0.93, 0.91, 0.92], 2)
    assert [(one.target, one.trial, one.test_values) for one in found] == [
        (0.8, "t0001", (0.95, 0.96)),
        (0.8, "t0002", (0.93, 0.93)),
        (0.9, "t0002", (0.93, 0.93)),
        (0.9, "t0000", (0.91, 0.92)),
    ]
    assert verdicts(found) == [
        "at 0.8 lpss is 2.50 points ahead of gmp, beyond the spread of their seeds",
        "at 0.9 gmp is 1.50 points ahead of lpss, beyond the spread of their seeds",
    ]
    assert found[0].to_dict()["target"] == 0.8


def test_a_training_that_failed_is_counted_and_not_averaged() -> None:
    chosen = best_of_each(RECORDS, METHODS, at_targets(0.9))
    one, other = summarise(chosen, [0.9, None, None, 0.8, 0.7, None], 3)
    assert (one.mean, one.failed) == (0.9, 2)
    assert (other.test_values, other.failed) == ((0.8, 0.7), 1)
    assert other.mean == pytest.approx(0.75)
    assert other.to_dict()["failed"] == 1
    assert "target" not in one.to_dict()
    assert retrained_line(other).endswith("2 seeds, 1 more failed)")
    assert [left.method for left in summarise(chosen, [None, None, 0.8, 0.7], 2)] == ["gmp"]
    assert verdicts(summarise(chosen, [None, None, 0.8, 0.7], 2)) == []
