"""Define binary layers for inference. Their weights are -1 or +1. Instead of a normalisation, each neuron has a
threshold, or a scale and an offset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from tune_sparsity.sparsity.binary.bits import signs
from tune_sparsity.sparsity.binary.products import Product

Kind = Literal["sign", "relu", "none"]
"""The activation after the normalisation: a sign, a ReLU if activations are real numbers, or none in the last layer."""
_CONSTANTS: Mapping[Kind, tuple[str, ...]] = {
    "sign": ("threshold",),
    "relu": ("scale", "offset"),
    "none": ("scale", "offset"),
}


def concluded(y: Tensor, kind: Kind, constants: Mapping[str, Tensor]) -> Tensor:
    """Return a layer's outputs, computed from the products of its weights and inputs.

    Args:
        y: the products, shape (batch, rows, ...).
        kind: the activation.
        constants: a dict from names to tensors of the shape (rows,). The names are "threshold" if the activation is a
            sign, and otherwise "scale" and "offset". SignLayer describes them.
    """
    own = [constants[name].to(y.dtype).view(-1, *[1] * (y.dim() - 2)) for name in _CONSTANTS[kind]]
    if kind == "sign":
        return signs(y - own[0])
    return activated(y * own[0] + own[1], kind)


def activated(h: Tensor, kind: Kind) -> Tensor:
    """Return the outputs of the activation `kind` for the normalised values `h`."""
    return signs(h) if kind == "sign" else h.relu() if kind == "relu" else h


class SignLayer(nn.Module):
    """A linear layer or convolution whose weights are -1 or +1, with constants instead of a normalisation.

    Attributes:
        weight: int8 of -1 and +1, shape (rows, fan-in...).
        threshold: for a layer whose outputs are signs. The output is +1 if the product is at least the threshold, and
            otherwise -1. The threshold is a whole number if the inputs are signs, too.
        scale, offset: for other layers, the outputs are scale * product + offset, followed by the activation.
    """

    def __init__(self, weight: Tensor, product: Product, kind: Kind, constants: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.product, self.kind = product, kind
        for name in _CONSTANTS[kind]:
            self.register_buffer(name, constants[name])

    def forward(self, x: Tensor) -> Tensor:
        return concluded(self.product(x.float(), self.weight.float()), self.kind, dict(self.named_buffers()))

    def extra_repr(self) -> str:
        rows, *fan_in = self.weight.shape
        return (
            f"{fan_in[0] if len(fan_in) == 1 else tuple(fan_in)} -> {rows}, {type(self.product).__name__}, {self.kind}"
        )


def whole_threshold(threshold: Tensor, fan_in: int) -> Tensor:
    """Round the thresholds of a layer up to whole numbers. The inputs of the layer must be signs. Each product is then
    a sum of `fan_in` signs, therefore a whole number, and the outputs of the layer stay the same."""
    kept = threshold.ceil().clamp(-fan_in, fan_in + 1)
    return kept.to(torch.int16 if fan_in < torch.iinfo(torch.int16).max else torch.int32)
