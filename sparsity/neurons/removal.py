"""Make the smaller ordinary network that computes the same as a masked network."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

from torch import Tensor, nn

from tune_sparsity.sparsity.neurons.channels import cut
from tune_sparsity.sparsity.neurons.groups import NeuronGroups


def smaller(model: nn.Module, groups: NeuronGroups, masks: Sequence[Tensor]) -> nn.Module:
    """Return a copy of a network without its masked neurons. In evaluation mode the copy computes the same. Only
    rounding errors may differ, because sums have another order.

    Args:
        model: the network, whose masked weights are zero.
        groups: its groups, from `neuron_groups`.
        masks: one for each prunable layer, in the shapes of the weights.
    """
    copied = deepcopy(model)
    remove(copied, groups, groups.alive(masks))
    return copied


def remove(model: nn.Module, groups: NeuronGroups, alive: Tensor) -> None:
    """Remove groups of neurons from a network, in place.

    Args:
        alive: for each group whether it stays. A last entry, True, stands for `KEPT`.
    """
    for name, channels in groups.modules.items():
        cut(model.get_submodule(name), channels, alive)
