"""Drop and grow connections at a constant sparsity, as SET, RigL and sparse momentum do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from tune_sparsity.sparsity.distributions import rounded
from tune_sparsity.sparsity.schedules import Schedule
from tune_sparsity.sparsity.topology.base import LayerView, is_due


@dataclass
class DropGrow:
    """Replaces connections every `interval` steps: each layer drops its connections with the smallest magnitudes. Then
    the same number of connections grows in the whole network.

    With growth "random", this is SET (Mocanu et al. 2018): a layer gets as many new connections as it has dropped, at
    random places. With "gradient", this is RigL (Evci et al. 2020, arXiv 1911.11134): a layer also gets as many new
    connections as it has dropped, and its inactive connections with the largest |gradient| grow. With "momentum", this
    is sparse momentum (Dettmers and Zettlemoyer 2019, arXiv 1907.04840): a layer gets new connections in proportion to
    the mean |momentum| of its active connections, and its inactive connections with the largest |momentum| grow. As in
    these papers, a dropped connection may grow in the same update. The weight of a grown connection is zero at first.

    Args:
        fraction: the share of a layer's active connections that an update drops, as a schedule over the training.
        growth: "random", "gradient" or "momentum".
        interval: steps between two updates.
        generator: draws the random connections, on the CPU.
    """

    fraction: Schedule
    growth: str
    interval: int
    generator: Generator

    @property
    def needs_momentum(self) -> bool:
        """Return whether the training must compute a moving average of the gradient for `LayerView.momentum`."""
        return self.growth == "momentum"

    def due(self, step: int, total: int) -> bool:
        # No update is due at the first step, because the magnitudes of untrained weights mean nothing.
        return step > 0 and is_due(step, total, self.fraction, self.interval)

    def update(self, layers: Sequence[LayerView], progress: float) -> list[Tensor]:
        share = self.fraction(progress)
        kept = [drop_smallest(layer, share) for layer in layers]
        dropped = [int(layer.mask.count_nonzero() - k.count_nonzero()) for layer, k in zip(layers, kept, strict=True)]
        room = [int((mask == 0).sum()) for mask in kept]
        if self.growth == "momentum":
            dropped = _by_momentum(layers, sum(dropped), room)
        return [grow(mask, self._score(layer), n) for mask, layer, n in zip(kept, layers, dropped, strict=True)]

    def _score(self, layer: LayerView) -> Tensor:
        if self.growth == "random":
            return torch.rand(layer.mask.shape, generator=self.generator).to(layer.mask.device)
        return (layer.gradient() if self.growth == "gradient" else layer.momentum()).abs()

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


def drop_smallest(layer: LayerView, share: float) -> Tensor:
    """Return the layer's mask without the connections with the smallest magnitudes. `share` is the fraction of the
    active connections that are dropped. Their number is rounded."""
    active = layer.mask != 0
    count = round(share * int(active.sum()))
    scores = layer.log_magnitude().masked_fill(~active, torch.inf).flatten()
    mask = layer.mask.clone().flatten()
    mask[scores.topk(count, largest=False, sorted=False).indices] = 0.0
    return mask.view_as(layer.mask)


def grow(mask: Tensor, score: Tensor, count: int) -> Tensor:
    """Return the mask with `count` more connections: the inactive connections with the largest scores.

    Args:
        score: numbers >= 0 in the mask's shape.
    """
    flat = mask.clone().flatten()
    flat[score.float().masked_fill(mask != 0, -1.0).flatten().topk(count, sorted=False).indices] = 1.0
    return flat.view_as(mask)


def _by_momentum(layers: Sequence[LayerView], total: int, room: Sequence[int]) -> list[int]:
    """Return the number of new connections for each layer, in proportion to the mean |momentum| of its active
    connections. If a layer has too few inactive connections, the other layers get its remaining new connections.

    Args:
        total: the sum of these numbers.
        room: the number of inactive connections in each layer.
    """
    strength = [float((layer.momentum() * layer.mask).abs().sum() / layer.mask.sum().clamp_min(1)) for layer in layers]
    given, open_layers = [0.0] * len(layers), set(range(len(layers)))
    left = float(total)
    while left > 1e-6 and open_layers:
        whole = sum(strength[i] for i in open_layers)
        parts = {i: left * (strength[i] / whole if whole > 0 else 1 / len(open_layers)) for i in open_layers}
        for i, part in parts.items():
            taken = min(part, room[i] - given[i])
            given[i] += taken
            left -= taken
            if given[i] >= room[i]:
                open_layers.discard(i)
    return rounded(given, room, total)
