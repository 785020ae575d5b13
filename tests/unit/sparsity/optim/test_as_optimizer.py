"""A sparse training works as a torch optimizer: with scalers, schedulers, closures and hooks, and when it is copied."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tune_sparsity.sparsity import METHODS, SparseTraining

STEPS = 12


def data() -> tuple[Tensor, Tensor]:
    y = torch.arange(32) % 4
    return torch.randn(32, 6, generator=torch.Generator().manual_seed(0)) + 2 * torch.eye(4, 6)[y], y


def begun(method: str = "lpss", total_steps: int = STEPS, **more: Any) -> tuple[nn.Module, SparseTraining]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))
    params = {"final_sparsity": 0.5, "lr": 0.05, **({"p": 1.4, "threshold_interval": 2} if method == "lpss" else {})}
    return model, METHODS[method].build(
        model, {**params, **more}, total_steps=total_steps, generator=torch.Generator().manual_seed(0)
    )


def train(model: nn.Module, sparse: SparseTraining, steps: int) -> None:
    x, y = data()
    for _ in range(steps):
        sparse.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        sparse.step()


def equal(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("method", ["lpss", "gmp"])
def test_a_closure_gives_the_gradient_and_the_loss(method: str) -> None:
    (model, sparse), (other, reference) = begun(method), begun(method)
    x, y = data()

    def closure() -> float:
        sparse.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return float(loss.detach())

    losses = [sparse.step(closure) for _ in range(STEPS)]
    train(other, reference, STEPS)
    assert isinstance(sparse, torch.optim.Optimizer)
    assert losses[-1] < losses[0]
    assert equal(model, other)
    assert sparse.sparsity() == 0.5


@pytest.mark.parametrize("method", ["lpss", "gmp"])
def test_a_torch_scheduler_multiplies_the_scheduled_learning_rates(method: str) -> None:
    (model, sparse), (_, reference) = begun(method), begun(method)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(sparse, 0.5)
    for step in range(4):
        train(model, sparse, 1)
        train(model, reference, 1)
        for ours, theirs in zip(sparse.optimizer.param_groups, reference.optimizer.param_groups, strict=True):
            assert ours["lr"] == pytest.approx(0.5**step * theirs["lr"], rel=1e-12)
            assert ours.get("gain_lr", 0.0) == pytest.approx(0.5**step * theirs.get("gain_lr", 0.0), rel=1e-12)
        scheduler.step()
    saved = copy.deepcopy(sparse.state_dict())
    _, again = begun(method)
    again.load_state_dict(saved)
    assert [group["lr"] for group in again.param_groups] == [group["lr"] for group in sparse.param_groups]


def test_a_step_that_a_grad_scaler_skips_is_not_counted() -> None:
    model, sparse = begun()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    x, y = data()
    before = copy.deepcopy(model)
    for _ in range(3):
        sparse.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(x), y) * 1e6).backward()
        scaler.step(sparse)
        scaler.update()
    assert sparse.steps == 0
    assert equal(model, before)
    scaler.update(1.0)
    sparse.zero_grad()
    scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
    scaler.step(sparse)
    assert sparse.steps == 1
    other, reference = begun()
    train(other, reference, 1)
    assert equal(model, other)


def test_step_hooks_are_called_and_a_deep_copy_continues_like_the_original() -> None:
    model, sparse = begun()
    seen: list[int] = []
    sparse.register_step_pre_hook(lambda optimizer, args, kwargs: seen.append(optimizer.steps))
    train(model, sparse, 3)
    assert seen == [0, 1, 2]
    twin, copied = copy.deepcopy((model, sparse))
    train(model, sparse, 4)
    train(twin, copied, 4)
    assert equal(model, twin)
    assert copied.steps == sparse.steps == 7


def test_gradients_can_be_zeroed_in_place() -> None:
    model, sparse = begun()
    x, y = data()
    nn.functional.cross_entropy(model(x), y).backward()
    sparse.zero_grad(set_to_none=False)
    assert all(param.grad is not None and not param.grad.any() for param in model.parameters())
    sparse.zero_grad()
    assert all(param.grad is None for param in model.parameters())


def test_adding_a_parameter_group_is_refused() -> None:
    _, sparse = begun()
    with pytest.raises(ValueError, match="none can be added"):
        sparse.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


def test_finish_reaches_the_target_after_fewer_steps_than_announced() -> None:
    model, sparse = begun(total_steps=50)
    train(model, sparse, 5)
    assert sparse.sparsity() != 0.5
    sparse.finish()
    assert sparse.sparsity() == 0.5
    zeros = sum(int((layer.weight == 0).sum()) for layer in sparse.layers)
    assert zeros == sparse.zeros()[0]
