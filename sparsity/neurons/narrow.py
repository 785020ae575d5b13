"""Train only some of a network's neurons. The weights of the other neurons are zero from the beginning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tune_sparsity.sparsity.layers import Layer, LayerRules
from tune_sparsity.sparsity.masks import sparsity_with, zeros_for
from tune_sparsity.sparsity.neurons.groups import NeuronGroups
from tune_sparsity.sparsity.patterns import UNSTRUCTURED
from tune_sparsity.sparsity.selection import Selection, selection_for
from tune_sparsity.sparsity.topology.base import count_active


class Box(NamedTuple):
    """Describes the part of a layer that a narrower network has: the weights between the neurons that stay.

    Attributes:
        rows: the indices of the layer's neurons that stay.
        inputs: the indices of the layer's inputs that stay, because the neurons that compute them stay. The inputs are
            the second dimension of the shape (neurons, inputs, kernel...). None if the shape has one dimension.
    """

    rows: Tensor
    inputs: Tensor | None

    def inside(self, tensor: Tensor) -> Tensor:
        """Return this part of a tensor whose shape is (neurons, inputs, kernel...)."""
        part = tensor[self.rows]
        return part if self.inputs is None else part[:, self.inputs]

    def outside(self, part: Tensor, like: Tensor) -> Tensor:
        """Undo `inside`: return a tensor of the shape of `like` that contains `part`, and zeros everywhere else."""
        whole = torch.zeros(like.shape, dtype=part.dtype, device=part.device)
        if self.inputs is None:
            whole[self.rows] = part
        else:
            whole[self.rows[:, None], self.inputs] = part
        return whole


@dataclass(frozen=True, kw_only=True)
class NarrowSelection(Selection):
    """Chooses weights as `Selection` does, but only weights between the neurons of a narrower network.

    Attributes:
        allowed: for each layer a mask of the weights that can be chosen, in the shape of the weight.
        boxes: for each layer, the neurons and inputs between which these weights lie.
    """

    allowed: Sequence[Tensor]
    boxes: Sequence[Box]

    def __call__(
        self,
        log_magnitudes: Sequence[Tensor],
        on_sphere: Sequence[bool],
        sparsity: float,
        active: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Return masks with ones only for weights of the narrower network. `sparsity` is the fraction of zeros in the
        masks of the whole layers. If the narrower network has fewer weights than this leaves, return masks with ones
        for all its weights."""
        parts = [box.inside(one) for box, one in zip(self.boxes, log_magnitudes, strict=True)]
        before = None if active is None else [box.inside(one) for box, one in zip(self.boxes, active, strict=True)]
        within = _within(sparsity, log_magnitudes, parts)
        chosen = super().__call__(parts, on_sphere, within, before)
        return [box.outside(mask, like) for box, mask, like in zip(self.boxes, chosen, log_magnitudes, strict=True)]

    def first(self, masks: Sequence[Tensor]) -> list[Tensor]:
        return [mask * allowed.to(mask) for mask, allowed in zip(masks, self.allowed, strict=True)]

    def in_whole(self, sparsity: float) -> float:
        weights, inside = sum(mask.numel() for mask in self.allowed), count_active(self.allowed)
        return sparsity_with(weights - inside + zeros_for(sparsity, inside), weights)


def narrow_selection(
    model: nn.Module,
    layers: Sequence[Layer],
    distribution: str,
    rules: LayerRules,
    sparsity: float,
    width: float,
    *,
    trained: bool,
) -> Selection:
    """Return a selection for a training that begins with fewer neurons. Set the weights of all other neurons to zero.
    If the network is untrained, also multiply the remaining weights of each neuron by a factor. With this factor, the
    output of the neuron has the same variance as in the whole network.

    Args:
        rules: the rules that select the prunable weights. Their attribute `neurons` has the groups of the network's
            neurons.
        sparsity: the final sparsity: the fraction of zeros in the layers of the whole network. All weights of the other
            neurons count as zeros.
        width: a number in (0, 1). A layer of n neurons begins with n^width neurons.
        trained: whether the network was trained before. The most important neurons of a trained network stay. Of an
            untrained network, the first neurons of each layer stay.

    Raises:
        ValueError: if the neurons are not known, or if `rules` has a pattern of zeros, such as "2:4".
    """
    if rules.pattern != UNSTRUCTURED:
        raise ValueError(f"width: a width below 1 does not work with the pattern {rules.pattern}: give the width 1")
    groups = rules.neurons
    if not isinstance(groups, NeuronGroups):
        raise ValueError("width: the network's neurons are not known: give an example of its inputs, or the width 1")
    logs = [layer.weight.detach().abs().log2() for layer in layers]
    alive = groups.widest(width, groups.importance(logs) if trained else None)
    allowed = [one.mask(alive, log) for one, log in zip(groups.layers, logs, strict=True)]
    _begin(layers, allowed, trained=trained)
    turned = [layer.turned(mask) for layer, mask in zip(layers, allowed, strict=True)]
    boxes = [_box(mask) for mask in turned]
    parts = [box.inside(mask) for box, mask in zip(boxes, turned, strict=True)]
    within = _within(sparsity, turned, parts)
    chosen = selection_for(model, distribution, shapes=[part.shape for part in parts], sparsity=within)
    same = {own.name: getattr(chosen, own.name) for own in fields(chosen)}
    return NarrowSelection(allowed=allowed, boxes=boxes, **same)


@torch.no_grad()
def _begin(layers: Sequence[Layer], allowed: Sequence[Tensor], *, trained: bool) -> None:
    """Set all weights that are not allowed to zero. In an untrained network, also multiply the weights of a neuron by
    sqrt(all inputs / remaining inputs), so that its outputs keep their variance."""
    for layer, one in zip(layers, allowed, strict=True):
        mask, weight = layer.turned(one).flatten(1), layer.turned(layer.weight)
        factors = mask if trained else mask * (mask.shape[1] / mask.sum(1, keepdim=True).clamp_min(1)).sqrt()
        layer.weight.copy_(layer.turned_back((weight.flatten(1) * factors).view_as(weight)))


def _within(sparsity: float, whole: Sequence[Tensor], parts: Sequence[Tensor]) -> float:
    """Return the sparsity of the parts that leaves as many weights as `sparsity` leaves in the whole tensors."""
    weights, inside = (sum(one.numel() for one in those) for those in (whole, parts))
    return sparsity_with(max(0, inside - (weights - zeros_for(sparsity, weights))), inside)


def _box(allowed: Tensor) -> Box:
    """Return the part of a layer where a mask of the shape (neurons, inputs, kernel...) is not 0."""
    rows = allowed.flatten(1).any(1) if allowed.dim() > 1 else allowed != 0
    inputs = allowed.movedim(1, 0).flatten(1).any(1).nonzero().flatten() if allowed.dim() > 1 else None
    return Box(rows.nonzero().flatten(), inputs)
