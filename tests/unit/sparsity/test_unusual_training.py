"""Trainings of unusual parameters: with sparse gradients, complex, in float8, frozen, or on several devices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tune_sparsity.sparsity import METHODS, LayerRules, LpSGD, SparseTraining, lpss

SETTINGS: dict[str, dict[str, Any]] = {
    "lpss": {"p": 1.4, "lr": 0.1, "threshold_interval": 1},
    "gmp": {"lr": 0.1, "interval": 1},
    "rigl": {"lr": 0.1, "interval": 1},
    "sparse-momentum": {"lr": 0.1, "interval": 1},
}
# The embedding has 9 rows, so row 8 has no gradient. No two tokens are in the same bags: otherwise their rows would
# have equal gradients, and rounding would decide which of two weights grows.
TOKENS = torch.tensor([[1, 2, 3, 5, 6], [0, 2, 3, 6, 7], [0, 1, 3, 4, 7], [0, 1, 2, 4, 5]])


def embedded(*, sparse: bool) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.EmbeddingBag(9, 6, mode="sum", sparse=sparse), nn.Linear(6, 3))


def trained(model: nn.Module, training: SparseTraining, x: Tensor, steps: int = 6) -> nn.Module:
    for _ in range(steps):
        training.zero_grad()
        (model(x) - 1).square().mean().backward()
        training.step()
    return model


@pytest.mark.parametrize("pruned", [True, False])
@pytest.mark.parametrize("method", SETTINGS)
def test_sparse_gradients_train_as_dense_ones_do(method: str, pruned: bool) -> None:
    rules = LayerRules(prune={nn.EmbeddingBag: 1} if pruned else {})
    ends = []
    for sparse in (True, False):
        model = embedded(sparse=sparse)
        params = {"final_sparsity": 0.5, **SETTINGS[method]}
        training = METHODS[method].build(model, params, total_steps=6, generator=torch.Generator(), rules=rules)
        ends.append(trained(model, training, TOKENS).state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-6, atol=1e-7)


def test_complex_parameters_take_the_steps_of_torch() -> None:
    def parameter() -> nn.Parameter:
        return nn.Parameter(torch.randn(3, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)))

    mine, other = parameter(), parameter()
    optimizers = [
        LpSGD([mine], 0.1, momentum=0.9, weight_decay=0.01),
        torch.optim.SGD([other], 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    ]
    for _ in range(4):
        for param, optimizer in zip((mine, other), optimizers, strict=True):
            param.grad = 2j * param.detach()
            optimizer.step()
    torch.testing.assert_close(mine, other)
    mine.grad = torch.full_like(mine, complex(0, torch.inf))
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        optimizers[0].step()


def test_a_frozen_parameter_in_float8_does_not_disturb_a_training() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    model.codes = nn.Parameter(torch.randn(6, 6).to(torch.float8_e4m3fn), requires_grad=False)
    before = model.codes.view(torch.uint8).clone()
    training = lpss(model, total_steps=3, sparsity=0.5)
    trained(model, training, torch.ones(2, 4), 3)
    training.check_finite()
    assert training.zeros() == (21, 42)
    assert torch.equal(model.codes.view(torch.uint8), before)


@pytest.mark.parametrize("method", ["lpss", "gmp"])
def test_a_network_of_which_all_is_frozen_is_refused(method: str) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).requires_grad_(False)
    rules = LayerRules(prune={"0.weight": 1})
    params = {"final_sparsity": 0.5, **SETTINGS[method]}
    with pytest.raises(ValueError, match="empty parameter list"):
        METHODS[method].build(model, params, total_steps=6, generator=torch.Generator(), rules=rules)


def test_weights_on_several_devices_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3, device="meta"))
    with pytest.raises(ValueError, match="prunable weights lie on several devices: cpu, meta; move them to one device"):
        lpss(model, total_steps=3)
