"""The comparison of methods with the same means."""

from __future__ import annotations

from benchmarks.training.fair import DENSE, OURS, cells, row, searches
from benchmarks.training.single_process import completed
from tune_sparsity.experiments import find


def test_a_study_in_this_process_trains_the_trials_of_a_method() -> None:
    experiment = find("digits")
    asked = {"target": 0.9, "trials": 3, "method": "gmp", "scheduler": "none", "space": "gmp+averaged"}
    trials = list(completed(experiment, experiment.load(None), seed=1, epochs=2, **asked))
    assert [trial.number for trial in trials] == [0, 1, 2]
    assert all(trial.training.finished and trial.training.sparse.sparsity() >= 0.9 for trial in trials)
    assert all(trial.metrics["sparsity"] >= 0.9 and "averaging" in trial.params for trial in trials)


def test_each_method_has_a_search_with_each_optimizer_and_the_dense_network_has_no_target() -> None:
    found = list(cells([OURS, "gmp", DENSE], [0.9, 0.98]))
    assert found == [(OURS, 0.9), ("gmp", 0.9), (OURS, 0.98), ("gmp", 0.98), (DENSE, 0.0)]
    spaces = [job["space"] for job in searches({}, "gmp", 0.9)]
    assert spaces == ["gmp+averaged", "gmp+averaged+adamw"]


def test_a_row_has_the_exact_p_of_the_signed_ranks() -> None:
    ours, other = [0.9 + 0.001 * k for k in range(8)], [0.89] * 8  # all eight are better: p is 2 / 2^8
    assert row("gmp", other, ours).endswith("| +1.35 | 0.008 |")
    assert row("gmp", ours, ours).endswith("| +0.00 | 1.000 |")
