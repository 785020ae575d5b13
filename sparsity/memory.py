"""Check that no two values of a network's parameters share memory. Masks and optimizer steps write into the
parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def check_memory(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError if a trained or prunable parameter has two values in the same memory, or if a prunable weight
    shares memory with another parameter or buffer. One parameter that is used in several places is allowed.

    Args:
        model: the network.
        weights: a dict from the names of the prunable weights to the weights.
    """
    trained = {name: param for name, param in model.named_parameters() if param.requires_grad}
    for name, param in {**trained, **weights}.items():
        if any(size > 1 and stride == 0 for size, stride in zip(param.shape, param.stride(), strict=True)):
            raise ValueError(f"{name} is an expanded tensor, whose numbers share memory: use clone()")
    neighbours = dict[int, list[tuple[str, Tensor]]]()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.layout == torch.strided and not tensor.is_meta and tensor.numel():
            neighbours.setdefault(tensor.untyped_storage().data_ptr(), []).append((name, tensor))
    for name, weight in weights.items():
        if weight.is_meta:
            continue
        for other_name, other in neighbours[weight.untyped_storage().data_ptr()]:
            if other is not weight and _overlap(weight, other):
                raise ValueError(
                    f"{name} and {other_name} are two tensors in the same memory: use clone() for one of them, or "
                    "use the same parameter in both places"
                )


def _overlap(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors with the same storage have a value in common."""
    ends = [_last(first), _last(second)]
    if first.storage_offset() > ends[1] or second.storage_offset() > ends[0] or first.itemsize != second.itemsize:
        return False
    taken = torch.zeros(max(ends) + 1, dtype=torch.bool)
    _at(first, taken).fill_(True)
    return bool(_at(second, taken).any())


def _last(x: Tensor) -> int:
    """Return the position of x's last value in its storage."""
    return int(x.storage_offset()) + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))


def _at(x: Tensor, memory: Tensor) -> Tensor:
    """Return the entries of a flat tensor at the positions that x has in its storage."""
    shape = [size if stride else 1 for size, stride in zip(x.shape, x.stride(), strict=True)]
    return memory.as_strided(shape, x.stride(), x.storage_offset())
