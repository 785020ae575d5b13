"""Compute linear layers with XOR and popcount, if all weights and inputs are signs. The computation needs a CPU and
compiled code (sparsity/optim/popcount.c).

Two vectors of n signs are stored as bit vectors x and w. Their inner product is n - 2 popcount(x xor w). An XOR and a
popcount of 64 bits replace 64 multiplications. If several layers of this kind follow each other, the signs between them
stay packed as bits.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tune_sparsity.sparsity.binary.bits import pack
from tune_sparsity.sparsity.binary.convert import places
from tune_sparsity.sparsity.binary.inference import SignLayer, concluded
from tune_sparsity.sparsity.binary.products import LinearProduct
from tune_sparsity.sparsity.optim.fused import kernel

_WORD = 64


def available() -> bool:
    """Return whether the compiled code for bit operations is installed."""
    return hasattr(kernel, "multiply_signs")


def to_words(positive: Tensor) -> Tensor:
    """Pack a Boolean tensor of shape (rows, n) into int64 of shape (rows, ceil(n / 64)), the lowest bit first. Unused
    bits are 0."""
    packed = pack(positive)
    return torch.nn.functional.pad(packed, (0, -packed.shape[1] % 8)).view(torch.int64)


class PopcountLayer(nn.Module):
    """A linear layer whose weights and inputs are signs.

    The inputs are -1 and +1 as numbers, or bits from `to_words`. The outputs are numbers. Only if they are signs and
    the attribute `packs` is True, they are bits in the format of `to_words`, for a PopcountLayer that follows.
    """

    least: Tensor | None
    words: Tensor

    def __init__(self, layer: SignLayer) -> None:
        super().__init__()
        if not isinstance(layer.product, LinearProduct):
            raise ValueError("only linear layers can use bit operations")
        self.kind, self.packs = layer.kind, False
        self.rows, self.fan_in = layer.weight.shape
        self.register_buffer("words", to_words(layer.weight > 0))
        constants = dict(layer.named_buffers())
        least = constants.pop("threshold").to(torch.int32) if layer.kind == "sign" else None
        self.register_buffer("least", least)
        for name, constant in constants.items():
            self.register_buffer(name, constant)

    def forward(self, x: Tensor) -> Tensor:
        words = (x if x.dtype == torch.int64 else to_words(x >= 0)).contiguous()
        if words.shape[1:] != self.words.shape[1:]:
            raise ValueError(f"the layer takes {self.fan_in} signs, got a tensor of the shape {tuple(x.shape)}")
        if self.packs and self.least is not None:
            out = torch.empty(len(words), -(-self.rows // _WORD), dtype=torch.int64)
            self._multiply(words, self.least.data_ptr(), 0, out.data_ptr())
            return out
        products = torch.empty(len(words), self.rows, dtype=torch.int32)
        self._multiply(words, 0, products.data_ptr(), 0)
        constants = {name: one for name, one in self.named_buffers() if name != "words"}
        if self.least is not None:
            constants["threshold"] = self.least
        return concluded(products.float(), self.kind, constants)

    def _multiply(self, words: Tensor, least: int, products: int, bits: int) -> None:
        addresses = words.data_ptr(), self.words.data_ptr(), least, products, bits
        kernel.multiply_signs(len(words), self.rows, self.fan_in, *addresses)


def counting_bits(model: nn.Module) -> nn.Module:
    """Return a copy of a binary network in which linear layers with signs as inputs use bit operations. The copy
    computes exactly the same outputs.

    Args:
        model: an nn.Sequential on a CPU, after `make_binary` and `fold`.

    Raises:
        RuntimeError: if the compiled code is not installed.
    """
    if not available():
        raise RuntimeError(
            "tune_sparsity was installed without a C compiler: the compiled code for bit operations is missing"
        )
    model = copy.deepcopy(model)
    before: SignLayer | PopcountLayer | None = None  # the layer that produces the inputs of `layer`
    for place in list(places(model)):
        if isinstance(layer := place.module, SignLayer):
            if before is not None and before.kind == "sign" and isinstance(layer.product, LinearProduct):
                counting = PopcountLayer(layer)
                setattr(place.parent, place.key, counting)
                if isinstance(before, PopcountLayer):
                    before.packs = True
                before = counting
            else:
                before = layer
    return model
