"""Define the interface of a topology, the rule that changes the masks of a network during the training.

A topology drops connections (masks their weights) and grows connections (unmasks their weights). It gets the layers as
`LayerView` objects and returns new masks, in which 1 is active and 0 is masked. Progress is the fraction of the
training steps that are done, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tune_sparsity.sparsity.schedules import Schedule

UPDATES = 5
"""The number of mask updates that a short training should have. A network that loses most of its weights in one update
does not recover."""


@dataclass
class LayerView:
    """Describes a prunable layer for an update of the masks. All tensors have the shape (neurons, fan-in...).

    Attributes:
        name: the name of the layer's weight.
        mask: the current mask.
        log_magnitude: a function that returns log2 of the magnitude of every weight. On the sphere, masked weights also
            have a finite value, because LpSGD stores their magnitudes.
        gradient: a function that returns the gradient of all weights, masked weights included.
        sphere: whether the layer's weights are trained on the unit Lp sphere.
        momentum: a function that returns the moving average of `gradient`. It returns a zero without dimensions if the
            topology does not need the average; see `DropGrow.needs_momentum`.
    """

    name: str
    mask: Tensor
    log_magnitude: Callable[[], Tensor]
    gradient: Callable[[], Tensor]
    sphere: bool = True
    momentum: Callable[[], Tensor] = lambda: torch.zeros(())


class Topology(Protocol):
    """Defines the methods that every topology has. A topology is a rule that changes masks."""

    def due(self, step: int, total: int) -> bool:
        """Return whether the masks change at this step. After `SparseTraining.project` has fixed the masks, the
        training does not call this method any more.

        Args:
            step: the number of steps that are done.
            total: the number of steps of the training.
        """

    def update(self, layers: Sequence[LayerView], progress: float) -> list[Tensor]:
        """Return the new masks, in the order and shapes of the layers.

        A topology with a drop threshold also stores the threshold in its attribute `applied`. `SparseTraining.measures`
        returns this value as "threshold".
        """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def sparsity_of(masks: Sequence[Tensor]) -> float:
    """Return the fraction of zeros in all masks."""
    return 1.0 - count_active(masks) / sum(mask.numel() for mask in masks)


def count_active(masks: Sequence[Tensor]) -> int:
    """Return the number of entries that are not zero. The number is exact for all types, while a sum in half precision
    would not be exact."""
    return sum(int(mask.count_nonzero()) for mask in masks)


def is_due(step: int, total: int, schedule: Schedule, interval: int) -> bool:
    """Return whether `step` is a multiple of `interval`, and its progress step / total lies between `schedule.begin`
    and `schedule.end`."""
    return step % interval == 0 and schedule.begin <= step / total <= schedule.end


def shortened(interval: int, schedule: Schedule, total: int) -> int:
    """Return the number of steps between two updates of the masks. It is `interval`, or a smaller number that allows
    `UPDATES` updates between `schedule.begin` and `schedule.end`."""
    return max(1, min(interval, int((schedule.end - schedule.begin) * total / UPDATES)))


class Stateless:
    """Implements state_dict and load_state_dict for a topology without state."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
