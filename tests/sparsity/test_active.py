"""Steps over the active weights alone, against dense steps on masked gradients."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsity.active import ActiveBlock
from sparsity.block import Block
from sparsity.optimizer import LpSGD

seeds = st.integers(0, 2**32 - 1)


def tensors(seed: int, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


SHAPES = [(6, 40), (5, 40), (4, 3, 2, 2)]


def masks(seed: int, density: float) -> list[Tensor]:
    """With a row that has no active weight, and one of which all are."""
    drawn = [(noise.abs() < density).double() for noise in tensors(seed, *SHAPES)]
    drawn[0][2], drawn[1][1] = 0, 1
    return drawn


def make(seed: int, **options: Any) -> tuple[list[Tensor], LpSGD]:
    params = [torch.nn.Parameter(x) for x in tensors(seed, *SHAPES)]
    return params, LpSGD(params, lr=0.1, **options)


def step(params: list[Tensor], optimizer: LpSGD, seed: int, on: list[Tensor] | None = None) -> None:
    for i, (param, grad) in enumerate(zip(params, tensors(seed, *SHAPES), strict=True)):
        param.grad = grad if on is None else grad * on[i]
    optimizer.step()


def blocks(optimizer: LpSGD) -> list[type]:
    return [type(block) for _, found in optimizer._blocks.values() for block in found]


@settings(max_examples=40)
@given(seeds, st.floats(1.05, 2.0) | st.just(2.0), st.sampled_from([0.0, 0.9]), st.booleans(), st.booleans())
def test_steps_are_those_on_masked_gradients(seed: int, p: float, momentum: float, nesterov: bool, gain: bool) -> None:
    options = {"p": p, "momentum": momentum, "nesterov": nesterov, "gain": gain}
    params, optimizer = make(seed, **options)
    others, plain = make(seed, **options)
    step(params, optimizer, seed + 1)
    step(others, plain, seed + 1)
    for round_, density in enumerate((0.3, 0.1, 1.5, 0.2)):
        on = masks(seed + 2 + round_, density)
        optimizer.set_masks(dict(zip(params, on, strict=True)))
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
        assert blocks(optimizer) == [ActiveBlock if density < 0.5 else Block]
        for param, other in zip(params, others, strict=True):
            assert torch.allclose(param, other, rtol=1e-6, atol=1e-9)
            for key, value in plain.state[other].items():
                assert torch.allclose(optimizer.state[param][key], value, rtol=1e-6, atol=1e-9), key


def test_state_may_be_read_and_changed_between_steps_without_a_trace() -> None:
    read, quiet = make(0, p=1.4, gain=True), make(0, p=1.4, gain=True)
    for params, optimizer in (read, quiet):
        optimizer.set_masks(dict(zip(params, masks(1, 0.2), strict=True)))
    for k in range(6):
        for params, optimizer in (read, quiet):
            step(params, optimizer, k)
        v = read[1].state[read[0][0]]["v"]
        assert torch.allclose((v.abs() ** 3.5).sum(1), torch.ones(6, dtype=torch.float64))
    assert all(torch.equal(a, b) for a, b in zip(read[0], quiet[0], strict=True))
    read[1].state[read[0][0]]["v"].neg_()
    before = read[0][0].clone()
    read[1].param_groups[0]["lr"] = 0.0
    step(*read, 7)
    assert torch.equal(read[0][0].sign(), -before.sign())


@pytest.mark.parametrize("how", ["deepcopy", "file"])
def test_copies_and_files_go_on_as_it_would_bit_for_bit(how: str) -> None:
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
    assert blocks(other) == [ActiveBlock]
    assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))


def test_a_gradient_that_is_no_number_is_named_and_changes_nothing() -> None:
    params, optimizer = make(0, p=1.4)
    optimizer.set_masks(dict(zip(params, masks(1, 0.2), strict=True)))
    step(params, optimizer, 0)
    before = [param.clone() for param in params]
    for param, grad in zip(params, tensors(1, *SHAPES), strict=True):
        param.grad = grad.fill_(torch.nan) if param is params[1] else grad
    with pytest.raises(FloatingPointError, match=r"shape \(5, 40\)"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))


def test_another_exponent_makes_the_latent_anew() -> None:
    params, optimizer = make(0, p=1.4)
    optimizer.set_masks(dict(zip(params, masks(1, 0.2), strict=True)))
    step(params, optimizer, 0)
    optimizer.param_groups[0]["p"] = 1.6
    step(params, optimizer, 1)
    v = optimizer.state[params[0]]["v"]
    assert torch.allclose((v.abs() ** (1.6 / 0.6)).sum(1), torch.ones(6, dtype=torch.float64))


def test_bfloat16_parameters() -> None:
    params = [torch.nn.Parameter(x) for x in tensors(0, (8, 64), dtype=torch.bfloat16)]
    optimizer = LpSGD(params, lr=0.1, p=1.4)
    mask = (torch.rand(8, 64, generator=torch.Generator().manual_seed(0)) < 0.2).bfloat16()
    optimizer.set_masks({params[0]: mask})
    params[0].grad = tensors(1, (8, 64), dtype=torch.bfloat16)[0]
    optimizer.step()
    assert blocks(optimizer) == [ActiveBlock]
    w = optimizer.sphere_weights(params[0]) * mask
    assert torch.allclose(params[0].float(), w.float(), rtol=2**-7)
