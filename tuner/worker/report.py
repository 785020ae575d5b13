"""What a worker tells the driver of its trial, and the plain dict in which Ray carries it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tune_sparsity.tuner.study.trial import Epoch


@dataclass(frozen=True)
class Report:
    """One report of a trial. Its last one is finished or a failure.

    Attributes:
        epochs: those that the trial has trained since the report before.
        again: the trial trained these epochs before it was restarted from its checkpoint.
        final_sparsity: the sparsity that the trial is to end on; 0 if there are no epochs, or if the trial failed.
        finished: the trial has trained all its epochs. Without it, a trial that ends was stopped.
        failure: why the trial failed, in one line.
        disk: why the trial could not write, in one line; then there is nothing else in the report.
        weights: the trained network, where the worker and the driver share no folder.
    """

    epochs: tuple[Epoch, ...] = ()
    again: bool = False
    final_sparsity: float = 0.0
    finished: bool = False
    failure: str = ""
    disk: str = ""
    weights: bytes | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as Ray's dict, without what it does not say."""
        said: dict[str, Any] = {name: value for name, value in vars(self).items() if value}
        if self.epochs:
            said["epochs"] = [(epoch.number, epoch.metrics) for epoch in self.epochs]
        if self.weights is not None:
            said["weights"] = [self.weights]  # in a list, so that `take_weights` empties Ray's copies of the dict too
        return {**said, "done": True} if self.finished or self.failure else said

    @classmethod
    def from_dict(cls, result: Mapping[str, Any]) -> Report:
        """Return the report in Ray's dict, which holds more than that. The network stays there: see `take_weights`."""
        names = ("again", "final_sparsity", "finished", "failure", "disk")
        epochs = tuple(Epoch(number, metrics) for number, metrics in result.get("epochs", ()))
        return cls(epochs, **{name: result[name] for name in names if name in result})


def take_weights(result: Mapping[str, Any]) -> bytes | None:
    """Return the network in Ray's dict, and remove it there: Ray keeps the last report of every trial."""
    weights = result.get("weights")
    return weights.pop() if weights else None
