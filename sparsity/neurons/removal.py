"""Make a smaller network that computes the same outputs as a network with masked neurons."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

from torch import Tensor, nn

from tune_sparsity.sparsity.neurons.channels import cut
from tune_sparsity.sparsity.neurons.groups import NeuronGroups


def smaller(model: nn.Module, groups: NeuronGroups, masks: Sequence[Tensor]) -> nn.Module:
    """Return a copy of a network without its masked neurons. In evaluation mode the copy computes the same outputs.
    Only rounding errors may differ, because sums have another order.

    Args:
        model: the network, whose masked weights are zero.
        groups: the groups of the network's neurons, from `neuron_groups`.
        masks: one for each prunable layer, in the shapes of the weights.
    """
    copied = deepcopy(model)
    remove(copied, groups, groups.alive(masks))
    return copied


def remove(model: nn.Module, groups: NeuronGroups, alive: Tensor) -> None:
    """Remove groups of neurons from a network, in place.

    Args:
        alive: shape (number of groups + 1,): for each group, whether it stays. The last entry is True, for the channels
            that are never removed (`KEPT`).
    """
    for name, channels in groups.modules.items():
        cut(model.get_submodule(name), channels, alive)
