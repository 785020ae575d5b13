"""Defines the reports that a worker sends to the driver, and converts them to and from dicts for Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tune_sparsity.tuner.study.trial import Epoch


@dataclass(frozen=True)
class Report:
    """One report of a trial. In the last report, `finished` is True, or `failure` or `disk` is not "". A trial that is
    stopped early sends no such report.

    Attributes:
        epochs: the epochs that the trial has trained since its last report.
        again: whether `epochs` are the past epochs of a trial that has continued from a checkpoint. The driver may
            already have these epochs from earlier reports.
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
        """Return the report in a dict from Ray. Ray's own keys are ignored. `weights` is left out: use
        `take_weights`."""
        names = ("again", "final_sparsity", "finished", "failure", "disk")
        epochs = tuple(Epoch(number, metrics) for number, metrics in result.get("epochs", ()))
        return cls(epochs, **{name: result[name] for name in names if name in result})


def take_weights(result: Mapping[str, Any]) -> bytes | None:
    """Return the network in a dict from Ray, or None. The network is removed from the dict, because Ray keeps each
    trial's last dict in memory."""
    weights = result.get("weights")
    return weights.pop() if weights else None
