"""A training that begins with fewer neurons equals a training of the smaller network."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from tune_sparsity import LayerRules, LpssSettings, lpss
from tune_sparsity.sparsity import METHODS, SparseTraining, prunable_layers
from tune_sparsity.sparsity.masks import sparsity_with, zeros_for
from tune_sparsity.sparsity.neurons.finding import with_neurons
from tune_sparsity.sparsity.neurons.groups import NeuronGroups
from tune_sparsity.sparsity.neurons.removal import smaller

WIDTH, STEPS = 0.6, 30
Network = Callable[[], nn.Module]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 4)).double()


def convolutions() -> nn.Module:
    layers = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten()
    return nn.Sequential(nn.Unflatten(1, (1, 6, -1)), *layers, nn.Linear(12 * 2 * 2, 4)).double()


def seeded(network: Network) -> nn.Module:
    torch.manual_seed(0)
    return network()


def examples(network: Network) -> Tensor:
    inputs = 12 if network is mlp else 36
    return torch.randn(16, inputs, generator=Generator().manual_seed(1), dtype=torch.float64)


def begun(method: str, model: nn.Module, rules: LayerRules, *, trained: bool = False, **params: Any) -> SparseTraining:
    own = {"p": 1.5, "initial_sparsity": 0.0} if method == "lpss" else {}
    about = {**own, **params}
    order = Generator().manual_seed(0)
    return METHODS[method].build(model, about, total_steps=STEPS, generator=order, rules=rules, trained=trained)


def losses(model: nn.Module, sparse: SparseTraining, x: Tensor) -> list[float]:
    found = []
    for _ in range(STEPS):
        sparse.zero_grad()
        loss = nn.functional.cross_entropy(model(x), torch.arange(len(x)) % 4)
        loss.backward()
        sparse.step()
        found.append(loss.item())
    return found


def rules_of(model: nn.Module, x: Tensor) -> LayerRules:
    return with_neurons(LayerRules(), model, x, width=WIDTH)


def nonzero(sparse: SparseTraining) -> int:
    zeros, weights = sparse.zeros()
    return weights - zeros


@pytest.mark.parametrize("network", [mlp, convolutions])
@pytest.mark.parametrize("method", ["lpss", "gmp"])
def test_a_training_with_fewer_neurons_equals_a_training_of_the_smaller_network(method: str, network: Network) -> None:
    x, model = examples(network), seeded(network)
    rules = rules_of(model, x)
    every = sum(layer.weight.numel() for layer in prunable_layers(model))
    kept = round(0.03 * every)
    narrow = begun(method, model, rules, final_sparsity=sparsity_with(every - kept, every), width=WIDTH)
    groups = rules.neurons
    assert isinstance(groups, NeuronGroups)
    small = smaller(model, groups, narrow.masks)  # with the same initial weights
    weights = sum(int(mask.count_nonzero()) for mask in narrow.masks)
    same = begun(method, small, LayerRules(), final_sparsity=sparsity_with(weights - kept, weights))
    assert losses(model, narrow, x) == pytest.approx(losses(small, same, x), rel=1e-9)
    assert nonzero(narrow) == nonzero(same) == kept
    assert torch.allclose(model.eval()(x), small.eval()(x), rtol=1e-9, atol=1e-12)


@given(width=st.floats(0.05, 0.999), trained=st.booleans(), sparsity=st.floats(0.0, 0.99))
def test_masks_contain_only_weights_between_the_kept_neurons(width: float, trained: bool, sparsity: float) -> None:
    x, model = examples(mlp), seeded(mlp)
    rules = with_neurons(LayerRules(), model, x, width=width)
    weights = [layer.weight.detach().clone() for layer in prunable_layers(model)]
    sparse = begun("gmp", model, rules, final_sparsity=sparsity, width=width, trained=trained)
    rows = [int(mask.any(1).sum()) for mask in sparse.masks]
    assert rows == [max(1, round(30**width)), max(1, round(20**width)), 4]
    inputs = [12, *rows[:-1]]
    inside = sum(a * b for a, b in zip(rows, inputs, strict=True))
    assert nonzero(sparse) == inside
    factors = [1.0 if trained else (layer.shape[1] / n) ** 0.5 for layer, n in zip(weights, inputs, strict=True)]
    for now, mask, was, factor in zip(sparse.layers, sparse.masks, weights, factors, strict=True):
        assert torch.allclose(now.weight, was * mask * factor, rtol=1e-12)
    allowed = [mask.clone() for mask in sparse.masks]
    sparse.project()
    every = sum(mask.numel() for mask in allowed)
    assert nonzero(sparse) == min(inside, every - zeros_for(sparsity, every))
    assert all((mask <= most).all() for mask, most in zip(sparse.masks, allowed, strict=True))


def test_a_trained_network_keeps_its_most_important_neurons() -> None:
    x, model = examples(mlp), seeded(mlp)
    rules = with_neurons(LayerRules(), model, x, width=WIDTH)
    important = [3, 17, 22, 29]
    with torch.no_grad():
        first, second = model.get_parameter("0.weight"), model.get_parameter("2.weight")
        first[important] *= 10
        second[:, important] *= 10
    # The first layer begins with 30^0.4 = 3.9 of its 30 neurons, rounded to 4.
    sparse = begun("lpss", model, rules, final_sparsity=0.5, width=0.4, trained=True)
    assert sparse.masks[0].any(1).nonzero().flatten().tolist() == important


def test_lpss_finds_removable_neurons_by_means_of_an_example_input() -> None:
    model = seeded(mlp)
    settings = LpssSettings(0.97, 1.5, width=WIDTH)
    sparse = lpss(model, settings, total_steps=10, example=examples(mlp))
    assert [int(mask.any(1).sum()) for mask in sparse.masks] == [8, 6, 4]


@pytest.mark.parametrize(
    ("params", "rules", "text"),
    [
        ({"width": 0.0}, LayerRules(), "width = 0.0 is not accepted: it takes (0, 1]"),
        ({"width": 0.5}, LayerRules(), "width: the network's neurons are not known"),
        ({"width": 0.5}, LayerRules(pattern="2:4"), "width: a width below 1 does not work with the pattern 2:4"),
    ],
)
def test_invalid_widths_and_unknown_neurons_are_refused(params: dict[str, Any], rules: LayerRules, text: str) -> None:
    for method in ("lpss", "gmp"):
        with pytest.raises(ValueError, match=re.escape(text)):
            begun(method, seeded(mlp), rules, final_sparsity=0.9, **params)


def test_a_network_without_removable_neurons_refuses_a_width_below_1() -> None:
    text = "width: no neuron of this network can be removed (no layer is seen to read its outputs): give the width 1"
    with pytest.raises(ValueError, match=re.escape(text)):
        lpss(nn.Linear(12, 4), LpssSettings(0.9, 1.5, width=WIDTH), total_steps=10, example=torch.rand(2, 12))


def test_dropping_by_threshold_refuses_a_width_below_1() -> None:
    with pytest.raises(ValueError, match=re.escape("width = 0.5 is not accepted")):
        LpssSettings(0.9, 1.5, drop="threshold", width=0.5)
