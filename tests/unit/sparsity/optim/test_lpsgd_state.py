"""LpSGD's state is saved, loaded and copied. Parameters in half precision have a state in float32."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers.problems import batches, blobs, mlp, normal, norms, step
from tune_sparsity.sparsity.optim.lpsgd import LpSGD

pytestmark = pytest.mark.usefixtures("either_step")


def trained(dtype: torch.dtype, model: nn.Module, optimizer: LpSGD, seed: int, steps: int) -> None:
    x, y = blobs()
    for xs, ys in batches(x.to(dtype), y, steps, seed=seed):
        optimizer.zero_grad()
        F.cross_entropy(model(xs), ys).backward()
        optimizer.step()


def fresh(dtype: torch.dtype, **options: Any) -> tuple[nn.Module, LpSGD]:
    model = mlp(20, 16, 4).to(dtype)
    groups = [
        {"params": [model[0].weight], "p": 1.2, "gain": True},
        {"params": [model[0].bias, *model[2].parameters()]},
    ]
    return model, LpSGD(groups, 0.05, **options)


def equal_parameters(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_resumed_training_equals_an_unbroken_one(dtype: torch.dtype) -> None:
    model, optimizer = fresh(dtype)
    trained(dtype, model, optimizer, 0, 5)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    trained(dtype, model, optimizer, 1, 5)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, other = fresh(dtype)
    again.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    assert not equal_parameters(model, again)
    trained(dtype, again, other, 1, 5)
    assert equal_parameters(model, again)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_keep_their_state_in_float32(
    dtype: torch.dtype, nesterov: bool, momentum: float
) -> None:
    model, optimizer = fresh(dtype, nesterov=nesterov, momentum=momentum)
    trained(dtype, model, optimizer, 0, 5)
    weight = model[0].weight
    assert weight.dtype == dtype
    keys = {"v", "gain"} | ({"momentum_buffer", "gain_momentum"} if momentum else set())
    for current in (optimizer, fresh(dtype)[1]):
        if current is not optimizer:
            weight = current.param_groups[0]["params"][0]
            current.load_state_dict(optimizer.state_dict())
        assert set(current.state[weight]) == keys
        assert {value.dtype for value in current.state[weight].values()} == {torch.float32}
    w = optimizer.sphere_weights(model[0].weight)
    assert torch.allclose(norms(w, 1.2), torch.ones(16, dtype=torch.float64), atol=1e-5)
    rounded = (optimizer.state[model[0].weight]["gain"] * w).to(dtype).float()
    assert torch.allclose(model[0].weight.float(), rounded, rtol=0.01, atol=1e-6)


def test_half_precision_step_is_the_float32_step_rounded() -> None:
    grads = [normal(k, 4, 30, dtype=torch.bfloat16) for k in range(10)]
    ends = []
    for dtype in (torch.bfloat16, torch.float32):
        param = nn.Parameter(normal(99, 4, 30, dtype=torch.bfloat16).to(dtype))
        optimizer = LpSGD([param], 0.05, p=1.2)
        for g in grads:
            step(optimizer, param, g)
        ends.append(param.detach().to(torch.bfloat16))
    assert torch.equal(ends[0], ends[1])


def test_two_optimizers_loaded_from_one_state_do_not_share_it() -> None:
    model, optimizer = fresh(torch.float32)
    trained(torch.float32, model, optimizer, 0, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    (_, one), (_, other) = fresh(torch.float32), fresh(torch.float32)
    one.load_state_dict(saved)
    other.load_state_dict(saved)
    for index, param in enumerate(one.param_groups[0]["params"]):
        mine, yours = one.state[param], other.state[other.param_groups[0]["params"][index]]
        for key, value in mine.items():
            assert torch.equal(value, yours[key])
            value.add_(1.0)
            assert not torch.equal(value, yours[key])
            assert torch.equal(saved["state"][index][key], yours[key])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_of_network_and_optimizer_trains_like_the_original(duplicate: Any) -> None:
    model, optimizer = fresh(torch.float32)
    trained(torch.float32, model, optimizer, 0, 3)
    again, other = duplicate((model, optimizer))
    trained(torch.float32, model, optimizer, 1, 3)
    assert not equal_parameters(model, again)
    trained(torch.float32, again, other, 1, 3)
    assert equal_parameters(model, again)
    assert torch.equal(other.log_magnitude(again[0].weight), optimizer.log_magnitude(model[0].weight))
