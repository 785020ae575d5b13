"""LpSGD's parameter groups without an exponent p, the gains of rows, and wrong use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.problems import batches, blobs, mlp, normal, step
from tune_sparsity.sparsity.optim import fused
from tune_sparsity.sparsity.optim.lpsgd import LpSGD

pytestmark = pytest.mark.usefixtures("either_step")


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "nesterov": False},
        {"momentum": 0.0, "nesterov": False},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        {"momentum": 0.0, "nesterov": False, "weight_decay": 0.1},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_parameter_group_without_p_takes_the_steps_of_torch_sgd(options: dict[str, Any], dtype: torch.dtype) -> None:
    x, y = blobs()
    x, ours, theirs = x.to(dtype), mlp(20, 16, 4).to(dtype), mlp(20, 16, 4).to(dtype)
    optimizers = (LpSGD(ours.parameters(), 0.1, **options), torch.optim.SGD(theirs.parameters(), 0.1, **options))
    for xs, ys in batches(x, y, 20):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(xs), ys).backward()
            optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        # Compiled code may use fused multiply-adds, which round once. torch rounds the product and the sum.
        if dtype == torch.float32 and fused.kernel is not None:
            assert torch.allclose(mine, other, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(mine, other)
    assert not torch.equal(ours[0].weight, mlp(20, 16, 4)[0].weight)


def test_parameters_without_a_gradient_are_not_changed() -> None:
    sphere, plain = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))
    optimizer = LpSGD([{"params": [sphere], "p": 1.5}, {"params": [plain]}])
    before = sphere.detach().clone()
    optimizer.step()
    assert torch.equal(sphere, before)
    assert torch.equal(plain, torch.ones(3))


def test_closure_is_run_with_gradients_and_its_loss_returned() -> None:
    param = nn.Parameter(torch.tensor([2.0]))
    optimizer = LpSGD([param], 0.1, momentum=0.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (param**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert param.item() == pytest.approx(2.0 - 0.1 * 4.0)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("foreach", [None, True])
def test_gains_are_constant_unless_they_are_trained(momentum: float, foreach: bool | None) -> None:
    ends = []
    for gain in (False, True):
        param = nn.Parameter(normal(0, 8, 50, dtype=torch.float32))
        optimizer = LpSGD([param], p=1.2, gain=gain, gain_lr=0.01, momentum=momentum, foreach=foreach)
        start = optimizer.gain(param).clone()
        for k in range(5):
            step(optimizer, param, normal(k + 1, 8, 50))
        assert torch.allclose(param, optimizer.gain(param) * optimizer.sphere_weights(param), rtol=1e-3, atol=1e-6)
        assert bool((optimizer.gain(param) == start).all()) != gain
        ends.append(optimizer.sphere_weights(param))
    assert torch.allclose(*ends, rtol=1e-4, atol=1e-7)  # the weights on the sphere do not depend on the gains


@pytest.mark.parametrize(("masked", "decay"), [(False, 0.0), (True, 0.0), (True, 0.3)])
def test_the_gradient_of_the_gains_equals_finite_differences(masked: bool, decay: float) -> None:
    x, y = blobs(n=40, features=6)
    x = x.double()
    model = mlp(6, 5, 4).double()
    weight = model[0].weight
    optimizer = LpSGD([weight], 0.01, p=1.3, gain=True, gain_lr=1e-3, momentum=0.0, weight_decay=decay)
    mask = (normal(3, 5, 6) > 0).double() if masked else torch.ones(5, 6, dtype=torch.float64)
    w, gain = optimizer.sphere_weights(weight).clone(), optimizer.state[weight]["gain"].clone()

    def loss(gain: Tensor) -> Tensor:
        data = F.cross_entropy(torch.func.functional_call(model, {"0.weight": mask * gain * w}, x), y)
        return data + decay / 2 * gain.square().sum()

    with torch.no_grad():
        weight.mul_(mask)
        numeric = torch.zeros(5, 1, dtype=torch.float64)
        for i in range(5):
            shift = torch.zeros(5, 1, dtype=torch.float64)
            shift[i] = 1e-6
            numeric[i] = (loss(gain + shift) - loss(gain - shift)) / 2e-6
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert numeric.abs().max() > 1e-3
    assert torch.allclose((gain - optimizer.state[weight]["gain"]) / 1e-3, numeric, rtol=1e-5, atol=1e-8)


def test_the_gain_is_trained_by_sgd_with_nesterov_momentum() -> None:
    # The row has one nonzero weight, which stays 1 on the sphere. Therefore d loss / d gain is the constant -1.
    param = nn.Parameter(torch.tensor([[1.0, 0.0]]))
    optimizer = LpSGD([param], 0.1, p=2.0, gain=True, gain_lr=0.01)
    other = nn.Parameter(torch.tensor([1.0]))
    sgd = torch.optim.SGD([other], 0.01, momentum=0.9, nesterov=True)
    for _ in range(10):
        step(optimizer, param, torch.tensor([[-1.0, 0.0]]))
        other.grad = torch.tensor([-1.0])
        sgd.step()
    assert optimizer.state[param]["gain"].item() == pytest.approx(other.item(), rel=1e-6)


def test_gain_stays_positive() -> None:
    param = nn.Parameter(torch.tensor([[1.0, 0.0]]))
    optimizer = LpSGD([param], 0.0, p=2.0, gain=True, gain_lr=10.0)
    step(optimizer, param, torch.tensor([[1.0, 0.0]]))
    assert 0 < optimizer.state[param]["gain"].item() < 1e-5
    assert torch.isfinite(optimizer.log_magnitude(param)[0, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 1.0}, "p must lie in"),
        ({"p": 2.5}, "p must lie in"),
        ({"p": float("nan")}, "p must lie in"),
        ({"p": 1.5, "lr": 0.3}, r"lr of a sphere group must lie in \[0, 0.25\]"),
        ({"p": 1.5, "lr": -0.1}, "lr of a sphere group"),
        ({"lr": -0.1}, "lr of an ordinary group"),
        ({"lr": float("nan")}, "lr of an ordinary group"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
        ({"momentum": -0.1}, "momentum must lie in"),
        ({"weight_decay": -1.0}, "must not be negative"),
        ({"p": 1.5, "gain_lr": -1.0}, "must not be negative"),
        ({"p": 1.5, "weight_decay": 0.1}, "weight_decay has no meaning on a sphere whose gains are constant"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LpSGD([nn.Parameter(torch.ones(2, 3))], **options)


def test_vectors_are_refused_on_the_sphere() -> None:
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        LpSGD([nn.Parameter(torch.ones(3))], p=1.5)


def test_refused_group_leaves_the_optimizer_as_it_was() -> None:
    optimizer = LpSGD([nn.Parameter(torch.ones(2, 3))])
    new = nn.Parameter(torch.ones(2, 3))
    with pytest.raises(ValueError, match="p must lie in"):
        optimizer.add_param_group({"params": [new], "p": 3.0})
    assert len(optimizer.param_groups) == 1
    assert torch.equal(new, torch.ones(2, 3))
    optimizer.add_param_group({"params": [new], "p": 2.0})
    assert torch.allclose(optimizer.sphere_weights(new), torch.full((2, 3), 3**-0.5))


def test_ordinary_parameters_have_no_sphere_weights() -> None:
    param = nn.Parameter(torch.ones(2, 3))
    optimizer = LpSGD([param])
    with pytest.raises(ValueError, match="belongs to no sphere group"):
        optimizer.log_magnitude(param)
    with pytest.raises(ValueError, match="belongs to no sphere group"):
        optimizer.sphere_weights(param)
    assert not optimizer.state
