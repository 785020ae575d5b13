"""Measure the state of a sparse training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tune_sparsity.sparsity.hoyer import hoyer
from tune_sparsity.sparsity.layers import Layer
from tune_sparsity.sparsity.topology.base import Topology
from tune_sparsity.sparsity.wrappers import plain_name


class Measures:
    """The measuring methods of SparseTraining, and the attributes that they need."""

    model: nn.Module
    layers: Sequence[Layer]
    masks: list[Tensor]
    topology: Topology
    fixed: bool
    grow_rate: float | None
    lr_sum: float

    def measures(self) -> dict[str, float]:
        """Return the measures of an epoch for the current network.

        Returns:
            sparsity, over the prunable weights; sparsity_total, over all parameters; hoyer; nonzero_weights; travel,
            the sum of the sphere's learning rates so far; and the results of `adaptation`.
        """
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
        """Raise FloatingPointError if a trained parameter is NaN or infinite. The message names the parameter.

        After a step with a NaN or infinite gradient, the parameter stays NaN or infinite. On a CPU, LpSGD checks the
        gradients in each step and raises this error there. On a GPU, such a check would stall the device in each step.
        Call this method once in each epoch instead.
        """
        trained = {name: param.detach() for name, param in self.model.named_parameters() if param.requires_grad}
        finite = torch.stack([param.isfinite().all() for param in trained.values()])
        for name, good in zip(trained, finite.tolist(), strict=True):
            if not good:
                raise FloatingPointError(f"{plain_name(self.model, name)} is NaN or infinite")

    def zeros(self) -> tuple[int, int]:
        """Return (pruned weights, all prunable weights), counted from the masks."""
        total = sum(mask.numel() for mask in self.masks)
        return total - sum(int(mask.sum(dtype=torch.float64)) for mask in self.masks), total

    def sparsity(self) -> float:
        """Return the number of pruned weights divided by that of prunable weights, in [0, 1]."""
        zeros, total = self.zeros()
        return zeros / total

    def by_layer(self) -> dict[str, float]:
        """Return the sparsity of each prunable weight by name, in [0, 1]."""
        return {
            layer.name: 1.0 - int(mask.count_nonzero()) / mask.numel()
            for layer, mask in zip(self.layers, self.masks, strict=True)
        }

    def adaptation(self) -> dict[str, float]:
        """Return measures of the last update of the masks. "threshold" is the drop threshold, as a multiple of the
        neuron's mean magnitude. It is missing if the topology has no threshold. "grow_rate" is the number of grown
        connections divided by that of dropped ones. The result is empty if the masks are fixed."""
        known = {"threshold": getattr(self.topology, "applied", None), "grow_rate": self.grow_rate}
        return {} if self.fixed else {name: value for name, value in known.items() if value is not None}

    def hoyer(self) -> float:
        """Return the mean Hoyer sparsity of all rows in the prunable layers. Pruned weights count as 0."""
        rows = [hoyer(rows) for rows in (layer.rows() for layer in self.layers) if rows.shape[1] > 1]
        return float(torch.cat(rows).mean()) if rows else 0.0
