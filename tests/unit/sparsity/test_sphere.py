"""The sphere's geometry, against closed forms in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.problems import normal
from tune_sparsity.sparsity.sphere import (
    P_MAX,
    P_MIN,
    check_p,
    dual_exponent,
    from_dual,
    project,
    row_norm,
    stationary_dual,
    to_dual,
    unit,
)

exponents = st.floats(P_MIN, P_MAX)
seeds = st.integers(0, 2**32 - 1)
fan_ins = st.integers(1, 300)


def reference_norm(x: Tensor, order: float) -> Tensor:
    """Return ||x||_order, computed in float64 with logsumexp. No power of x is computed, so none overflows."""
    return (torch.logsumexp(order * x.double().abs().log(), -1, keepdim=True) / order).exp()


def test_dual_exponent_is_conjugate() -> None:
    assert dual_exponent(2.0) == 2.0
    assert dual_exponent(1.5) == pytest.approx(3.0)
    assert dual_exponent(1.07) == pytest.approx(15.285714)
    assert dual_exponent(P_MIN) == pytest.approx(51.0)
    assert torch.allclose(dual_exponent(torch.tensor([1.25, 2.0])), torch.tensor([5.0, 2.0]))


@pytest.mark.parametrize("p", [1.0, 1.0199, 2.0001, 0.0, -1.5, math.inf, math.nan])
def test_exponents_out_of_range_are_refused(p: float) -> None:
    with pytest.raises(ValueError, match=r"p must lie in \[1\.02, 2\]"):
        check_p(p)
    with pytest.raises(ValueError, match=r"p must lie in \[1\.02, 2\]"):
        check_p(torch.tensor([1.5, p]))


def test_exponents_in_range_are_returned_unchanged() -> None:
    assert check_p(P_MIN) == P_MIN
    assert check_p(P_MAX) == P_MAX
    several = torch.tensor([1.02, 2.0], dtype=torch.float64)
    assert check_p(several) is several


@given(exponents, seeds, fan_ins)
def test_weights_are_restored_from_their_dual_image(p: float, seed: int, n: int) -> None:
    w = normal(seed, 3, n)
    assert torch.allclose(from_dual(to_dual(w, p), p), w, rtol=1e-12, atol=0)


@given(st.floats(1.1, P_MAX), seeds)
def test_weights_are_restored_from_their_dual_image_in_float32(p: float, seed: int) -> None:
    w = normal(seed, 3, 50, dtype=torch.float32)
    # w = |v|^(1/(p-1)), so a relative error of v is 1/(p-1) times as large in w.
    assert torch.allclose(from_dual(to_dual(w, p), p), w, rtol=8 * 1.2e-7 / (p - 1), atol=0)


@given(exponents, seeds, fan_ins)
def test_dual_image_lies_on_the_dual_sphere(p: float, seed: int, n: int) -> None:
    w = normal(seed, 2, n)
    w = w / reference_norm(w, p)
    v = to_dual(w, p)
    assert torch.equal(v.sign(), w.sign())
    assert torch.allclose(reference_norm(v, p / (p - 1)), torch.ones(2, 1, dtype=torch.float64), rtol=1e-12)


def test_the_dual_image_for_p_1_5_equals_its_closed_form() -> None:
    v = to_dual(torch.tensor([4.0, -9.0, 0.0]), 1.5)
    assert torch.allclose(v, torch.tensor([2.0, -3.0, 0.0]))
    assert torch.allclose(from_dual(torch.tensor([2.0, -3.0, 0.0]), 1.5), torch.tensor([4.0, -9.0, 0.0]))


def test_the_norm_of_known_rows_equals_its_closed_form() -> None:
    assert row_norm(torch.tensor([3.0, -4.0]), 2.0).item() == pytest.approx(5.0)
    assert row_norm(torch.tensor([[1.0, -2.0, 2.0]]), 3.0).item() == pytest.approx(17 ** (1 / 3))
    assert row_norm(torch.full((7,), -2.0), 51.0).item() == pytest.approx(2 * 7 ** (1 / 51))


@given(st.floats(2.0, 51.0), st.floats(-30, 30), seeds, fan_ins)
@example(15.2857, -4.0, 0, 300)  # where a plain float32 norm is 344 times too small
@example(15.2857, 3.0, 0, 300)  # where a plain float32 norm overflows
def test_the_norm_in_float32_neither_underflows_nor_overflows(order: float, exponent: float, seed: int, n: int) -> None:
    x = (normal(seed, 3, n) * 10.0**exponent).float()
    assert torch.allclose(row_norm(x, order).double(), reference_norm(x, order), rtol=3e-6, atol=0)


@given(exponents, st.floats(-30, 30), seeds, fan_ins)
@example(1.07, -4.0, 0, 300)
@example(1.07, 3.0, 0, 300)
def test_normalised_rows_in_float32_have_norm_one_at_any_magnitude(
    p: float, exponent: float, seed: int, n: int
) -> None:
    x = (normal(seed, 3, n) * 10.0**exponent).float()
    one = torch.ones(3, 1, dtype=torch.float64)
    q = p / (p - 1)
    assert torch.allclose(reference_norm(unit(x, q), q), one, atol=1e-5)
    assert torch.allclose(reference_norm(project(x, p), p), one, atol=1e-5)
    # The direction stays: every entry is the same multiple of its original.
    ratio = project(x, p).double() / x.double()
    assert torch.allclose(ratio, ratio.amax(-1, keepdim=True).expand_as(ratio), rtol=1e-5)


@pytest.mark.parametrize("p", [P_MIN, 1.07, 1.5, 2.0])
def test_rows_of_zeros_stay_zero_and_finite(p: float) -> None:
    x = torch.tensor([[0.0, 0.0, 0.0], [0.0, -2.0, 0.0]])
    assert row_norm(x, p).tolist() == [[0.0], [2.0]]
    for image in (unit(x, p), project(x, p), to_dual(project(x, p), p), from_dual(project(x, p), p)):
        assert image.tolist() == [[0.0, 0.0, 0.0], [0.0, -1.0, 0.0]]
    assert stationary_dual(x, p).tolist() == [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


@given(exponents, seeds, st.integers(2, 100))
def test_the_stationary_point_minimises_a_linear_loss_on_the_sphere(p: float, seed: int, n: int) -> None:
    g = normal(seed, n)
    w = from_dual(stationary_dual(g, p), p)
    best = -reference_norm(g, p / (p - 1)).item()
    assert reference_norm(w, p).item() == pytest.approx(1.0, abs=1e-10)
    assert (g * w).sum().item() == pytest.approx(best, rel=1e-10)  # Hoelder's inequality with equality
    others = normal(seed + 1, 200, n)
    near = w + 0.01 * normal(seed + 2, 200, n)
    for points in (others / reference_norm(others, p), near / reference_norm(near, p)):
        assert ((points * g).sum(-1) >= best * (1 + 1e-10)).all()


@given(st.lists(exponents, min_size=6, max_size=6), seeds)
def test_an_exponent_for_each_row_gives_the_same_as_a_loop_over_the_rows(each: list[float], seed: int) -> None:
    p = torch.tensor(each, dtype=torch.float64).view(2, 3)
    x = normal(seed, 2, 3, 11)
    functions = (row_norm, unit, to_dual, from_dual, project, stationary_dual)
    for function in functions:
        together = function(x, p)
        for i in range(2):
            for j in range(3):
                alone = function(x[i, j], p[i, j].item())
                assert torch.allclose(together[i, j], alone, rtol=1e-12, atol=1e-300), function.__name__


def test_each_network_of_a_batch_can_have_its_own_exponent() -> None:
    p = torch.tensor([1.2, 1.7], dtype=torch.float64).view(2, 1)  # two networks of 4 neurons of 5 weights
    x = normal(0, 2, 4, 5)
    assert torch.allclose(project(x, p)[1], project(x[1], 1.7), rtol=1e-12)


def test_small_entries_of_a_dual_image_underflow_to_zero_weights() -> None:
    v = torch.tensor([6.8e-4, 9e-4, 1.0])
    w = from_dual(v, 1.07)
    assert w[0] == 0.0
    assert w[1:].min() > 0.0
