"""AdamW instead of SGD: its step, its state, and the methods that use it."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from tests.helpers.trainings import MASKED
from tune_sparsity.experiments import Experiment, Recipe, Split, Training
from tune_sparsity.search_spaces import load_space
from tune_sparsity.sparsity import METHODS, LpSGD
from tune_sparsity.sparsity.methods.lpss import LpssSettings, lpss


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))


def split(count: int = 64, seed: int = 0) -> Split:
    y = torch.arange(count) % 4
    return Split(torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)) + 2 * torch.eye(4, 6)[y], y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_parameter_group_without_a_sphere_takes_the_step_of_adamw(dtype: torch.dtype) -> None:
    ours, theirs = (
        [nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4).to(dtype)), nn.Parameter(torch.ones(4, dtype=dtype))]
        for _ in range(2)
    )
    mine = LpSGD(ours, lr=0.01, momentum=0.8, weight_decay=0.1, adamw=True)
    reference = torch.optim.AdamW(theirs, lr=0.01, betas=(0.8, 0.999), weight_decay=0.1)
    numbers = torch.Generator().manual_seed(1)
    for _ in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=numbers, dtype=dtype)
            other.grad = one.grad.clone()
        mine.step()
        reference.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_a_saved_and_loaded_adamw_state_continues_bit_for_bit() -> None:
    def begun() -> tuple[list[nn.Parameter], LpSGD]:
        params = [nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.linspace(0, 1, 8).reshape(2, 4))]
        groups = [{"params": params[:1], "adamw": True}, {"params": params[1:], "p": 1.5}]
        return params, LpSGD(groups, lr=0.01)

    def step(params: list[nn.Parameter], optimizer: LpSGD, seed: int) -> None:
        for param in params:
            param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(seed))
        optimizer.step()

    params, optimizer = begun()
    step(params, optimizer, 0)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    others, again = begun()
    for one, other in zip(params, others, strict=True):
        other.data.copy_(one.data)
    again.load_state_dict(torch.load(buffer, weights_only=True))
    for seed in (1, 2):
        step(params, optimizer, seed)
        step(others, again, seed)
    assert all(torch.equal(one, other) for one, other in zip(params, others, strict=True))


def test_a_nan_gradient_raises_an_error_before_a_weight_changes() -> None:
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.tensor([1.0, float("nan"), 1.0])
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        LpSGD([param], adamw=True).step()
    assert torch.equal(param, torch.ones(3))


@pytest.mark.parametrize("method", MASKED)
def test_every_method_with_adamw_reaches_its_target_and_learns_and_resumes(method: str) -> None:
    space = load_space(f"{method}+adamw", 0.5)
    params = {**space.centre(), **(space.first[0] if space.first else {})}
    params = {key: value for key, value in params.items() if space.applies(key, params)}
    params |= {**space.fixed_for(params), "lr": 0.01}
    assert params["optimizer"] == "adamw"
    experiment = Experiment("test", lambda _: None, network, Recipe(6, 8))  # type: ignore[arg-type, return-value]

    def begun() -> Training:
        return Training(experiment, split(), split(32, 1), method, params, epochs=6, seed=0)

    unbroken, resumed = begun(), begun()
    first = unbroken.epoch()
    resumed.load_state_dict(copy.deepcopy(unbroken.state_dict()))
    for _ in range(5):
        last, again = unbroken.epoch(), resumed.epoch()
        assert last["train_loss"] == again["train_loss"]
    assert last["train_loss"] < first["train_loss"]
    zeros, total = unbroken.sparse.zeros()
    assert zeros == (0 if method == "dense" else -(-total // 2))
    for layer, mask in zip(unbroken.sparse.layers, unbroken.sparse.masks, strict=True):
        assert torch.equal(layer.weight != 0, mask != 0)


def test_dropped_weights_keep_no_adamw_state() -> None:
    model = network()
    sparse = METHODS["gmp"].build(
        model,
        {"final_sparsity": 0.5, "optimizer": "adamw", "lr": 0.01, "interval": 1},
        total_steps=10,
        generator=torch.Generator(),
    )
    for _ in range(8):
        sparse.zero_grad()
        nn.functional.cross_entropy(model(split().x), split().y).backward()
        sparse.step()
    for layer, mask in zip(sparse.layers, sparse.masks, strict=True):
        state = sparse.optimizer.state[layer.weight]
        assert not (state["exp_avg"] * (1 - mask)).any()
        assert not (state["exp_avg_sq"] * (1 - mask)).any()


def test_gains_take_sgd_with_a_rate_of_their_own_and_no_decay() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    groups = lpss(model, LpssSettings(0.5, 1.4, lr=0.001, optimizer="adamw"), total_steps=10).optimizer.param_groups
    sphere = [group for group in groups if group["p"] is not None]
    assert [(group["gain_lr"], group["weight_decay"]) for group in sphere] == [(0.1, 0.0)]
    assert [group["adamw"] for group in groups if group["p"] is None] == [True]


@pytest.mark.parametrize("wrong", [{"optimizer": "adam"}, {"gain_lr": 0.0}])
def test_an_invalid_optimizer_or_gain_rate_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="is not accepted: it takes"):
        LpssSettings(0.5, 1.4, **wrong)


def test_the_adamw_overlay_replaces_the_learning_rates_of_the_space() -> None:
    plain, other = load_space("lpss", 0.9), load_space("lpss+adamw", 0.9)
    assert other.fixed["optimizer"] == "adamw"
    assert other.distributions["lr"].high < plain.distributions["lr"].low * 1.01  # type: ignore[attr-defined]
    assert {point["lr"] for point in other.first} == {0.001}
    assert set(other.distributions) == set(plain.distributions)
    with pytest.raises(ValueError, match=r"unknown space 'lpss\+adam'.*also with \+adamw"):
        load_space("lpss+adam", 0.9)
