"""Define the interface of a topology. A topology decides which connections are dropped, which connections grow, and at
which steps.

A topology gets the layers as `LayerView` objects and returns new masks. Its state is a plain dictionary. Progress is
the fraction of the training steps that are done.
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
        log_magnitude: returns log2 of the magnitude of every weight. On the sphere, masked weights have a magnitude
            too, because v keeps a value for them.
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
        """Return whether the masks must change at this step of `total` steps. The training calls this method only while
        its progress is below `mask_frozen_at`. After that, the masks are fixed."""

    def update(self, layers: Sequence[LayerView], progress: float) -> list[Tensor]:
        """Return the new masks, in the order and shapes of the layers. A topology with a threshold sets its attribute
        `applied` to the threshold, a multiple of the neuron's mean magnitude."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def sparsity_of(masks: Sequence[Tensor]) -> float:
    """Return the fraction of zeros in all masks."""
    return 1.0 - count_active(masks) / sum(mask.numel() for mask in masks)


def count_active(masks: Sequence[Tensor]) -> int:
    """Return the exact number of entries that are not zero. In half precision, a sum of ones would not be exact."""
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
