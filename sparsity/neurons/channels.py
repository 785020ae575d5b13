"""Describe to which group of neurons each channel of a module belongs, and remove channels from modules."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tune_sparsity.sparsity.torch_internals import NormBase

KEPT = -1
"""The group of a channel that is never removed."""

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")
_ORDERS = {4: torch.channels_last, 5: torch.channels_last_3d}  # dimensions of a tensor -> its possible memory format


class Channels(NamedTuple):
    """Contains the group of each channel of a module. A group is given as a number (int64, on the CPU). A channel that
    is never removed has the group `KEPT`.

    Attributes:
        outputs: one entry for each output channel.
        inputs: one entry for each input channel. The tensor is empty if the module processes each channel separately (a
            normalisation or PReLU).
    """

    outputs: Tensor
    inputs: Tensor


def channel_counts(module: object) -> tuple[int, int]:
    """Return how many output channels and how many input channels a module has. If the module processes each channel
    separately (a normalisation or PReLU), the number of inputs is 0. If channels cannot be removed from the module,
    both numbers are 0."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, _CONVOLUTIONS):
        return module.out_channels, module.in_channels
    if isinstance(module, NormBase):
        return module.num_features, 0
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return module.num_parameters, 0
    return 0, 0


def has_weight(module: object) -> bool:
    """Return whether a module has a weight that connects inputs with outputs: a linear layer or a convolution. A mask
    of this weight can disconnect inputs."""
    return isinstance(module, (nn.Linear, *_CONVOLUTIONS))


def coupled(module: object) -> list[tuple[list[int], list[int]]]:
    """Return sets of channels of a convolution whose attribute `groups` is larger than 1. All channels of a set must be
    removed together. Each set is a pair: a list of the indices of its output channels, and a list of the indices of its
    input channels. For other modules, there are no sets.

    The function `linked` combines these sets with the sets from the dependency graph.

    In the following, a group is a group of the convolution. If the number of groups is larger than the number of inputs
    of a group, as in a depthwise convolution, a set consists of all inputs and all outputs of one group. Whole groups
    are then removed. Otherwise, there is a set for each position in a group: the outputs at this position in all
    groups, with an empty list of inputs. Likewise, there are sets of inputs. All groups then keep equal sizes.
    """
    if not isinstance(module, _CONVOLUTIONS) or module.groups == 1:
        return []
    sides = [torch.arange(count).view(module.groups, -1) for count in (module.out_channels, module.in_channels)]
    if _loses_groups(module):
        return list(zip(*(side.tolist() for side in sides), strict=True))
    outputs, inputs = (side.T.tolist() for side in sides)
    return [*((channels, []) for channels in outputs), *(([], channels) for channels in inputs)]


def _loses_groups(module: nn.Module) -> bool:
    return (
        isinstance(module, _CONVOLUTIONS) and module.groups > 1 and module.groups > module.in_channels / module.groups
    )


def outputs_first(module: object) -> bool:
    """Return whether the first dimension of a module's weight is the dimension of its outputs. In a transposed
    convolution, it is the dimension of its inputs."""
    return not isinstance(module, _TRANSPOSED)


def weight_groups(module: nn.Module, channels: Channels) -> tuple[Tensor, Tensor]:
    """Return the group of neurons for each index of a weight's first dimension, and for each index of its second
    dimension."""
    first, second = channels if outputs_first(module) else reversed(channels)
    if isinstance(module, _CONVOLUTIONS) and module.groups > 1:
        width = module.weight.shape[1]
        second = torch.full((width,), KEPT) if _loses_groups(module) else second[:width]
    return first, second


@torch.no_grad()
def cut(module: nn.Module, channels: Channels, alive: Tensor) -> None:
    """Remove channels from a module, in place.

    Args:
        channels: the groups of the module's channels.
        alive: for each group, whether it stays, then one more entry, which is True. This entry stands for the group
            `KEPT` (-1): the channels that are never removed.
    """
    kept = [alive[ids].nonzero().flatten() for ids in channels]
    sizes = [len(indices) for indices in kept]
    if has_weight(module):
        first, second = (alive[ids].nonzero().flatten() for ids in weight_groups(module, channels))
        _select(module, "weight", first, second)
        _select(module, "bias", kept[0])
    else:
        for name in _PER_CHANNEL:
            _select(module, name, kept[0])
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = sizes
    elif isinstance(module, _CONVOLUTIONS):
        if _loses_groups(module):
            module.groups = module.groups * sizes[0] // module.out_channels
        module.out_channels, module.in_channels = sizes
    elif isinstance(module, NormBase):
        module.num_features = sizes[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = sizes[0]


def _select(module: nn.Module, name: str, *indices: Tensor) -> None:
    """Keep only the given indices of the first dimensions of a module's tensor, if the module has this tensor."""
    old = getattr(module, name, None)
    if not isinstance(old, Tensor):
        return
    new = old
    for dim, kept in enumerate(indices):
        new = new.index_select(dim, kept.to(old.device))
    for dims, order in _ORDERS.items():
        if old.dim() == dims and not old.is_contiguous() and old.is_contiguous(memory_format=order):
            new = new.contiguous(memory_format=order)
    setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
