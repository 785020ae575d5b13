"""Compiled float32 steps are near dense float64 steps, whether they update all weights or only the active weights."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.examples import examples
from tests.helpers.problems import tensors
from tune_sparsity.sparsity.optim import fused
from tune_sparsity.sparsity.optim.foreach import ForeachStep
from tune_sparsity.sparsity.optim.fused import FusedStep
from tune_sparsity.sparsity.optim.lpsgd import LpSGD

pytestmark = pytest.mark.skipif(
    fused.kernel is None, reason="no compiled step: apt-get install gcc libc6-dev, then make compile"
)

seeds = st.integers(0, 2**32 - 1)


SHAPES = [(6, 40), (5, 40), (4, 3, 2, 2)]


def masks(seed: int, density: float, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return random masks. A row of the first mask is fully masked, and a row of the second mask is fully active."""
    drawn = [(noise.abs() < density).to(dtype) for noise in tensors(seed, *SHAPES)]
    drawn[0][2], drawn[1][1] = 0, 1
    return drawn


def make(seed: int, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[list[Tensor], LpSGD]:
    params = [torch.nn.Parameter(x) for x in tensors(seed, *SHAPES, dtype=dtype)]
    return params, LpSGD(params, lr=0.1, **options)


def step(params: list[Tensor], optimizer: LpSGD, seed: int, on: list[Tensor] | None = None) -> None:
    for i, (param, grad) in enumerate(zip(params, tensors(seed, *SHAPES), strict=True)):
        param.grad = grad.to(param.dtype) if on is None else grad.to(param.dtype) * on[i]
    optimizer.step()


def blocks(optimizer: LpSGD) -> list[type]:
    return [type(block) for _, found in optimizer._blocks.values() for block in found]


@examples(40)
@given(seeds, st.floats(1.05, 2.0) | st.just(2.0), st.sampled_from([0.0, 0.9]), st.booleans(), st.booleans())
def test_compiled_masked_steps_equal_float64_steps_with_masked_gradients(
    seed: int, p: float, momentum: float, nesterov: bool, gain: bool
) -> None:
    options = {"p": p, "momentum": momentum, "nesterov": nesterov, "gain": gain}
    params, optimizer = make(seed, **options)
    others, plain = make(seed, torch.float64, **options)
    step(params, optimizer, seed + 1)
    step(others, plain, seed + 1)
    for round_, density in enumerate((0.3, 0.1, 1.5, 0.2)):
        on = masks(seed + 2 + round_, density, torch.float64)
        optimizer.set_masks({param: mask.float() for param, mask in zip(params, on, strict=True)})
        with torch.no_grad():
            for other, mask in zip(others, on, strict=True):
                other.mul_(mask)
                if "momentum_buffer" in plain.state[other]:
                    plain.state[other]["momentum_buffer"].mul_(mask.flatten(1))
        for k in range(5):
            step(params, optimizer, seed + 10 + k)
            step(others, plain, seed + 10 + k, on)
            with torch.no_grad():
                for other, mask in zip(others, on, strict=True):
                    other.mul_(mask)
        assert blocks(optimizer) == [FusedStep] * 3
        assert blocks(plain) == [ForeachStep]
        for param, other in zip(params, others, strict=True):
            close(param, other)
            assert set(plain.state[other]) == set(optimizer.state[param]) - {"latent"}
            for key, value in plain.state[other].items():
                close(optimizer.state[param][key], value)


def close(single: Tensor, double: Tensor) -> None:
    """Check that two tensors are equal except for rounding errors, which a large exponent increases."""
    assert torch.allclose(single.double(), double, rtol=1e-3, atol=1e-5), (single.double() - double).abs().max()


def test_reading_v_changes_no_step_and_a_new_v_takes_effect() -> None:
    read, quiet = make(0, p=1.4, gain=True), make(0, p=1.4, gain=True)
    for params, optimizer in (read, quiet):
        optimizer.set_masks(dict(zip(params, masks(1, 0.2), strict=True)))
    for k in range(6):
        for params, optimizer in (read, quiet):
            step(params, optimizer, k)
        v = read[1].state[read[0][0]]["v"]
        assert torch.allclose((v.abs() ** 3.5).sum(1), torch.ones(6))
    assert all(torch.equal(a, b) for a, b in zip(read[0], quiet[0], strict=True))
    read[1].state[read[0][0]]["v"].neg_()
    before = read[0][0].clone()
    read[1].param_groups[0]["lr"] = 0.0
    step(*read, 7)
    assert torch.equal(read[0][0].sign(), -before.sign())


@pytest.mark.parametrize("how", ["deepcopy", "file"])
def test_copied_and_loaded_optimizers_continue_bit_for_bit(how: str) -> None:
    params, optimizer = make(0, p=1.3, gain=True)
    on = masks(1, 0.2)
    optimizer.set_masks(dict(zip(params, on, strict=True)))
    for k in range(4):
        step(params, optimizer, k)
    if how == "deepcopy":
        others, other = copy.deepcopy((params, optimizer))
    else:
        file = io.BytesIO()
        torch.save({"params": params, "optimizer": optimizer.state_dict()}, file)
        saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        others, other = make(9, p=1.3, gain=True)
        with torch.no_grad():
            for param, value in zip(others, saved["params"], strict=True):
                param.copy_(value)
        other.load_state_dict(saved["optimizer"])
        other.set_masks(dict(zip(others, on, strict=True)), as_loaded=True)
    for k in range(4, 8):
        step(params, optimizer, k)
        step(others, other, k)
    assert all("latent" in other.state[param] for param in others[:2])
    assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))


def test_a_nan_gradient_is_named_and_its_parameter_does_not_change() -> None:
    params, optimizer = make(0, p=1.4)
    optimizer.set_masks(dict(zip(params, masks(1, 0.2), strict=True)))
    step(params, optimizer, 0)
    before, v = params[1].clone(), optimizer.state[params[1]]["v"].clone()
    for param, grad in zip(params, tensors(1, *SHAPES), strict=True):
        param.grad = grad.fill_(torch.nan) if param is params[1] else grad
    with pytest.raises(FloatingPointError, match=r"shape \(5, 40\)"):
        optimizer.step()
    assert torch.equal(params[1], before)
    assert torch.equal(optimizer.state[params[1]]["v"], v)


def test_a_changed_exponent_p_puts_rows_of_v_on_the_new_sphere() -> None:
    params, optimizer = make(0, p=1.4)
    optimizer.set_masks(dict(zip(params, masks(1, 0.2), strict=True)))
    step(params, optimizer, 0)
    optimizer.param_groups[0]["p"] = 1.6
    step(params, optimizer, 1)
    v = optimizer.state[params[0]]["v"]
    assert torch.allclose((v.abs() ** (1.6 / 0.6)).sum(1), torch.ones(6))


def test_without_a_compiler_the_step_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, plain = make(0, p=1.4, gain=True, weight_decay=1e-3), make(0, p=1.4, gain=True, weight_decay=1e-3)
    on = masks(1, 0.2)
    for params, optimizer in (compiled, plain):
        optimizer.set_masks(dict(zip(params, on, strict=True)))
        for k in range(5):
            step(params, optimizer, k)
        monkeypatch.setattr(fused, "kernel", None)
    assert (blocks(compiled[1]), blocks(plain[1])) == ([FusedStep] * 3, [ForeachStep])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(compiled[0], plain[0], strict=True))


@given(seeds, st.floats(1.05, 2.0), st.sampled_from([1e-30, 1e-3, 1.0, 1e30]))
def test_float32_steps_are_near_float64_steps_over_sixty_powers_of_ten(seed: int, p: float, scale: float) -> None:
    """The gradients of different cases range from about 1e-30 to 1e30. The entries of one v range over many powers of
    ten."""
    drawn = tensors(seed, (8, 50), (8, 50), (8, 50), dtype=torch.float64)
    v, grad = drawn[0] * 10.0 ** (-5 * drawn[2].abs()), scale * drawn[1] * 10.0 ** (-3 * drawn[2].abs())
    ends = []
    for dtype in (torch.float32, torch.float64):
        param = torch.nn.Parameter(torch.ones(8, 50, dtype=dtype))
        optimizer = LpSGD([param], lr=0.1, p=p, momentum=0.0, nesterov=False)
        optimizer.state[param]["v"].copy_(v)
        param.grad = grad.to(dtype)
        optimizer.step()
        ends.append(param.detach().double())
    assert torch.allclose(*ends, rtol=2e-3, atol=1e-7)


def test_a_fully_masked_parameter_stays_zero_and_keeps_v() -> None:
    params, optimizer = make(0, p=1.4, gain=True)
    none = [torch.zeros_like(param) for param in params]
    optimizer.set_masks(dict(zip(params, none, strict=True)))
    before = [optimizer.state[param]["v"].clone() for param in params]
    for k in range(3):
        step(params, optimizer, k)
    for param, v in zip(params, before, strict=True):
        assert not param.any()
        assert torch.allclose(optimizer.state[param]["v"], v, rtol=1e-5)  # v still has the norm 1


def test_gradient_layouts_and_mask_types_do_not_change_a_step() -> None:
    plain, other = torch.nn.Parameter(torch.ones(4, 3, 2, 2)), torch.nn.Parameter(torch.ones(4, 3, 2, 2))
    (grad,), (on,) = tensors(0, (4, 3, 2, 2)), tensors(1, (4, 3, 2, 2))
    for param, mask in ((plain, (on > 0.5).float()), (other, on > 0.5)):
        optimizer = LpSGD([param], lr=0.1, p=1.5)
        optimizer.set_masks({param: mask})
        param.grad = grad if param is plain else grad.contiguous(memory_format=torch.channels_last)
        optimizer.step()
    assert torch.equal(plain, other)


def test_layouts_and_types_without_compiled_code_use_steps_of_torch() -> None:
    columns = torch.nn.Parameter(torch.ones(3, 4).t())
    half, double = torch.nn.Parameter(torch.ones(4, 3).bfloat16()), torch.nn.Parameter(torch.ones(4, 3).double())
    for param in (columns, half, double):
        optimizer = LpSGD([param], p=1.5)
        param.grad = torch.ones_like(param)
        optimizer.step()
        assert blocks(optimizer) == [ForeachStep]


@pytest.mark.parametrize("shape", [(1, 2), (17, 16), (40, 300), (33, 129), (3, 5000)])
@pytest.mark.parametrize("density", [2.0, 0.5, 0.1])
def test_compiled_steps_of_rows_of_many_shapes_are_near_float64_steps(shape: tuple[int, int], density: float) -> None:
    """The code updates rows in blocks. The shapes give an incomplete last block, rows shorter than a register of the
    processor, and rows that are long enough to form a block alone."""
    start, noise, *grads = tensors(0, *[shape] * 5, dtype=torch.float64)
    ends = []
    for dtype in (torch.float32, torch.float64):
        param = torch.nn.Parameter(start.to(dtype))
        optimizer = LpSGD([param], lr=0.1, p=1.5, gain=True)
        optimizer.set_masks({param: (noise.abs() < density).to(dtype)})
        for grad in grads:
            param.grad = grad.to(dtype)
            optimizer.step()
        ends.append([param.detach(), *(optimizer.state[param][key] for key in ("v", "gain", "momentum_buffer"))])
    for single, double in zip(*ends, strict=True):
        # Momentum of masked weights is never read. Only the dense step updates it.
        on = (noise.abs() < density) if single.shape == shape else torch.tensor(True)
        close(single * on, double * on)


def test_an_infinite_gradient_in_the_last_row_leaves_all_rows_unchanged() -> None:
    param = torch.nn.Parameter(tensors(0, (60, 200))[0])
    optimizer = LpSGD([param], lr=0.1, p=1.5, gain=True)
    param.grad = tensors(1, (60, 200))[0]
    optimizer.step()
    before = {"param": param.detach().clone(), **{key: x.clone() for key, x in optimizer.state[param].items()}}
    param.grad[59, 199] = torch.inf
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        optimizer.step()
    assert all(torch.equal(x, before[key]) for key, x in {"param": param, **optimizer.state[param]}.items())


@pytest.mark.parametrize("p", [None, 1.5])
def test_a_decayed_momentum_is_exactly_zero_and_denormals_work_after_a_step(p: float | None) -> None:
    """The momentum of a weight whose input is always zero decays. It must become exactly zero, because steps with
    denormal numbers are much slower."""
    param = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = LpSGD([param], lr=0.01, p=p)
    param.grad = torch.ones(2, 3)
    optimizer.step()
    param.grad = torch.ones(2, 3) * torch.tensor([1.0, 1.0, 0.0])
    for _ in range(1000):
        optimizer.step()
    momentum = optimizer.state[param]["momentum_buffer"]
    assert momentum.view(2, 3)[:, 2].tolist() == [0.0, 0.0]
    assert (momentum.view(2, 3)[:, :2] > 1).all()
    assert (torch.tensor(1e-37) * torch.tensor(1e-3)).item() > 0
