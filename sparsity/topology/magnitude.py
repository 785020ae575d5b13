"""Prune gradually by magnitude: keep the largest weights, at a sparsity that rises by a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from tune_sparsity.sparsity.schedules import Schedule
from tune_sparsity.sparsity.selection import Selection
from tune_sparsity.sparsity.topology.base import LayerView, Stateless, is_due


@dataclass
class GlobalMagnitude(Stateless):
    """Keeps the largest weights of all layers, at a sparsity that follows a schedule. Masked weights come back if their
    magnitude becomes large enough. With a cubic schedule this is gradual magnitude pruning (arXiv 1710.01878)."""

    sparsity: Schedule
    interval: int = 40
    selection: Selection = field(default_factory=Selection)

    def due(self, step: int, total: int) -> bool:
        return is_due(step, total, self.sparsity, self.interval)

    def update(self, layers: Sequence[LayerView], progress: float) -> list[Tensor]:
        on_sphere = [layer.sphere for layer in layers]
        return self.selection([layer.log_magnitude() for layer in layers], on_sphere, self.sparsity(progress))
