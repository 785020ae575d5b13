"""The counted multiply-adds equal counts by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tune_sparsity.sparsity import LayerRules, prunable_layers
from tune_sparsity.sparsity.cost.multiply_adds import count_uses
from tune_sparsity.sparsity.layers import Layer


def macs(model: nn.Module, example: Any, rules: LayerRules | None = None) -> int | None:
    """Return the number of multiply-adds in all prunable layers; weights that are zero do not count."""
    layers = prunable_layers(model, rules or LayerRules(), sphere=False)
    uses = count_uses(model, layers, example)
    return None if uses is None else uses.macs({one.name: int(one.weight.count_nonzero()) for one in layers})


def pruned(model: nn.Module, share: float = 0.6) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for param in model.parameters():
            if param.dim() > 1:
                param.mul_(torch.rand_like(param) > share)
    return model


def test_a_linear_layer_uses_each_nonzero_weight_once_per_position() -> None:
    model = pruned(nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)))
    expected = sum(int(param.count_nonzero()) for param in model.parameters() if param.dim() == 2)
    assert macs(model, torch.randn(4, 7)) == expected
    assert macs(model, torch.randn(4, 6, 7)) == 6 * expected  # each example has six positions


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (2, 1, 1), (1, 2, 2)])
def test_the_count_of_a_convolution_equals_a_brute_force_count(
    groups: int, stride: int, padding: int, dilation: int
) -> None:
    layer = nn.Conv2d(4, 6, 3, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=False)
    pruned(layer)
    x = torch.randn(2, 4, 9, 8)
    out = layer(x)
    # Every output is a sum with one product for each weight of its filter.
    count = sum(int(layer.weight[channel].count_nonzero()) for channel in range(6) for _ in out[0, channel].flatten())
    assert macs(layer, x) == count


def test_a_transposed_convolution_uses_each_weight_once_per_input_position() -> None:
    layer = pruned(nn.ConvTranspose2d(4, 6, 3, stride=2))
    assert macs(layer, torch.randn(3, 4, 5, 7)) == 5 * 7 * int(layer.weight.count_nonzero())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_uses_each_weight_once_per_time_step(kind: type[nn.Module]) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = kind(5, 6, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0][:, -1]

    model = pruned(Last())
    weights = sum(int(param.count_nonzero()) for param in model.parameters() if param.dim() == 2)
    assert macs(model, torch.randn(3, 8, 5)) == 8 * weights  # at each of eight steps


def test_weights_of_attention_are_counted_and_not_products_of_activations() -> None:
    model = pruned(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    weights = sum(int(param.count_nonzero()) for param in model.parameters() if param.dim() == 2)
    assert macs(model, torch.randn(2, 3, 8)) == 3 * weights


def test_all_weights_of_layers_that_are_not_pruned_are_counted() -> None:
    model = pruned(nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3)))
    expected = int(model[0].weight.count_nonzero()) + 15
    assert macs(model, torch.randn(2, 7), LayerRules(dense=("1.*",))) == expected


def test_an_embedding_multiplies_nothing() -> None:
    model = pruned(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)))
    linear = int(model[1].weight.count_nonzero())
    assert macs(model, torch.randint(0, 9, (2, 6)), LayerRules(prune={"0.weight": 1})) == 6 * linear


def test_a_weight_in_an_unknown_operation_has_no_count() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return (x[:, None] * self.layer.weight).sum(-1)

    model = Odd()
    assert count_uses(model, [Layer("layer.weight", model.layer.weight, False)], torch.randn(2, 4)) is None


def test_counting_multiply_adds_does_not_change_the_network() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert macs(model, torch.randn(5, 4)) == 12
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
