"""Defines the reports that a worker sends to the driver, and converts them to and from dicts for Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tune_sparsity.tuner.study.trial import Epoch


@dataclass(frozen=True)
class Report:
    """One report of a trial. The last report of a trial says how the trial ended, with one of the attributes
    `finished`, `failure` and `disk`. If a trial is stopped early, no report says so.

    Attributes:
        epochs: the epochs that the trial has trained since its last report.
        again: True if the trial has continued from a checkpoint, and `epochs` are all epochs before this checkpoint.
            The driver may already have these epochs from earlier reports.
        final_sparsity: the sparsity at which the trial ends, in [0, 1). It is 0 in a report of a failure.
        finished: whether the trial has trained all its epochs.
        failure: the reason why the trial failed, in one line, or "".
        disk: the reason why the trial could not write to its folder, in one line, or "". If it is not "", the report
            contains nothing else.
        weights: the trained network in the safetensors format, if the worker and the driver share no folder. Otherwise
            None.
    """

    epochs: tuple[Epoch, ...] = ()
    again: bool = False
    final_sparsity: float = 0.0
    finished: bool = False
    failure: str = ""
    disk: str = ""
    weights: bytes | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dict for Ray. Attributes with their default value are left out."""
        said: dict[str, Any] = {name: value for name, value in vars(self).items() if value}
        if self.epochs:
            said["epochs"] = [(epoch.number, epoch.metrics) for epoch in self.epochs]
        if self.weights is not None:
            # In a list, because Ray copies the dict: `take_weights` then removes the network from all copies.
            said["weights"] = [self.weights]
        return {**said, "done": True} if self.finished or self.failure else said

    @classmethod
    def from_dict(cls, result: Mapping[str, Any]) -> Report:
        """Convert a dict from Ray into a report. Ray's own keys are ignored. The attribute `weights` is always None:
        use `take_weights` for the network."""
        names = ("again", "final_sparsity", "finished", "failure", "disk")
        epochs = tuple(Epoch(number, metrics) for number, metrics in result.get("epochs", ()))
        return cls(epochs, **{name: result[name] for name in names if name in result})


def take_weights(result: Mapping[str, Any]) -> bytes | None:
    """Remove the network from a dict that Ray has received, and return it. Return None if the dict has no network. The
    network is removed because Ray keeps each trial's last dict in memory."""
    weights = result.get("weights")
    return weights.pop() if weights else None
