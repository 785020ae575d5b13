"""Define threshold adaptation: connections with magnitudes below a threshold are dropped, and connections with large
gradients grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tune_sparsity.sparsity.masks import keep_largest
from tune_sparsity.sparsity.schedules import Schedule
from tune_sparsity.sparsity.sphere import unit
from tune_sparsity.sparsity.topology.base import LayerView, count_active, is_due, sparsity_of
from tune_sparsity.sparsity.topology.controller import Feedback


@dataclass
class ThresholdAdaptation:
    """Implements threshold adaptation (in arXiv 2103.16013: semi-pruning with threshold adaptation).

    Drop: an active connection is dropped if |w| < rho x the mean |w| of its neuron's active connections. rho is the
    current value of `threshold` plus `feedback.raised`, at most 1. Therefore the largest connection of a neuron is
    never dropped, and no neuron dies. Updates drop no connections of layers that are not on the sphere. These layers
    are pruned only at the end, in `SparseTraining.project`.

    Grow: gamma x (number of dropped connections) grow. `feedback` computes gamma from the current sparsity. The new
    connections are the connections with the largest |gradient| among those that were inactive before the update. The
    gradients of a neuron are first divided by their L2 norm.

    Args:
        threshold: the schedule of rho without `feedback.raised`, with values in [0, 1].
        feedback: the controller of the sparsity.
        interval: steps between two updates of the masks.

    Attributes:
        applied: rho in the last update, `feedback.raised` included. None before the first update.
    """

    threshold: Schedule
    feedback: Feedback
    interval: int = 40
    applied: float | None = field(default=None, init=False)

    def due(self, step: int, total: int) -> bool:
        return is_due(step, total, self.threshold, self.interval)

    def update(self, layers: Sequence[LayerView], progress: float) -> list[Tensor]:
        masks = [layer.mask for layer in layers]
        rho = self.threshold(progress)
        lowest = self.applied = min(1.0, rho + self.feedback.raised)
        kept = [
            drop_below(layer.log_magnitude(), layer.mask, lowest) if layer.sphere else layer.mask for layer in layers
        ]
        dropped = count_active(masks) - count_active(kept)
        weights = sum(mask.numel() for mask in masks)
        gamma = self.feedback.update(sparsity_of(masks), dropped / weights, rho, progress)
        return grow_by_gradient(kept, masks, [layer.gradient() for layer in layers], round(gamma * dropped))

    def state_dict(self) -> dict[str, Any]:
        return {**self.feedback.state_dict(), "applied": self.applied}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.feedback.load_state_dict(state)
        self.applied = state.get("applied")


def drop_below(log_magnitude: Tensor, mask: Tensor, rho: float) -> Tensor:
    """Return the mask without its small connections. A connection is small if its magnitude is less than rho x the mean
    magnitude of its neuron's active connections.

    Args:
        log_magnitude: log2 of the magnitudes, shape (neurons, fan-in...).
        mask: the current mask, of the same shape.
        rho: the threshold in [0, 1].
    """
    active = mask.flatten(1)
    # Magnitudes relative to the row's largest active one do not underflow.
    logs = log_magnitude.flatten(1).masked_fill(active == 0, -torch.inf)
    magnitude = (logs - logs.amax(1, keepdim=True)).nan_to_num(nan=-torch.inf).exp2()
    mean = magnitude.sum(1, keepdim=True) / active.count_nonzero(1).clamp_min(1).unsqueeze(1)
    return (active * (magnitude >= rho * mean)).view_as(mask)


def grow_by_gradient(
    masks: Sequence[Tensor], before: Sequence[Tensor], gradients: Sequence[Tensor], count: int
) -> list[Tensor]:
    """Return the masks with up to `count` more connections: those with the largest |gradient|. The gradients of each
    neuron are first divided by their L2 norm.

    Args:
        masks: the masks after connections were dropped.
        before: the masks before. A connection that is active in `before` cannot grow, even if it was just dropped.
        gradients: the gradients of all weights. All tensors have the shapes of the masks, (neurons, fan-in...).
    """
    scores = []
    for old, gradient in zip(before, gradients, strict=True):
        score = unit(gradient.flatten(1), 2.0).abs().view_as(old)
        scores.append(score.masked_fill(old != 0, -torch.inf))
    candidates = sum(int((old == 0).sum()) for old in before)
    grown = keep_largest(scores, min(count, candidates), at_least=0)
    return [torch.maximum(mask, new) for mask, new in zip(masks, grown, strict=True)]
