"""Test the benchmark that compares methods under equal conditions, and the one that compares RigL's first masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.baselines.fair import DENSE, OURS, cells, row, searches
from benchmarks.baselines.fan_in import fan_ins, masks
from benchmarks.training.single_process import completed
from tune_sparsity.experiments import find
from tune_sparsity.sparsity.distributions import layer_counts
from tune_sparsity.tuner.study.goal import at_targets


def test_an_in_process_study_trains_all_its_trials_to_the_target_sparsity() -> None:
    experiment = find("digits")
    asked = {"goal": at_targets(0.9), "trials": 3, "method": "gmp", "scheduler": "none", "space": "gmp+averaged"}
    trials = list(completed(experiment, experiment.load(None), seed=1, epochs=2, **asked))
    assert [trial.number for trial in trials] == [0, 1, 2]
    assert all(trial.training.finished and trial.training.sparse.sparsity() >= 0.9 for trial in trials)
    assert all(trial.metrics["sparsity"] >= 0.9 and "averaging" in trial.params for trial in trials)


def test_the_target_of_dense_is_0_and_each_method_searches_three_spaces() -> None:
    found = list(cells([OURS, "gmp", DENSE], [0.9, 0.98]))
    assert found == [(OURS, 0.9), ("gmp", 0.9), (OURS, 0.98), ("gmp", 0.98), (DENSE, 0.0)]
    spaces = [job["space"] for job in searches({}, "gmp", 0.9)]
    assert spaces == ["gmp", "gmp+averaged", "gmp+averaged+adamw"]


def test_a_row_has_the_exact_p_value_of_the_signed_rank_test() -> None:
    ours, other = [0.9 + 0.001 * k for k in range(8)], [0.89] * 8  # all eight are better: p is 2 / 2^8
    assert row("gmp", other, ours).endswith("| +1.35 | 0.008 |")
    assert row("gmp", ours, ours).endswith("| +0.00 | 1.000 |")


@settings(deadline=None)
@given(st.integers(2, 60), st.integers(2, 60), st.floats(0.05, 1.0), st.sampled_from([0.3, 1.0, 2.0]))
def test_log_normal_fan_ins_have_the_given_sum_and_do_not_exceed_the_inputs(
    neurons: int, inputs: int, part: float, variation: float
) -> None:
    total = max(neurons, round(part * neurons * inputs))
    found = fan_ins(neurons, inputs, total, variation)
    assert sum(found) == total
    assert 1 <= found[0] <= found[-1] <= inputs


def test_fan_ins_far_from_their_limits_have_the_given_relative_deviation() -> None:
    found = torch.tensor(fan_ins(2000, 100_000, 2_000_000, 0.5), dtype=torch.float64)
    assert float(found.std() / found.mean()) == pytest.approx(0.5, abs=0.01)


def test_masks_with_log_normal_fan_ins_keep_the_weight_count_of_each_layer() -> None:
    weights = [torch.zeros(30, 40), torch.zeros(20, 30), torch.zeros(10, 20)]
    drawn = masks(weights, 0.9, "erk", torch.Generator().manual_seed(0), variation=0.6)
    assert [int(mask.sum()) for mask in drawn] == layer_counts([weight.shape for weight in weights], 0.9, "erk")
