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
    """Adds methods to SparseTraining that measure a training, for example its sparsity."""

    model: nn.Module
    layers: Sequence[Layer]
    masks: list[Tensor]
    topology: Topology
    fixed: bool
    grow_rate: float | None
    lr_sum: float

    def measures(self) -> dict[str, float]:
        """Return a dict from the names of the following measures to their values for the current network.

        Returns:
            sparsity: the fraction of the prunable weights that are masked.
            sparsity_total: the number of masked weights divided by the number of all parameters.
            hoyer: the mean Hoyer sparsity of the rows.
            nonzero_weights: the number of prunable weights that are not masked.
            travel: the sum of the learning rates on the Lp sphere over all steps so far.
            threshold, grow_rate: see `adaptation`. The dict may lack these two measures.
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

        One step with a NaN or infinite gradient is enough to make a parameter NaN or infinite for all later steps. Call
        this method once in each epoch to notice this. On a CPU, LpSGD also checks the gradients in each step and raises
        this error. On a GPU it does not, because such a check would stall the device in each step.
        """
        trained = {name: param.detach() for name, param in self.model.named_parameters() if param.requires_grad}
        finite = torch.stack([param.isfinite().all() for param in trained.values()])
        for name, good in zip(trained, finite.tolist(), strict=True):
            if not good:
                raise FloatingPointError(f"{plain_name(self.model, name)} is NaN or infinite")

    def zeros(self) -> tuple[int, int]:
        """Return the numbers of masked weights and of all prunable weights."""
        total = sum(mask.numel() for mask in self.masks)
        return total - sum(int(mask.sum(dtype=torch.float64)) for mask in self.masks), total

    def sparsity(self) -> float:
        """Return the fraction of the prunable weights that are masked, in [0, 1]."""
        zeros, total = self.zeros()
        return zeros / total

    def by_layer(self) -> dict[str, float]:
        """Return a dict from the names of the prunable tensors to their sparsities, in [0, 1]."""
        return {
            layer.name: 1.0 - int(mask.count_nonzero()) / mask.numel()
            for layer, mask in zip(self.layers, self.masks, strict=True)
        }

    def adaptation(self) -> dict[str, float]:
        """Return a dict with measures of the last update of the masks. "threshold" is the drop threshold: a connection
        was dropped if its magnitude was less than the threshold times the mean magnitude of its neuron's active
        connections. Methods without such a threshold do not have this measure. "grow_rate" is the number of new
        connections divided by the number of dropped connections. The dict is empty if the masks are fixed."""
        known = {"threshold": getattr(self.topology, "applied", None), "grow_rate": self.grow_rate}
        return {} if self.fixed else {name: value for name, value in known.items() if value is not None}

    def hoyer(self) -> float:
        """Return the mean Hoyer sparsity of all rows in the prunable layers, in [0, 1]. Masked weights are included as
        zeros."""
        rows = [hoyer(rows) for rows in (layer.rows() for layer in self.layers) if rows.shape[1] > 1]
        return float(torch.cat(rows).mean()) if rows else 0.0
