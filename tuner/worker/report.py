"""Defines the reports from a worker to the driver, and their form as a plain dict in Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tune_sparsity.tuner.study.trial import Epoch


@dataclass(frozen=True)
class Report:
    """One report of a trial. If a trial is not stopped, its last report has `finished` or `failure`.

    Attributes:
        epochs: the epochs that the trial has trained since its last report.
        again: whether the trial had already trained these epochs, before it was restarted from a checkpoint.
        final_sparsity: the sparsity at which the trial ends, in [0, 1). It is 0 in a report of a failure, or without
            epochs.
        finished: whether the trial has trained all its epochs. A trial that ends without such a report was stopped.
        failure: the reason why the trial failed, in one line, or "".
        disk: the reason why the trial could not write to its folder, in one line, or "". A report with such a reason
            contains nothing else.
        weights: the trained network in the safetensors format, if the worker and the driver share no folder.
    """

    epochs: tuple[Epoch, ...] = ()
    again: bool = False
    final_sparsity: float = 0.0
    finished: bool = False
    failure: str = ""
    disk: str = ""
    weights: bytes | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dict for Ray, without the attributes that have their default."""
        said: dict[str, Any] = {name: value for name, value in vars(self).items() if value}
        if self.epochs:
            said["epochs"] = [(epoch.number, epoch.metrics) for epoch in self.epochs]
        if self.weights is not None:
            # In a list, because Ray copies the dict: `take_weights` then removes the network from all copies.
            said["weights"] = [self.weights]
        return {**said, "done": True} if self.finished or self.failure else said

    @classmethod
    def from_dict(cls, result: Mapping[str, Any]) -> Report:
        """Return the report in a dict from Ray, which adds keys of its own. `weights` is left out: see
        `take_weights`."""
        names = ("again", "final_sparsity", "finished", "failure", "disk")
        epochs = tuple(Epoch(number, metrics) for number, metrics in result.get("epochs", ()))
        return cls(epochs, **{name: result[name] for name in names if name in result})


def take_weights(result: Mapping[str, Any]) -> bytes | None:
    """Return the network in a dict from Ray, and remove it from the dict, because Ray keeps every trial's last dict."""
    weights = result.get("weights")
    return weights.pop() if weights else None
