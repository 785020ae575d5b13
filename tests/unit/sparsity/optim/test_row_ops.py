"""Powers, row products and the flat memory of rows, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tune_sparsity.sparsity.optim.row_ops import Layout, power_, row_dot

seeds = st.integers(0, 2**32 - 1)


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.floats(0.01, 51.0), seeds, st.sampled_from([torch.float32, torch.float64]))
def test_the_powers_equal_float64_powers_up_to_rounding(exponent: float, seed: int, dtype: torch.dtype) -> None:
    x = (1.3 * uniform(seed, 500)).to(dtype)
    power = power_(x.clone(), exponent).double()
    digits = 106 if dtype == torch.float32 else 1002
    exact = x.double() ** exponent
    # The power is computed as 2^e with |e| <= `digits`. The rounding error of e is up to `digits` eps, and becomes a
    # relative error of the power.
    rtol = (digits + 10) * torch.finfo(dtype).eps
    assert torch.allclose(power, exact.clamp_min(2.0**-digits), rtol=rtol, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [0.01, 1.5, 15.3, 51.0])
def test_powers_of_zeros_are_finite_and_powers_of_nan_are_nan(exponent: float, dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, 5e-324, 1e-45, float("nan"), 1.0], dtype=dtype)
    power = power_(x.clone(), exponent)
    assert (x[:3] * power[:3]).tolist() == pytest.approx([0.0] * 3, abs=1e-40)
    assert power[3].isnan()
    assert power[4] == 1.0


class Spy(TorchDispatchMode):
    """Records, for each operation, the smallest number in its first argument and the smallest number in its result."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, float] = {}
        self.gave: dict[str, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.given[name] = min(self.given.get(name, float("inf")), *args[0].flatten().tolist())
        out = func(*args, **(kwargs or {}))
        self.gave[name] = min(self.gave.get(name, float("inf")), *out.flatten().tolist())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [0.01, 3.5, 51.0])
def test_log2_inputs_and_exp2_outputs_are_never_zero_or_subnormal(exponent: float, dtype: torch.dtype) -> None:
    # The vectorised functions take 10 to 100 times longer for such numbers, and masked gradients contain many zeros.
    ordinary, least = uniform(0, 1000).to(dtype) * 0.5 + 0.5, torch.finfo(dtype).tiny
    masked = ordinary * (uniform(1, 1000) < 0.1)
    for x in (torch.zeros(1000, dtype=dtype), masked, 0.1 * ordinary, ordinary * least):
        with Spy() as spy:
            power_(x.clone(), exponent)
        # The time of clone, clamp_min_ and mul_ does not depend on the numbers.
        assert set(spy.gave) - {"clone", "clamp_min_", "mul_"} == {"log2_", "exp2_"}
        assert spy.given["log2_"] >= least
        assert spy.gave["exp2_"] >= least


@given(seeds, st.integers(1, 5), st.integers(1, 3000), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_the_inner_products_of_rows_equal_float64_products(seed: int, rows: int, n: int, dtype: torch.dtype) -> None:
    x, y = uniform(seed, rows, n).to(dtype), uniform(seed + 1, rows, n).to(dtype)
    out = torch.empty(rows, 1, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    row_dot(x, y, out)
    assert torch.allclose(out.double(), (x.double() * y.double()).sum(1, keepdim=True), rtol=2e-6)


def test_neighbouring_matrices_of_equal_fan_in_become_one_matrix() -> None:
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
