"""Define the interface of a topology. A topology decides which connections are dropped and grow back, and when.

It sees the layers as `LayerView` objects, returns new masks, and has its state in a plain dictionary. Progress is the
fraction of training steps done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tune_sparsity.sparsity.schedules import Schedule

UPDATES = 5
"""The least number of updates of the masks. A network that loses most weights in one update does not recover."""


@dataclass
class LayerView:
    """A prunable layer during an update. All tensors have the shape (neurons, fan-in...).

    Attributes:
        name: the name of its weight.
        mask: the current mask.
        log_magnitude: returns log2 of the magnitude of every weight. On the sphere it includes masked weights, which
            live on in v.
        gradient: returns the dense gradient.
        sphere: whether the layer lies on the sphere.
        momentum: returns the average of the dense gradient, if the training computes it.
    """

    name: str
    mask: Tensor
    log_magnitude: Callable[[], Tensor]
    gradient: Callable[[], Tensor]
    sphere: bool = True
    momentum: Callable[[], Tensor] = lambda: torch.zeros(())


class Topology(Protocol):
    """The rule of a method for its masks."""

    def due(self, step: int, total: int) -> bool:
        """Return whether the masks must change at this step of `total` steps. The training asks only while its progress
        is below `mask_frozen_at`. Then it projects the network and fixes the masks."""

    def update(self, layers: Sequence[LayerView], progress: float) -> list[Tensor]:
        """Return the new masks, in the order and shapes of the layers. A topology with a threshold sets its attribute
        `applied` to the threshold, a multiple of the neuron's mean magnitude."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def sparsity_of(masks: Sequence[Tensor]) -> float:
    """Return the fraction of zeros in all masks."""
    return 1.0 - count_active(masks) / sum(mask.numel() for mask in masks)


def count_active(masks: Sequence[Tensor]) -> int:
    """Return the number of entries that are not zero. A sum of ones would not be exact in half precision."""
    return sum(int(mask.count_nonzero()) for mask in masks)


def is_due(step: int, total: int, schedule: Schedule, interval: int) -> bool:
    """Return whether a step is a multiple of `interval` and lies between the schedule's begin and end."""
    return step % interval == 0 and schedule.begin <= step / total <= schedule.end


def shortened(interval: int, schedule: Schedule, total: int) -> int:
    """Return the steps between two updates. It is `interval`, or fewer if there would be less than `UPDATES` updates
    between the schedule's begin and end."""
    return max(1, min(interval, int((schedule.end - schedule.begin) * total / UPDATES)))


class Stateless:
    """Implements the state of a topology that has none."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
