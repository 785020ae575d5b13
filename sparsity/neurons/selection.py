"""Choose the neurons that are not removed. `Selection` chooses single weights instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from tune_sparsity.sparsity.cost.multiply_adds import Uses
from tune_sparsity.sparsity.layers import Layer, LayerRules, has_normalisation, turned_back
from tune_sparsity.sparsity.neurons.groups import NeuronGroups
from tune_sparsity.sparsity.neurons.narrow import narrow_selection
from tune_sparsity.sparsity.patterns import Neurons
from tune_sparsity.sparsity.selection import Selection, selection_for


@dataclass(frozen=True, kw_only=True)
class NeuronSelection(Selection):
    """Chooses the neurons of a network that are not removed.

    Attributes:
        groups: describes which neurons of the network are removed together.
        layers: the prunable layers of the network.
        scales: the factors of the normalisations in `groups.scales`.
        uses: the number of multiply-adds with each weight of the network. If given, a sparsity is the number of
            multiply-adds that the masks avoid, divided by the number of all multiply-adds with prunable weights. If
            None, a sparsity is the share of zeros.
    """

    groups: NeuronGroups
    layers: Sequence[Layer]
    scales: Sequence[Tensor]
    uses: Uses | None = None

    def __call__(
        self,
        log_magnitudes: Sequence[Tensor],
        on_sphere: Sequence[bool],
        sparsity: float,
        active: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Return masks that remove whole neurons. For the arguments see `Selection`. The sparsity of the masks is at
        least `sparsity`. It would be lower with one more neuron (or bundle of neurons). If `uses` is given and no
        network can save this share of multiply-adds, the masks are those of the smallest network."""
        logs = turned_back(self.layers, log_magnitudes)
        before = None if active is None else turned_back(self.layers, active)
        if self.uses is None:
            masks = self.groups.masks(logs, sparsity, scales=self.scales, active=before)
        else:
            costs = [self.uses.prunable[layer.name] for layer in self.layers]
            most = (1 - sparsity) * sum(cost * log.numel() for cost, log in zip(costs, logs, strict=True))
            most *= 1 + 1e-12  # allows for rounding errors in the sums

            def used(kept: Sequence[int]) -> float:
                return sum(cost * count for cost, count in zip(costs, kept, strict=True))

            most = max(most, used(self.groups.fewest))

            def enough(kept: Sequence[int]) -> bool:
                return used(kept) <= most

            masks = self.groups.masks_until(logs, enough, scales=self.scales, active=before)
        return [layer.turned(mask) for layer, mask in zip(self.layers, masks, strict=True)]


def selection_of(
    model: nn.Module,
    layers: Sequence[Layer],
    distribution: str,
    rules: LayerRules,
    sparsity: float,
    *,
    width: float = 1.0,
    trained: bool = False,
) -> Selection:
    """Return the selection for a network. It selects neurons if the pattern is `Neurons`, otherwise weights.

    Args:
        sparsity: the final sparsity.
        width, trained: see `narrow_selection`.

    Raises:
        ValueError: if the pattern is `Neurons` and the groups of the network are not known. For a width less than 1,
            see the errors of `narrow_selection`.
    """
    pattern = rules.pattern
    if width < 1:
        return narrow_selection(model, layers, distribution, rules, sparsity, width, trained=trained)
    if not isinstance(pattern, Neurons):
        shapes = [layer.turned(layer.weight).shape for layer in layers]
        return selection_for(model, distribution, pattern, shapes=shapes, sparsity=sparsity)
    groups = pattern.groups
    if not isinstance(groups, NeuronGroups):
        raise ValueError(
            "pattern neurons: the network's neurons are not known: give the rules that with_neurons returns"
        )
    scales = [model.get_parameter(f"{scale.name}.weight") for scale in groups.scales]
    normalised = has_normalisation(model)
    assert pattern.uses is None or isinstance(pattern.uses, Uses)
    return NeuronSelection(
        groups=groups, layers=layers, scales=scales, uses=pattern.uses, normalised=normalised, pattern=pattern
    )


def sparsity_of_macs(uses: Uses, layers: Sequence[Layer], macs: int) -> float:
    """Return how sparse the prunable weights must be so that the whole network needs `macs` multiply-adds. The result
    is a share of the multiply-adds with prunable weights: those that must be avoided. The share is more than 1 if the
    weights that are not prunable already need more than `macs`."""
    prunable = sum(uses.prunable[layer.name] * layer.weight.numel() for layer in layers)
    return max(0.0, 1 - (macs - uses.rest) / prunable)
