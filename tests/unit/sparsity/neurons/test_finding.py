"""The neurons that can be removed are found. The layers that keep all their neurons are listed with the reason."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.unit.sparsity.neurons import networks
from tune_sparsity.sparsity import LayerRules, prunable_layers
from tune_sparsity.sparsity.neurons.finding import neuron_groups
from tune_sparsity.sparsity.neurons.groups import NeuronGroups

pytest.importorskip("torch_pruning")

IMAGES, ROWS = torch.randn(3, 3, 12, 12), torch.randn(3, 6)


def groups_of(model: nn.Module, example: Tensor, rules: LayerRules | None = None) -> NeuronGroups:
    return neuron_groups(model, prunable_layers(model, rules or LayerRules(), sphere=False), example)


def whole(groups: NeuronGroups) -> dict[str, str]:
    return dict(groups.whole)


@pytest.mark.parametrize(
    ("make", "example", "count"),
    [
        (networks.mlp, torch.randn(3, 12), 20 + 10),
        (networks.lenet, torch.randn(3, 1, 28, 28), 6 + 16 + 30),
        (networks.resnet, IMAGES, 8 + 16 + 3 * 12 * 2 - 12 + 8 * 2 - 12 - 8 + 12 + 8 - 20 + 8),
        (networks.densenet, IMAGES, 8 + 6 + 6 + 10 + 6),
        (networks.grouped, IMAGES, 16 + 16 + 24 // 2 + 36 // 2),
        (networks.transposed, IMAGES, 8 + 12 // 2 + 18 // 2),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_only_the_last_layer_keeps_all_its_neurons(make: Callable[[], nn.Module], example: Tensor, count: int) -> None:
    model = make()
    layers = prunable_layers(model)
    groups = groups_of(model, example)
    assert whole(groups) == {layers[-1].name: "no layer is seen to read its outputs"}
    assert groups.count == count


def test_only_the_hidden_neurons_of_a_transformer_are_removable() -> None:
    groups = groups_of(networks.Vit(), IMAGES)
    assert groups.count == 2 * 64
    named = whole(groups)
    assert {"patches.weight", "head.weight", "blocks.0.attention.qkv.weight", "blocks.1.mlp.2.weight"} < named.keys()
    assert named["patches.weight"] == "a LayerNorm reads its outputs"
    assert "blocks.0.mlp.0.weight" not in named


def test_attention_and_recurrent_layers_keep_all_their_neurons() -> None:
    groups = groups_of(networks.encoder(), torch.randn(3, 5, 6))
    assert groups.count == 24 + 8
    assert whole(groups) == {
        "0.weight": "a MultiheadAttention reads its outputs",
        "1.self_attn.in_proj_weight": "a MultiheadAttention keeps all its neurons",
        "1.self_attn.out_proj.weight": "a MultiheadAttention keeps all its neurons",
        "1.linear2.weight": "a MultiheadAttention reads its outputs",
        "4.weight": "no layer is seen to read its outputs",
    }
    groups = groups_of(networks.Recurrent(), torch.randn(3, 5, 6))
    assert groups.count == 12
    assert whole(groups) == {
        "before.weight": "a GRU reads its outputs",
        "gru.weight_ih_l0": "a GRU keeps all its neurons",
        "gru.weight_hh_l0": "a GRU keeps all its neurons",
        "head.weight": "no layer is seen to read its outputs",
    }


@pytest.mark.parametrize(
    ("function", "width", "reason"),
    [
        (nn.LayerNorm(8), 8, "a LayerNorm reads its outputs"),
        (nn.GroupNorm(4, 8), 8, "a GroupNorm reads its outputs"),
        (lambda x: x.softmax(1), 8, "the network computes other outputs without some of this layer's neurons"),
        (lambda x: x / x.norm(dim=1, keepdim=True), 8, "the network computes other outputs"),
        (
            lambda x: x - x.mean(1, keepdim=True),
            8,
            "the network computes other outputs without some of this layer's neurons",
        ),
        (lambda x: x.view(-1, 8), 8, "the network fails without some of this layer's neurons"),
        (
            lambda x: x.view(len(x), 4, 2).flip(1).flatten(1),
            8,
            "the network fails without some of this layer's neurons",
        ),
        (lambda x: x[:, torch.tensor([3, 1, 2, 0])], 4, "torch-pruning does not follow its outputs to head"),
        (lambda x: x.roll(1, 1), 8, "the network computes other outputs without some of this layer's neurons"),
        (lambda x: x[:, :4] * x[:, 4:], 4, "the network"),
        (lambda x: x.sum(1, keepdim=True), 1, "torch-pruning does not follow its outputs to head"),
    ],
)
def test_a_layer_that_keeps_all_its_neurons_is_listed_with_the_reason(
    function: Callable[[Tensor], Tensor], width: int, reason: str
) -> None:
    groups = groups_of(networks.Computed(function, width), ROWS)
    assert groups.count == 0
    assert whole(groups)["hidden.weight"].startswith(reason)


def test_neurons_that_are_also_outputs_of_the_network_stay() -> None:
    class Both(networks.Computed):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            hidden = self.hidden(x)
            return hidden, self.head(hidden)

    assert groups_of(Both(nn.Identity()), ROWS).count == 0


def test_neurons_stay_if_the_layer_that_reads_them_is_not_pruned() -> None:
    model = networks.mlp()
    groups = groups_of(model, torch.randn(3, 12), LayerRules(dense=("4.weight",)))
    assert groups.count == 20
    assert whole(groups) == {"2.weight": "4 reads its outputs, and is not pruned"}
    groups = groups_of(model, torch.randn(3, 12), LayerRules(dense=("2.weight",)))
    assert whole(groups)["0.weight"] == "2 reads its outputs, and is not pruned"
    assert groups.count == 0


def test_a_layer_with_a_shared_weight_keeps_all_its_neurons() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    model[2].weight = model[0].weight
    assert whole(groups_of(model, ROWS))["0.weight"] == "several modules share its weight"


def test_the_neurons_of_a_layer_that_is_called_twice_are_found() -> None:
    class Twice(networks.Computed):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.hidden(x).relu() + self.hidden(2 * x).tanh())

    groups = groups_of(Twice(nn.Identity()), ROWS)
    assert groups.count == 8


def test_finding_neurons_does_not_change_the_network() -> None:
    model = networks.resnet().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    groups_of(model, IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(param.grad is None for param in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_network_that_cannot_be_traced_keeps_all_its_neurons() -> None:
    class Broken(networks.Computed):
        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                raise RuntimeError("no gradients, please\nthank you")
            return super().forward(x)

    groups = groups_of(Broken(nn.Identity()), ROWS)
    assert groups.count == 0
    assert groups.highest_sparsity == 0.0
    assert set(whole(groups).values()) == {"torch-pruning cannot trace the network: no gradients, please"}


def test_without_torch_pruning_the_error_names_the_extra(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["torch_pruning"] = None
from torch import nn, zeros
from tune_sparsity.sparsity import prunable_layers
from tune_sparsity.sparsity.neurons.finding import neuron_groups
model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
try:
    neuron_groups(model, prunable_layers(model), zeros(1, 4))
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "torch-pruning, which finds neurons, is not installed: pip install 'tune-sparsity[neurons]'\n"
