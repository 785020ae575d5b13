"""How the set of active connections moves during training: what is dropped, what grows back, and when.

A topology sees the layers through `LayerView`, changes their masks, and keeps what state it has in a plain dictionary.
Progress is the fraction of training steps done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tune_sparsity.sparsity.schedules import Schedule

UPDATES = 5
"""How often masks move at least. Where a network loses most of its weights at once, neither lpss nor gmp recovers."""


@dataclass
class LayerView:
    """One prunable layer at an update: its mask, the saliency of every weight (log2 of its magnitude, masked ones
    included where they live on) and the dense gradient, all in the shape (neurons, fan-in...); whether it lies on the
    sphere."""

    name: str
    mask: Tensor
    log_magnitude: Callable[[], Tensor]
    gradient: Callable[[], Tensor]
    sphere: bool = True
    momentum: Callable[[], Tensor] = lambda: torch.zeros(())  # average of the dense gradient, where it is kept


class Topology(Protocol):
    """The rule of one method."""

    def due(self, step: int, total: int) -> bool:
        """Return whether the masks must change at this step. `total` is the number of steps of the training."""

    def update(self, layers: Sequence[LayerView], progress: float) -> list[Tensor]:
        """Return the new masks, in the order and shapes of the layers. One that drops by a threshold keeps it as
        `applied`: a multiple of the neuron's mean magnitude."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def sparsity_of(masks: Sequence[Tensor]) -> float:
    """Zeros over all entries."""
    return 1.0 - count_active(masks) / sum(mask.numel() for mask in masks)


def count_active(masks: Sequence[Tensor]) -> int:
    """Return how many entries are not zero: counted, since a sum of ones in a half precision is not exact."""
    return sum(int(mask.count_nonzero()) for mask in masks)


def is_due(step: int, total: int, schedule: Schedule, interval: int) -> bool:
    """Return whether a step is one of every `interval` between the schedule's begin and end."""
    return step % interval == 0 and schedule.begin <= step / total <= schedule.end


def shortened(interval: int, schedule: Schedule, total: int) -> int:
    """Return the steps between two updates: `interval`, or fewer in a training of so few steps in all that there would
    be less than `UPDATES` between the schedule's begin and end."""
    return max(1, min(interval, int((schedule.end - schedule.begin) * total / UPDATES)))


class Stateless:
    """The state of a topology that has none."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
