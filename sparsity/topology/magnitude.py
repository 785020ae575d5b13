"""Define gradual magnitude pruning: small weights are masked, and the sparsity follows a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from tune_sparsity.sparsity.schedules import Schedule
from tune_sparsity.sparsity.selection import Selection
from tune_sparsity.sparsity.topology.base import LayerView, Stateless, is_due


@dataclass
class GlobalMagnitude(Stateless):
    """Masks the smallest weights every `interval` steps. The sparsity follows a schedule. With a cubic schedule, this
    is gradual magnitude pruning (arXiv 1710.01878). On the sphere, masked weights still have a magnitude (see
    `LayerView`). They become active again if this magnitude is large enough at a later update.

    Args:
        sparsity: the schedule of the sparsity, with values in [0, 1).
        interval: steps between two updates of the masks.
        selection: compares the weights of all layers and chooses the weights that stay active.
    """

    sparsity: Schedule
    interval: int = 40
    selection: Selection = field(default_factory=Selection)

    def due(self, step: int, total: int) -> bool:
        return is_due(step, total, self.sparsity, self.interval)

    def update(self, layers: Sequence[LayerView], progress: float) -> list[Tensor]:
        on_sphere = [layer.sphere for layer in layers]
        return self.selection([layer.log_magnitude() for layer in layers], on_sphere, self.sparsity(progress))
