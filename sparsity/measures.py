"""What a sparse training tells of itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tune_sparsity.sparsity.hoyer import hoyer
from tune_sparsity.sparsity.layers import Layer
from tune_sparsity.sparsity.topology.base import Topology
from tune_sparsity.sparsity.wrappers import plain_name


class Measures:
    """The questions that a SparseTraining answers, and what of it they need."""

    model: nn.Module
    layers: Sequence[Layer]
    masks: list[Tensor]
    topology: Topology
    fixed: bool
    grow_rate: float | None
    lr_sum: float

    def measures(self) -> dict[str, float]:
        """Return what an epoch reports of the network as it stands: sparsity and sparsity_total, over the prunable and
        over all weights; hoyer; nonzero_weights; travel (the sum of the sphere's learning rates so far); and
        `adaptation`."""
        zeros, weights = self.zeros()
        return {
            "sparsity": zeros / weights,
            "sparsity_total": zeros / sum(param.numel() for param in self.model.parameters()),
            "hoyer": self.hoyer(),
            "nonzero_weights": weights - zeros,
            "travel": self.lr_sum,
            **self.adaptation(),
        }

    def check_finite(self) -> None:
        """Raises FloatingPointError, with its name, if a trained parameter of the network is NaN or infinite.

        A step on such a gradient leaves its parameter so for good. LpSGD raises in the step itself on a CPU; on a GPU
        that would stall the device, so ask here once an epoch: it waits for the device once.
        """
        trained = {name: param.detach() for name, param in self.model.named_parameters() if param.requires_grad}
        finite = torch.stack([param.isfinite().all() for param in trained.values()])
        for name, good in zip(trained, finite.tolist(), strict=True):
            if not good:
                raise FloatingPointError(f"{plain_name(self.model, name)} is NaN or infinite")

    def zeros(self) -> tuple[int, int]:
        """(pruned weights, all prunable weights), counted from the masks."""
        total = sum(mask.numel() for mask in self.masks)
        return total - sum(int(mask.sum(dtype=torch.float64)) for mask in self.masks), total

    def sparsity(self) -> float:
        """Pruned weights over prunable weights, in [0, 1]."""
        zeros, total = self.zeros()
        return zeros / total

    def by_layer(self) -> dict[str, float]:
        """Return the sparsity of each prunable weight, by its name."""
        return {
            layer.name: 1.0 - int(mask.count_nonzero()) / mask.numel()
            for layer, mask in zip(self.layers, self.masks, strict=True)
        }

    def adaptation(self) -> dict[str, float]:
        """Return how the masks moved in the last update: "threshold", a multiple of the neuron's mean magnitude, if the
        topology drops by one, and "grow_rate", connections grown over those dropped. Empty while masks do not move."""
        known = {"threshold": getattr(self.topology, "applied", None), "grow_rate": self.grow_rate}
        return {} if self.fixed else {name: value for name, value in known.items() if value is not None}

    def hoyer(self) -> float:
        """Mean Hoyer sparsity of the prunable layers' rows, active weights only in the sense that pruned ones are 0."""
        rows = [hoyer(rows) for rows in (layer.rows() for layer in self.layers) if rows.shape[1] > 1]
        return float(torch.cat(rows).mean()) if rows else 0.0
