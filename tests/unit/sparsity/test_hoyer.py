"""Hoyer sparsity against closed forms, and its expected values against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tune_sparsity.sparsity.hoyer import (
    expected_below,
    expected_gamma,
    expected_gaussian_dual,
    expected_paper,
    expected_uniform,
    hoyer,
    suggest_p,
)


def simulated(magnitudes: np.ndarray) -> tuple[float, float]:
    """Return the mean Hoyer sparsity of the rows of `magnitudes`, from its definition, and the standard error of this
    mean."""
    n = magnitudes.shape[1]
    values = (math.sqrt(n) - magnitudes.sum(1) / np.sqrt((magnitudes**2).sum(1))) / (math.sqrt(n) - 1)
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


# ---- the measure


@pytest.mark.parametrize(
    ("row", "value"),
    [
        ([1.0, 1.0, 1.0, 1.0], 0.0),
        ([-3.0, 3.0, -3.0], 0.0),
        ([0.0, 0.0, -2.0, 0.0], 1.0),
        ([0.0, 0.0], 1.0),
        ([1.0, 1.0, 0.0, 0.0], 2 - math.sqrt(2)),  # (2 - 2/sqrt 2)/(2 - 1)
        ([3.0, 4.0, 0.0, 0.0], 2 - 7 / 5),
        ([3.0, 4.0], (math.sqrt(2) - 7 / 5) / (math.sqrt(2) - 1)),
    ],
)
def test_hoyer_sparsity_of_known_rows_equals_its_closed_form(row: list[float], value: float) -> None:
    assert hoyer(torch.tensor(row)).item() == pytest.approx(value, abs=1e-6)


def test_hoyer_has_a_value_for_each_row_of_a_tensor_of_three_dimensions() -> None:
    w = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0))
    assert hoyer(w).shape == (2, 3)
    expected, _ = simulated(w.abs().double().flatten(0, 1).numpy())
    assert hoyer(w).mean().item() == pytest.approx(expected, abs=1e-6)


@given(st.integers(0, 2**32), st.integers(2, 200), st.floats(-30, 30))
def test_hoyer_does_not_change_with_scale_and_lies_between_0_and_1(seed: int, n: int, exponent: float) -> None:
    w = torch.randn(4, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()
    value = hoyer(w)
    assert torch.allclose(hoyer((w.double() * 10.0**exponent).float()), value, atol=1e-5)
    assert torch.allclose(hoyer(-w.flip(-1)), value, atol=1e-5)
    assert ((value >= -1e-6) & (value <= 1 + 1e-6)).all()


def test_pruning_the_smallest_weights_raises_hoyer_sparsity() -> None:
    w = torch.randn(1000, generator=torch.Generator().manual_seed(0)).abs().sort().values
    series = [hoyer(w * (torch.arange(1000) >= k)).item() for k in range(0, 1000, 50)]
    assert series == sorted(series)
    assert series[-1] > series[0] + 0.4


def test_rows_of_one_weight_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 weights"):
        hoyer(torch.ones(3, 1))


# ---- the gamma hypothesis


@pytest.mark.parametrize(
    ("p", "n", "simulation", "limit"),
    [(1.0, 100, 0.319, 0.325), (1.0, 10_000, 0.296, 0.296), (2.0, 100, 0.223, 0.225), (2.0, 10_000, 0.204, 0.204)],
)
def test_the_expected_hoyer_sparsity_of_uniform_rows_agrees_with_simulation(
    p: float, n: int, simulation: float, limit: float
) -> None:
    assert expected_uniform(p, n) == pytest.approx(limit, abs=6e-4)
    w = np.random.default_rng(0).gamma(1 / p, size=(4000 if n == 100 else 400, n)) ** (1 / p)
    mean, error = simulated(w)
    assert mean == pytest.approx(simulation, abs=6e-4 + 4 * error)
    if n == 10_000:
        assert mean == pytest.approx(expected_uniform(p, n), abs=4e-4 + 4 * error)


def test_the_expected_hoyer_sparsity_of_uniform_rows_has_a_closed_form_limit() -> None:
    # Exponential magnitudes: E w / sqrt(E w^2) = 1/sqrt 2. Normal magnitudes: sqrt(2/pi). Both are limits for large n.
    n = 10**12
    assert expected_uniform(1.0, n) == pytest.approx(1 - math.sqrt(1 / 2), abs=1e-5)
    assert expected_uniform(2.0, n) == pytest.approx(1 - math.sqrt(2 / math.pi), abs=1e-5)
    assert expected_gamma(0.5, 2.0, n) == pytest.approx(1 - math.sqrt(2 / math.pi), abs=1e-5)


@pytest.mark.parametrize("p", [1.07, 1.2, 1.5, 2.0])
@pytest.mark.parametrize("n", [25, 512])
def test_the_papers_expected_hoyer_sparsity_agrees_with_simulation(p: float, n: int) -> None:
    w = np.sqrt(np.random.default_rng(1).gamma(0.4 * (p - 1), size=(20_000 if n == 25 else 2000, n)))
    mean, error = simulated(w)
    assert expected_paper(p, n) == pytest.approx(mean, abs=5 * error)
    assert 5 * error < 0.01


def test_the_papers_expected_hoyer_sparsity_does_not_overflow() -> None:
    values = [expected_paper(p, 1_000_000) for p in (1.02, 1.1, 1.5, 2.0)]
    assert values == sorted(values, reverse=True)
    assert all(0 < value < 1 for value in values)


@pytest.mark.parametrize("p", [1.5, 1.8, 2.0])
def test_the_expected_hoyer_sparsity_for_a_gaussian_dual_agrees_with_simulation(p: float) -> None:
    v = np.abs(np.random.default_rng(2).normal(size=(200, 20_000)))
    mean, error = simulated(v ** (1 / (p - 1)))
    assert expected_gaussian_dual(p, 20_000) == pytest.approx(mean, abs=2e-3 + 4 * error)
    assert error < 1e-3


@pytest.mark.parametrize("level", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("p", [1.25, 1.5, 2.0])
def test_the_fraction_of_weights_below_the_threshold_agrees_with_simulation(p: float, level: float) -> None:
    w = np.abs(np.random.default_rng(3).normal(size=1_000_000)) ** (1 / (p - 1))
    assert expected_below(p, level) == pytest.approx(float((w < level * w.mean()).mean()), abs=3e-3)


def test_the_fraction_of_weights_below_the_threshold_has_a_closed_form_for_p_2() -> None:
    # p = 2: w = v, E|w| = sqrt(2/pi), so the share is erf(.2 sqrt(2/pi)/sqrt 2) = erf(.2/sqrt pi).
    assert expected_below(2.0) == pytest.approx(math.erf(0.2 / math.sqrt(math.pi)), rel=1e-12)


# ---- the p that a target suggests


@pytest.mark.parametrize(("target", "p"), [(0.5, 1.338), (0.8, 1.152), (0.9, 1.104), (0.95, 1.078), (0.98, 1.059)])
def test_suggest_p_returns_known_values(target: float, p: float) -> None:
    assert suggest_p(target) == pytest.approx(p, abs=5e-4)


@given(st.floats(0.3, 0.99), st.floats(0.1, 0.5))
def test_suggest_p_inverts_the_fraction_of_weights_below_the_threshold(target: float, level: float) -> None:
    p = suggest_p(target, level=level)
    assert 1.02 <= p <= 2.0
    if 1.02 < p < 2.0:
        assert expected_below(p, level) == pytest.approx(target, abs=1e-9)


def test_suggest_p_falls_as_the_target_rises_and_stays_in_range() -> None:
    suggestions = [suggest_p(k / 1000) for k in range(1000)]
    assert suggestions == sorted(suggestions, reverse=True)
    assert suggestions[0] == 2.0
    assert suggest_p(1 - 1e-9) == 1.02


@pytest.mark.parametrize("target", [-0.1, 1.0, 1.5, math.nan])
def test_impossible_targets_are_refused(target: float) -> None:
    with pytest.raises(ValueError, match=r"target must lie in \[0, 1\)"):
        suggest_p(target)
