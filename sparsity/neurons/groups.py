"""Describe the groups of neurons that are removed together, and compute masks that remove the least important
groups."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from tune_sparsity.sparsity.masks import sparsity_with, zeros_for
from tune_sparsity.sparsity.neurons.channels import KEPT, Channels
from tune_sparsity.sparsity.neurons.importance import Part, importance, mean_squares, over_mean

Enough = Callable[[Sequence[int]], bool]
"""Returns whether enough neurons are removed. The argument is the number of nonzero weights in each layer. If the
function returns True, it must also return True for fewer weights."""


class LayerGroups(NamedTuple):
    """Contains the group of each row and column of a prunable weight. A row or column that is never removed has the
    group `KEPT`.

    Attributes:
        name: the name of the weight.
        shape: the shape of the weight.
        first: the group of each index of the weight's first dimension, int64, on the CPU.
        second: the group of each index of the weight's second dimension.
        outputs_first: whether the first dimension counts the layer's outputs.
        normalised: whether a batch or instance normalisation directly follows the layer, so that the scale of a row has
            no effect.
    """

    name: str
    shape: torch.Size
    first: Tensor
    second: Tensor
    outputs_first: bool
    normalised: bool

    @property
    def outputs(self) -> Tensor:
        """Return the group of each neuron of this layer."""
        return self.first if self.outputs_first else self.second

    @property
    def others(self) -> int:
        """Return the product of all dimensions after the second, which is the number of weights in a kernel."""
        return self.shape[2:].numel()

    def parts(self, log_magnitude: Tensor) -> list[Part]:
        """Return the importance of the groups in this layer as two parts. The first part measures the weights that
        compute the neurons of a group. The second part measures the weights that read the outputs of a group. If a
        normalisation follows the layer, return only the second part."""
        first, second = mean_squares(log_magnitude)
        sides = (Part(first, self.first, not self.outputs_first), Part(second, self.second, self.outputs_first))
        return [side for side in sides if side.reads or not self.normalised]

    def mask(self, alive: Tensor, like: Tensor) -> Tensor:
        """Return the weight's mask, on the device and in the dtype of another tensor.

        Args:
            alive: shape (number of groups + 1,): for each group, whether it stays. The last entry is True, for the
                channels that are never removed (`KEPT`).
            like: the other tensor.
        """
        first, second = (alive[ids].to(like) for ids in (self.first, self.second))
        mask = first[:, None] * second
        return mask.view(*mask.shape, *(1 for _ in self.shape[2:])).expand(self.shape).contiguous()


class Scale(NamedTuple):
    """A normalisation that multiplies its channels by trained factors: its name, and the groups of its channels."""

    name: str
    groups: Tensor


class Whole(NamedTuple):
    """A layer in which some or all neurons cannot be removed: its name, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class NeuronGroups:
    """Describes which neurons of a network are removed together. The inputs that read a removed neuron are removed,
    too.

    Attributes:
        layers: the prunable weights, in the network's order.
        modules: a dict from names of modules to the groups of their channels. It contains the modules from which
            channels can be removed.
        count: the number of groups.
        whole: the layers in which some or all neurons cannot be removed, and the reasons.
        scales: the normalisations that multiply channels by trained factors.
        multiple: the number of groups in a bundle. A bundle is removed as a whole. The groups of a bundle belong to the
            same layers. If the number of groups of these layers cannot be divided by `multiple`, one of their bundles
            is smaller.
    """

    layers: tuple[LayerGroups, ...]
    modules: Mapping[str, Channels]
    count: int
    whole: tuple[Whole, ...]
    scales: tuple[Scale, ...]
    multiple: int = 1

    def bundled(self, multiple: int) -> NeuronGroups:
        """Return a copy of this object in which `multiple` groups form a bundle. A layer that has only one bundle keeps
        all its neurons."""
        if multiple == 1:
            return self
        found = replace(self, multiple=multiple)
        bundles, _ = found._bundles(torch.zeros(self.count, dtype=torch.float64))
        own = {layer.name: layer.outputs for layer in self.layers if (layer.outputs != KEPT).all()}
        whole = [
            Whole(name, f"its {len(ids)} neurons form only one bundle of up to {multiple}")
            for name, ids in own.items()
            if len(bundles[ids].unique()) == 1
        ]
        return replace(found, whole=(*self.whole, *whole))

    @property
    def weights(self) -> int:
        """Return the number of prunable weights."""
        return sum(layer.shape.numel() for layer in self.layers)

    @property
    def highest_sparsity(self) -> float:
        """Return the highest possible sparsity, which results when each layer has its smallest possible number of
        neurons."""
        return sparsity_with(self.most_zeros, self.weights)

    @property
    def most_zeros(self) -> int:
        """Return the number of zeros when each layer has its smallest possible number of neurons."""
        return self.weights - sum(self.fewest)

    @cached_property
    def fewest(self) -> list[int]:
        """Return, for each layer, its smallest possible number of nonzero weights."""
        ranks, removable = self.ranks(torch.zeros(self.count, dtype=torch.float64))
        return self._kept(ranks, removable)

    def masks(
        self,
        log_magnitudes: Sequence[Tensor],
        sparsity: float,
        *,
        scales: Sequence[Tensor] | None = None,
        active: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Return masks with a sparsity of at least `sparsity` over all layers. The masks remove as few bundles of
        groups as possible, the least important first. For the other arguments and the errors see `masks_until`."""
        most = self.weights - zeros_for(sparsity, self.weights)
        return self.masks_until(log_magnitudes, lambda kept: sum(kept) <= most, scales=scales, active=active)

    def masks_until(
        self,
        log_magnitudes: Sequence[Tensor],
        enough: Enough,
        *,
        scales: Sequence[Tensor] | None = None,
        active: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Return masks for which the function `enough` returns True, with one exception. The masks remove as few
        bundles of groups as possible, the least important first. Every layer keeps at least its most important bundle.

        The exception: in some networks, another bundle of a layer has fewer weights than the most important bundle.
        Only masks that keep that other bundle then reach the smallest possible number of nonzero weights. If `enough`
        requires this number, the masks still keep the most important bundles, and thus a few more weights than `enough`
        allows.

        Args:
            log_magnitudes: log2 of the weights' magnitudes: for each layer a tensor in the shape of the weight, on any
                device. NaN is not allowed.
            enough: a function of the number of nonzero weights in each layer. It returns whether enough neurons are
                removed.
            scales: the current factors of the normalisations in the attribute `scales`. If None, all factors are 1.
            active: the current masks of the layers. Groups that these masks have removed are removed first.

        Raises:
            ValueError: if `enough` returns False even for the smallest possible numbers of nonzero weights (`fewest`).
        """
        values = self.importance(log_magnitudes, scales)
        if active is not None:
            values = values.masked_fill(~self.alive(active)[:KEPT], -1.0)
        ranks, removable = self.ranks(values)
        if not enough(self._kept(ranks, removable)) and not enough(self.fewest):
            most = f"{self.highest_sparsity:.1%} of the weights are zero"
            raise ValueError(f"pattern neurons: the sparsity is too high: with the fewest neurons in each layer {most}")
        removed = bisect_left(range(removable), True, key=lambda number: enough(self._kept(ranks, number)))
        alive = ranks >= removed
        return [layer.mask(alive, log) for layer, log in zip(self.layers, log_magnitudes, strict=True)]

    def importance(self, log_magnitudes: Sequence[Tensor], scales: Sequence[Tensor] | None = None) -> Tensor:
        """Return the importance of each group, shape (count,). For the arguments see `masks_until`."""
        factors = [] if scales is None else zip(self.scales, scales, strict=True)
        parts = [Part(over_mean(factor.detach().square()), one.groups, False) for one, factor in factors]
        for layer, log in zip(self.layers, log_magnitudes, strict=True):
            parts += layer.parts(log)
        return importance(parts, self.count)

    def alive(self, masks: Sequence[Tensor]) -> Tensor:
        """Return, for each group, whether it has a weight that is not masked. The result has the shape (count + 1,).
        The last entry is True, for the channels that are never removed (`KEPT`)."""
        alive = torch.zeros(self.count + 1, dtype=torch.bool)
        alive[KEPT] = True
        for layer, mask in zip(self.layers, masks, strict=True):
            kept = (mask != 0).flatten(2).any(2) if mask.dim() > 2 else mask != 0
            for ids, dim in ((layer.first, 1), (layer.second, 0)):
                alive[ids[kept.any(dim).cpu()]] = True
        return alive

    def widest(self, width: float, values: Tensor | None = None) -> Tensor:
        """Choose the groups of a narrower network: of n groups that belong to the same layers, round(n^width) stay.
        Return, for each group, whether it stays. The result has the shape (count + 1,). The last entry is True, for the
        channels that are never removed (`KEPT`).

        Args:
            width: in (0, 1].
            values: the importance of each group. The most important groups stay. If None, the first groups stay.
        """
        alive = torch.ones(self.count + 1, dtype=torch.bool)
        kinds = self._kinds
        for kind in kinds.unique():
            own = (kinds == kind).nonzero().flatten()
            if values is not None:
                own = own[values[own].argsort(descending=True, stable=True)]
            alive[own[max(1, round(len(own) ** width)) :]] = False
        return alive

    def ranks(self, values: Tensor) -> tuple[Tensor, int]:
        """Return two values: a rank for each group, and the number of bundles that can be removed.

        Bundles are removed in the order of their ranks. All groups of a bundle have its rank. In each layer, the most
        important bundle is never removed, so its rank is higher than the ranks of all bundles that can be removed. The
        tensor of ranks has the shape (count + 1,). Its last entry is the highest rank, for the channels that are never
        removed (`KEPT`)."""
        bundles, count = self._bundles(values)
        sums = torch.zeros(count, dtype=values.dtype).index_add_(0, bundles, values)
        places = (sums / bundles.bincount(minlength=count)).argsort(stable=True).argsort()
        needed = torch.zeros(count, dtype=torch.bool)
        for ids in (ids for layer in self.layers for ids in (layer.first, layer.second)):
            if len(ids) and (ids != KEPT).all():
                own = bundles[ids]
                needed[own[places[own].argmax()]] = True
        order = (places + count * needed).argsort()
        ranks = torch.empty(count + 1, dtype=torch.int64)
        ranks[order], ranks[KEPT] = torch.arange(count), count
        return torch.cat([ranks[bundles], ranks[KEPT:]]), count - int(needed.sum())

    def _bundles(self, values: Tensor) -> tuple[Tensor, int]:
        """Return the number of each group's bundle, and the number of bundles. Groups of similar importance are in the
        same bundle. Only the least important bundle may be smaller."""
        if self.multiple == 1 or not self.count:
            return torch.arange(self.count), self.count
        kinds = self._kinds
        bundles, count = torch.empty(self.count, dtype=torch.int64), 0
        for kind in range(int(kinds.max()) + 1):
            own = (kinds == kind).nonzero().flatten()
            own = own[values[own].argsort(stable=True)]
            numbers = (torch.arange(len(own)) + -len(own) % self.multiple) // self.multiple
            bundles[own] = numbers + count
            count += int(numbers[-1]) + 1
        return bundles, count

    @cached_property
    def _kinds(self) -> Tensor:
        """Return a number for each group. Two groups have the same number if each layer computes equally many neurons
        of both."""
        members = torch.zeros(self.count + 1, len(self.layers), dtype=torch.int64)
        for place, layer in enumerate(self.layers):
            members[:, place] = (layer.outputs % (self.count + 1)).bincount(minlength=self.count + 1)
        return members[:KEPT].unique(dim=0, return_inverse=True)[1]

    def _kept(self, ranks: Tensor, removed: int) -> list[int]:
        """Return the number of nonzero weights of each layer after the first `removed` bundles in the order of `ranks`
        are removed."""
        return self.left(ranks >= removed)

    def left(self, alive: Tensor) -> list[int]:
        """Return, for each layer, the number of nonzero weights that are left if only the groups with `alive` = True
        stay."""
        return [int(alive[one.first].sum()) * int(alive[one.second].sum()) * one.others for one in self.layers]
