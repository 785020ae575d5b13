from __future__ import annotations

import math

import numpy as np
import pytest

from tune_sparsity.tuner.study.estimate import shrunk


def test_the_estimate_is_the_closed_form() -> None:
    values, examples = [0.9, 0.8, 0.8, 0.7, 0.8], 400
    variance, spread = 0.8 * 0.2 / 400, 2 * 0.1**2
    assert shrunk(0.9, values, examples).value == pytest.approx(0.8 + (1 - 2 * variance / spread) * 0.1, rel=1e-12)


@pytest.mark.parametrize("values", [[0.9], [0.9, 0.5, 0.7], [0.9] * 6])
def test_few_or_equal_values_are_not_changed(values: list[float]) -> None:
    assert shrunk(0.9, values, 50).value == pytest.approx(0.9, rel=1e-12)


def test_values_that_differ_by_less_than_their_error_have_their_mean_as_estimate() -> None:
    assert shrunk(0.99, [0.99, 0.98, 0.97, 0.98, 0.98], 180).value == pytest.approx(0.98, rel=1e-12)


def test_with_many_examples_the_estimate_equals_the_measured_value() -> None:
    value, error = shrunk(0.9, [0.9, 0.8, 0.7, 0.6], 10**9)
    assert value == pytest.approx(0.9, abs=1e-7)
    assert error == pytest.approx(math.sqrt(0.09 / 10**9), rel=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_standard_error_is_never_zero(value: float) -> None:
    assert shrunk(value, [value] * 8, 180).error > 0.005


def test_the_best_of_alike_networks_is_estimated_with_less_bias_and_less_error() -> None:
    generator, truth, examples = np.random.default_rng(0), 0.95, 180
    drawn = generator.binomial(examples, truth, size=(2000, 8)) / examples
    best = drawn.max(axis=1)
    estimates = np.array([shrunk(top, row.tolist(), examples).value for top, row in zip(best, drawn, strict=True)])
    assert abs(estimates.mean() - truth) < 0.5 * abs(best.mean() - truth)
    assert np.square(estimates - truth).mean() < 0.5 * np.square(best - truth).mean()
