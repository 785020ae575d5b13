"""Count the multiplications that a network needs for one example. Multiplications with zero weights can be left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tune_sparsity.sparsity.layers import Layer
from tune_sparsity.sparsity.output_layers import called, modes_kept, ready
from tune_sparsity.sparsity.torch_internals import EagerMode, tree_leaves

_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")


@dataclass(frozen=True)
class Uses:
    """Describes how often a network uses its weights for one example.

    Attributes:
        prunable: a dict with the names of the prunable tensors as keys. Each value is the number of multiplications
            with all weights of the tensor, divided by the number of its weights.
        rest: the number of multiplications with all other parameters, such as weights that stay dense.
    """

    prunable: Mapping[str, float]
    rest: float

    def macs(self, nonzero: Mapping[str, int]) -> int:
        """Return the number of multiply-adds for one example. Multiply-adds with zero weights are left out.

        Args:
            nonzero: a dict from the names of the prunable tensors to the numbers of their nonzero weights.
        """
        return round(self.rest + sum(nonzero[name] * uses for name, uses in self.prunable.items()))


class _Products(EagerMode):
    """Counts the multiplications with each tensor that operations within a `with` block make. The key of a count is the
    address of the tensor's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[int, float] = defaultdict(float)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.name().partition(".")[0]
        if name in _PRODUCTS:
            left, right = args[-2:]
            for factor in (left, right):
                self._add(factor, result.numel() * left.shape[-1])
        elif name == "aten::convolution":
            inputs, weight = args[:2]
            places = inputs if args[6] else result  # in a transposed convolution every input uses all weights
            self._add(weight, weight.numel() * places.shape[0] * places[0, 0].numel())
        elif name == "aten::mkldnn_rnn_layer":  # an LSTM on a CPU: (all inputs, input weights, recurrent weights, ...)
            for weight in args[1:3]:
                self._add(weight, weight.numel() * args[0].shape[:2].numel())
        elif name == "aten::_trilinear":
            self._add(args[1], args[1].numel() * len(args[0]))
        elif name == "aten::embedding":
            self._add(args[0], 0)
        return result

    def _add(self, factor: Tensor, count: int) -> None:
        self.counts[factor.untyped_storage().data_ptr()] += count


def count_uses(
    model: nn.Module, layers: Sequence[Layer], example: Any, forward: Callable[[nn.Module, Any], Any] = called
) -> Uses | None:
    """Return how often a network uses its weights for one example. The network is called once, in evaluation mode.

    Args:
        model: the network.
        layers: its prunable layers.
        example: a batch of inputs.
        forward: a function (network, inputs) -> outputs.

    Returns:
        The uses. The result is None if the network uses a prunable weight only in operations that this module cannot
        count, or not at all.
    """
    examples = next(len(one) for one in tree_leaves(example) if isinstance(one, Tensor))
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it computes a whole layer in one operation
    try:
        with modes_kept(model), ready(model), torch.no_grad(), _Products() as products:
            forward(model, example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    own = {layer.weight.untyped_storage().data_ptr(): layer for layer in layers}
    if not own.keys() <= products.counts.keys():
        return None
    others = {param.untyped_storage().data_ptr() for param in model.parameters()} - own.keys()
    rest = sum(count for memory, count in products.counts.items() if memory in others)
    prunable = {layer.name: products.counts[memory] / layer.weight.numel() / examples for memory, layer in own.items()}
    return Uses(prunable, rest / examples)
