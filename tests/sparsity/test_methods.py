"""Every method by its name: exact target, zeros that stay zero, and a resumed training equal to an unbroken one."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sparsity import METHODS, SparseTraining
from sparsity.masks import zeros_for

STEPS = 80
SPARSE = [name for name in METHODS if name != "dense"]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 4))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    y = torch.randint(0, 4, (32,), generator=generator)
    return torch.randn(32, 16, generator=generator) + 2 * F.one_hot(y, 16), y


def params(name: str, sparsity: float) -> dict[str, Any]:
    own: dict[str, Any] = {} if name == "dense" else {"final_sparsity": sparsity}
    if name == "lpss":
        return {**own, "p": 1.3, "threshold_interval": 7}
    return {**own, "interval": 7} if name in ("rigl", "set", "sparse-momentum", "gmp") else own


def build(name: str, model: nn.Module, sparsity: float = 0.9) -> SparseTraining:
    generator = torch.Generator().manual_seed(7)
    return METHODS[name].build(model, params(name, sparsity), total_steps=STEPS, generator=generator)


def train(model: nn.Module, sparse: SparseTraining, start: int, stop: int) -> None:
    for step in range(start, stop):
        x, y = batch(step)
        sparse.zero_grad()
        F.cross_entropy(model(x), y).backward()
        sparse.step()


def zeros(sparse: SparseTraining) -> int:
    return sum(int((layer.weight == 0).sum()) for layer in sparse.layers)


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", SPARSE)
def test_ends_on_its_sparsity_exactly_and_learns(name: str, sparsity: float) -> None:
    model = network()
    sparse = build(name, model, sparsity)
    x, y = batch(0)
    before = F.cross_entropy(model(x), y)
    train(model, sparse, 0, STEPS)
    total = sum(layer.weight.numel() for layer in sparse.layers)
    assert zeros(sparse) == zeros_for(sparsity, total)
    assert all(mask.any() for mask in sparse.masks)
    if sparsity == 0.5:  # 80 steps are too few for a random mask of a tenth
        assert F.cross_entropy(model(x), y) < 0.7 * before


@pytest.mark.parametrize("name", ["set", "rigl", "sparse-momentum"])
def test_drop_and_grow_keep_the_sparsity_and_move_the_mask(name: str) -> None:
    model = network()
    sparse = build(name, model)
    first = [mask.clone() for mask in sparse.masks]
    total = sum(mask.numel() for mask in sparse.masks)
    for step in range(60):
        train(model, sparse, step, step + 1)
        assert sparse.zeros() == (zeros_for(0.9, total), total)
    moved = sum(int((old != new).sum()) for old, new in zip(first, sparse.masks, strict=True))
    assert moved > 20
    counts = [int(mask.sum()) for mask in first]
    if name == "sparse-momentum":
        assert counts != [int(mask.sum()) for mask in sparse.masks]  # connections move between layers
    else:
        assert counts == [int(mask.sum()) for mask in sparse.masks]


@pytest.mark.parametrize("name", ["static", "snip"])
def test_a_mask_chosen_at_the_start_never_changes(name: str) -> None:
    model = network()
    sparse = build(name, model)
    train(model, sparse, 0, 1)
    first = [mask.clone() for mask in sparse.masks]
    train(model, sparse, 1, STEPS)
    assert all(torch.equal(old, new) for old, new in zip(first, sparse.masks, strict=True))


def test_snip_keeps_the_largest_products_of_weight_and_gradient() -> None:
    model = network()
    sparse = build("snip", model)
    x, y = batch(0)
    sparse.zero_grad()
    F.cross_entropy(model(x), y).backward()
    scores = torch.cat([(layer.weight * layer.weight.grad).abs().flatten() for layer in sparse.layers])
    sparse.step()
    kept = torch.cat([mask.flatten() for mask in sparse.masks]).bool()
    assert scores[kept].min() >= scores[~kept].max()


def test_dense_is_plain_sgd() -> None:
    model, other = network(), network()
    sparse = build("dense", model)
    train(model, sparse, 0, 20)
    sgd = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
    for step in range(20):
        sgd.param_groups[0]["lr"] = 0.05 * sparse.learning_rate(step / STEPS)
        x, y = batch(step)
        sgd.zero_grad()
        F.cross_entropy(other(x), y).backward()
        sgd.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert sparse.sparsity() == 0.0


def test_regrown_connections_start_at_zero_and_without_momentum() -> None:
    model = network()
    sparse = build("rigl", model)
    grown_at_all = False
    for step in range(50):
        old = [mask.clone() for mask in sparse.masks]
        x, y = batch(step)
        sparse.zero_grad()
        F.cross_entropy(model(x), y).backward()
        sparse._move_masks()
        for layer, before, after in zip(sparse.layers, old, sparse.masks, strict=True):
            grown = (before == 0) & (after != 0)
            grown_at_all |= bool(grown.any())
            assert not layer.weight[grown].any()
            buffer = sparse.optimizer.state[layer.weight].get("momentum_buffer")
            assert buffer is None or not buffer[(before != 0) & (after == 0)].any()
        sparse.step()
    assert grown_at_all


@pytest.mark.parametrize("stop", [1, 13, 14, 15, 40, 57, 79])
@pytest.mark.parametrize("name", list(METHODS))
def test_resumed_equals_unbroken_bit_for_bit(name: str, stop: int) -> None:
    whole = network()
    unbroken = build(name, whole)
    train(whole, unbroken, 0, STEPS)

    first = network()
    begun = build(name, first)
    train(first, begun, 0, stop)
    saved = copy.deepcopy({"model": first.state_dict(), "sparse": begun.state_dict()})
    second = network(seed=5)
    resumed = build(name, second)
    second.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["sparse"])
    train(second, resumed, stop, STEPS)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("name", SPARSE)
def test_copies_and_averages_of_the_network_keep_the_sparsity(name: str) -> None:
    model = network()
    sparse = build(name, model)
    train(model, sparse, 0, 64)
    averaged = AveragedModel(model)
    for step in range(64, STEPS):
        train(model, sparse, step, step + 1)
        averaged.update_parameters(model)
    wanted = zeros(sparse)
    for other in (copy.deepcopy(model), averaged.module):
        assert sum(int((m.weight == 0).sum()) for m in other if isinstance(m, nn.Linear)) == wanted
    fresh = network(seed=9)
    fresh.load_state_dict(model.state_dict())
    assert sum(int((m.weight == 0).sum()) for m in fresh if isinstance(m, nn.Linear)) == wanted


@pytest.mark.parametrize("name", list(METHODS))
def test_wrong_settings_are_one_line(name: str) -> None:
    for wrong in ({"lr": -1.0}, {"lr": math.nan}, {"momentum": 1.0}, {"no_such": 1}):
        with pytest.raises(ValueError, match=r"lr|momentum|no_such") as caught:
            METHODS[name].build(network(), {**params(name, 0.9), **wrong}, total_steps=9, generator=torch.Generator())
        assert "\n" not in str(caught.value)
