"""Define topologies with masks that are chosen only once: before the training (StaticMask) or in the first step of the
training (SnipAtInit)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tune_sparsity.sparsity.masks import keep_largest, zeros_for
from tune_sparsity.sparsity.topology.base import LayerView, Stateless


class StaticMask(Stateless):
    """Never changes the masks of the training."""

    def due(self, step: int, total: int) -> bool:
        return False

    def update(self, layers: Sequence[LayerView], progress: float) -> list[Tensor]:
        return [layer.mask for layer in layers]


@dataclass
class SnipAtInit(Stateless):
    """Prunes once, at the first step: only the connections with the largest |weight x gradient| stay active (SNIP,
    arXiv 1810.02340).

    Args:
        sparsity: the share of all prunable weights that are masked, in [0, 1).
    """

    sparsity: float

    def due(self, step: int, total: int) -> bool:
        return step == 0

    def update(self, layers: Sequence[LayerView], progress: float) -> list[Tensor]:
        scores = [layer.log_magnitude() + layer.gradient().abs().log2() for layer in layers]
        weights = sum(score.numel() for score in scores)
        return keep_largest(scores, weights - zeros_for(self.sparsity, weights))
