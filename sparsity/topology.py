"""How the set of active connections moves during training: what is dropped, what grows back, and when.

A topology sees the layers through `Pruned`, changes their masks, and keeps what state it has in a plain dictionary.
Progress is the fraction of training steps done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from tune_sparsity.sparsity.distributions import most_salient
from tune_sparsity.sparsity.feedback import Feedback
from tune_sparsity.sparsity.masks import keep_largest, zeros_for
from tune_sparsity.sparsity.schedules import Schedule
from tune_sparsity.sparsity.sphere import unit


@dataclass
class Pruned:
    """One prunable layer at an update: its mask, the saliency of every weight (log2 of its magnitude, masked ones
    included where they live on) and the dense gradient, all in the weight's shape; whether it lies on the sphere."""

    name: str
    mask: Tensor
    saliency: Callable[[], Tensor]
    gradient: Callable[[], Tensor]
    sphere: bool = True
    momentum: Callable[[], Tensor] = lambda: torch.zeros(())  # average of the dense gradient, where it is kept


class Topology(Protocol):
    """The rule of one method."""

    def due(self, step: int, total: int) -> bool:
        """Whether the masks are to change at this step of `total`."""

    def update(self, layers: Sequence[Pruned], progress: float) -> list[Tensor]:
        """The new masks, in the order of the layers. One that drops by a threshold keeps it as `applied`: a multiple of
        the neuron's mean magnitude."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def sparsity_of(masks: Sequence[Tensor]) -> float:
    """Zeros over all entries."""
    return 1.0 - _active(masks) / sum(mask.numel() for mask in masks)


def _active(masks: Sequence[Tensor]) -> int:
    """How many entries are not zero: counted, since a sum of ones in a half precision is not exact."""
    return sum(int(mask.count_nonzero()) for mask in masks)


def is_due(step: int, total: int, schedule: Schedule, interval: int) -> bool:
    """Whether a step is one of every `interval` between the schedule's begin and end."""
    return step % interval == 0 and schedule.begin <= step / total <= schedule.end


class Stateless:
    """The state of a topology that has none."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Fixed(Stateless):
    """The masks that training began with."""

    def due(self, step: int, total: int) -> bool:
        return False

    def update(self, layers: Sequence[Pruned], progress: float) -> list[Tensor]:
        return [layer.mask for layer in layers]


@dataclass
class AtStart(Stateless):
    """Keeps the connections of largest |weight x gradient| at the first step (SNIP, arXiv 1810.02340)."""

    sparsity: float

    def due(self, step: int, total: int) -> bool:
        return step == 0

    def update(self, layers: Sequence[Pruned], progress: float) -> list[Tensor]:
        scores = [layer.saliency() + layer.gradient().abs().log2() for layer in layers]
        weights = sum(score.numel() for score in scores)
        return keep_largest(scores, weights - zeros_for(self.sparsity, weights))


@dataclass
class Ramp(Stateless):
    """Keeps the most salient weights over all layers, at a sparsity that follows a schedule; masked weights that gain
    saliency come back. With magnitudes and a cubic schedule this is gradual magnitude pruning (arXiv 1710.01878)."""

    sparsity: Schedule
    interval: int = 40

    def due(self, step: int, total: int) -> bool:
        return is_due(step, total, self.sparsity, self.interval)

    def update(self, layers: Sequence[Pruned], progress: float) -> list[Tensor]:
        scores = [layer.saliency() for layer in layers]
        return most_salient(scores, [layer.sphere for layer in layers], self.sparsity(progress))


@dataclass
class ThresholdAdaptation:
    """Semi-pruning with threshold adaptation (arXiv 2103.16013, section 3 of the method).

    Drop: an active connection of a neuron goes where |w| < rho x the mean |w| of the neuron's active connections,
    rho following `threshold`; layers off the sphere keep theirs until the projection. With rho <= 1 the largest
    connection of a neuron always stays, so no neuron dies.
    Grow: gamma x (number dropped) of the connections inactive before, those of largest |gradient| after dividing by
    the neuron's norm, come back. gamma is what `feedback` answers to the measured sparsity.
    """

    threshold: Schedule
    feedback: Feedback
    interval: int = 40
    applied: float | None = field(default=None, init=False)  # the threshold of the last update

    def due(self, step: int, total: int) -> bool:
        return is_due(step, total, self.threshold, self.interval)

    def update(self, layers: Sequence[Pruned], progress: float) -> list[Tensor]:
        masks = [layer.mask for layer in layers]
        rho = self.threshold(progress)
        lowest = self.applied = min(1.0, rho + self.feedback.raised)
        kept = [drop_below(layer.saliency(), layer.mask, lowest) if layer.sphere else layer.mask for layer in layers]
        dropped = _active(masks) - _active(kept)
        weights = sum(mask.numel() for mask in masks)
        gamma = self.feedback.update(sparsity_of(masks), dropped / weights, rho, progress)
        return grow_by_gradient(kept, masks, [layer.gradient() for layer in layers], round(gamma * dropped))

    def state_dict(self) -> dict[str, Any]:
        return {**self.feedback.state_dict(), "applied": self.applied}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.feedback.load_state_dict(state)
        self.applied = state.get("applied")


def drop_below(saliency: Tensor, mask: Tensor, rho: float) -> Tensor:
    """The mask without the active connections whose magnitude 2^saliency is below rho x the neuron's active mean."""
    active = mask.flatten(1)
    # Relative to the row's largest active magnitude, so that nothing underflows.
    logs = saliency.flatten(1).masked_fill(active == 0, -torch.inf)
    magnitude = (logs - logs.amax(1, keepdim=True)).nan_to_num(nan=-torch.inf).exp2()
    mean = magnitude.sum(1, keepdim=True) / active.count_nonzero(1).clamp_min(1).unsqueeze(1)
    return (active * (magnitude >= rho * mean)).view_as(mask)


def grow_by_gradient(
    masks: Sequence[Tensor], before: Sequence[Tensor], gradients: Sequence[Tensor], count: int
) -> list[Tensor]:
    """The masks with `count` more connections: of those inactive `before`, the ones of largest |gradient|, each
    neuron's gradient divided by its norm. What this update dropped cannot come back in it."""
    scores = []
    for old, gradient in zip(before, gradients, strict=True):
        score = unit(gradient.flatten(1), 2.0).abs().view_as(old)
        scores.append(score.masked_fill(old != 0, -torch.inf))
    candidates = sum(int((old == 0).sum()) for old in before)
    grown = keep_largest(scores, min(count, candidates), at_least=0)
    return [torch.maximum(mask, new) for mask, new in zip(masks, grown, strict=True)]
