"""Powers, row products and the flat memory of rows, against float64."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tune_sparsity.sparsity.optim.row_ops import Layout, power_, row_dot

seeds = st.integers(0, 2**32 - 1)


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.floats(0.01, 51.0), seeds, st.sampled_from([torch.float32, torch.float64]))
def test_powers(exponent: float, seed: int, dtype: torch.dtype) -> None:
    x = (1.3 * uniform(seed, 500)).to(dtype)
    power = power_(x.clone(), exponent).double()
    digits = 106 if dtype == torch.float32 else 1002
    exact = x.double() ** exponent
    # The exponent of 2, of magnitude up to `digits`, is rounded: so many roundings of the result.
    rtol = (digits + 10) * torch.finfo(dtype).eps
    assert torch.allclose(power, exact.clamp_min(2.0**-digits), rtol=rtol, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [0.01, 1.5, 15.3, 51.0])
def test_powers_of_zeros_and_of_what_is_no_number(exponent: float, dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, 5e-324, 1e-45, float("nan"), 1.0], dtype=dtype)
    power = power_(x.clone(), exponent)
    assert (x[:3] * power[:3]).tolist() == pytest.approx([0.0] * 3, abs=1e-40)
    assert power[3].isnan()
    assert power[4] == 1.0


def test_zeros_and_underflow_cost_no_more_than_other_numbers() -> None:
    # The functions beneath take 10 to 100 times as long for them, and masked gradients are full of zeros.
    def seconds(x: Tensor, exponent: float) -> float:
        times = []
        for _ in range(15):
            copy = x.clone()
            start = time.thread_time()
            power_(copy, exponent)
            times.append(time.thread_time() - start)
        return min(times)

    ordinary = uniform(0, 100_000).float() * 0.5 + 0.5
    base = seconds(ordinary, 3.5)
    assert seconds(torch.zeros(100_000), 3.5) < 4 * base
    assert seconds(ordinary * (uniform(1, 100_000) < 0.1), 3.5) < 4 * base
    assert seconds(0.1 * ordinary, 51.0) < 4 * base


@given(seeds, st.integers(1, 5), st.integers(1, 3000), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_row_products(seed: int, rows: int, n: int, dtype: torch.dtype) -> None:
    x, y = uniform(seed, rows, n).to(dtype), uniform(seed + 1, rows, n).to(dtype)
    out = torch.empty(rows, 1, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    row_dot(x, y, out)
    assert torch.allclose(out.double(), (x.double() * y.double()).sum(1, keepdim=True), rtol=2e-6)


def test_rows_of_equal_fan_in_are_one_matrix() -> None:
    layout = Layout([(2, 3), (4, 3), (1, 5)])
    rows = layout.entries(torch.arange(23.0))
    assert [tuple(part.shape) for part in rows.parts] == [(2, 3), (4, 3), (1, 5)]
    assert [tuple(run.shape) for run in rows.runs] == [(6, 3), (1, 5)]
    assert rows.parts[1][0].tolist() == rows.runs[0][2].tolist() == [6.0, 7.0, 8.0]
    rows.flat.zero_()
    assert not rows.parts[2].any()
    each = layout.one_a_row(torch.arange(7.0))
    assert [part.flatten().tolist() for part in each.parts] == [[0.0, 1.0], [2.0, 3.0, 4.0, 5.0], [6.0]]
    assert [run.flatten().tolist() for run in each.runs] == [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [6.0]]
