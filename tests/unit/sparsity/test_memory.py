"""Weights that share memory with another tensor are refused. Weights that lie side by side in one memory are
accepted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tune_sparsity.sparsity import prunable_layers


def two(first: torch.Tensor, second: torch.Tensor) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].weight, model[1].weight = nn.Parameter(first), nn.Parameter(second)
    return model


def with_buffer(view: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    model = nn.Linear(4, 3)
    model.register_buffer("first", view(model.weight.data))
    return model


def expanded(name: str) -> nn.Module:
    model = nn.Linear(4, 3)
    setattr(model, name, nn.Parameter(torch.ones([1] * getattr(model, name).dim()).expand_as(getattr(model, name))))
    return model


SQUARE, LONG = torch.arange(16.0).view(4, 4), torch.arange(40.0)
REFUSED = {
    "one weight transposed": (
        lambda: two(SQUARE, SQUARE.T),
        "0.weight and 1.weight are two tensors in the same memory",
    ),
    "half of each": (lambda: two(LONG[:16].view(4, 4), LONG[8:24].view(4, 4)), "0.weight and 1.weight are two tensors"),
    "a buffer": (lambda: with_buffer(lambda weight: weight), "weight and first are two tensors in the same memory"),
    "a row as a buffer": (lambda: with_buffer(lambda weight: weight[1]), "weight and first are two tensors"),
    "an expanded buffer": (lambda: with_buffer(lambda weight: weight[1:2].expand(9, 4)), "weight and first are two"),
    "an expanded weight": (lambda: expanded("weight"), "weight is an expanded tensor"),
    "an expanded bias": (lambda: expanded("bias"), "bias is an expanded tensor"),
}
ACCEPTED: dict[str, Callable[[], nn.Module]] = {
    "side by side": lambda: two(LONG[:16].view(4, 4), LONG[16:32].view(4, 4)),
    "every second column": lambda: two(LONG[:32].view(4, 8)[:, ::2], LONG[:32].view(4, 8)[:, 1::2]),
    "a copy as a buffer": lambda: with_buffer(torch.clone),
    "one parameter twice": lambda: nn.Sequential(*[nn.Linear(4, 4)] * 2),
    "without numbers": lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to("meta"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tensors_that_overlap_in_memory_are_refused(name: str) -> None:
    make, told = REFUSED[name]
    with pytest.raises(ValueError, match=told):
        prunable_layers(make())


@pytest.mark.parametrize("name", ACCEPTED)
def test_weights_without_overlap_in_memory_are_prunable(name: str) -> None:
    model = ACCEPTED[name]()
    assert sum(layer.weight.numel() for layer in prunable_layers(model)) == sum(
        param.numel() for param in model.parameters() if param.dim() == 2
    )


def test_a_frozen_bias_made_by_torch_expand_is_accepted() -> None:
    model = expanded("bias")
    model.bias.requires_grad_(False)
    assert [layer.name for layer in prunable_layers(model)] == ["weight"]
