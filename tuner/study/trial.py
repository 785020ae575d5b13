"""Defines TrialRecord, the data of one trial. The search, the record in MLflow, the study's files and the pictures all
use it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from tune_sparsity.tuner.study.objective import ACCURACY, Objective

BINARY = "binary"
"""The method whose networks have one bit for each weight, and no zeros."""
FINAL_SPARSITY = "final_sparsity"
"""The parameter for the sparsity with which a trial ends. All methods except `dense` and `binary` have it."""
WEIGHT_BITS = "weight_bits"
"""The parameter for the number of bits of a prunable weight. All methods except `binary` have it."""
WIDTH = "width"
"""The parameter for the fraction, in (0, 1], of the neurons with which a training begins. lpss and gmp have it."""
SPIKE_RATE = "spike_rate_"
"""The prefix of the names of metrics for the rate of a spiking layer. The layer's name follows the prefix."""


COSTS = ("size_bytes", "macs", "syn_ops", "bit_ops", "train_bytes")
"""The attributes of a TrialRecord that are counts of bytes or operations."""
MEASURES = ("sparsity", "sparsity_total", "hoyer", "nonzero_weights", *COSTS)
"""The attributes of a TrialRecord that are also columns of trials.csv and metrics in MLflow."""


class TrialState(StrEnum):
    """The states of a trial. The states that Optuna, Ray and MLflow show for a trial are derived from these states."""

    RUNNING = "running"
    COMPLETED = "completed"
    PRUNED = "pruned"  # stopped early by early stopping or the time budget; its last value is not a result
    FAILED = "failed"  # ended with a NaN loss, an exception or a lost worker


def trial_name(number: int) -> str:
    """Return the name of a trial: "t0007" for number 7. Files, Ray and MLflow use this name."""
    return f"t{number:04d}"


@dataclass(frozen=True)
class Epoch:
    """The metrics of a trial after one of its epochs."""

    number: int  # from 1
    metrics: dict[str, float]  # by their names in experiments.Training.epoch and in MLflow

    @property
    def seconds(self) -> float:
        return self.metrics["epoch_seconds"]


def _count(value: float | None) -> int | None:
    return None if value is None else int(value)


@dataclass
class TrialRecord:
    """The parameters, the state and the latest metrics of a trial. Sparsities are fractions in [0, 1]. Each metric has
    the value that was measured after the latest epoch of the trial, or None if it has not been measured."""

    number: int
    method: str
    params: dict[str, Any]
    state: TrialState = TrialState.RUNNING
    value: float | None = None  # the objective's value on the validation data
    sparsity: float | None = None  # zero weights / prunable weights
    sparsity_total: float | None = None  # zero weights / all parameters
    hoyer: float | None = None  # the mean Hoyer sparsity of the prunable layers' rows; not a fraction of zeros
    nonzero_weights: int | None = None
    size_bytes: int | None = None  # the size of the network's packed file; None until the mask is fixed
    macs: int | None = None  # multiply-adds with nonzero weights in one example; None until the mask is fixed
    syn_ops: int | None = None  # synaptic operations in one example; only for a spiking network after its last epoch
    bit_ops: int | None = None  # those of `macs` that are products of two signs, in a binary network
    train_bytes: int | None = None  # the measured peak of memory in a training step
    epochs: int = 0  # the number of trained epochs
    seconds: float = 0.0  # the trial's wall-clock time
    final_sparsity: float | None = None  # the sparsity at which the trial ends; None before the first rung
    # The keys are the epochs of rungs. For a value, the network is temporarily pruned to the final sparsity.
    rungs: dict[int, float] = field(default_factory=dict)
    ended: float | None = None  # Unix time in seconds
    reason: str = ""  # the reason why the trial failed, in one line
    metrics: dict[str, float] = field(default_factory=dict)  # the last epoch's metrics, by their names in MLflow
    elapsed: float = 0.0  # seconds that the study had run when the trial ended, without pauses between processes
    objective: Objective = ACCURACY

    @property
    def name(self) -> str:
        return trial_name(self.number)

    @property
    def merit(self) -> float | None:
        """Return the merit of `value`, the trial's metric on the validation data, or None before the first epoch has
        ended. A larger merit is better for every metric."""
        return None if self.value is None else self.objective.merit(self.value)

    @property
    def text(self) -> str:
        """Return `value` as a text for the user, such as "98.33%". Return "" before the first epoch has ended."""
        return "" if self.value is None else self.objective.text(self.value)

    @property
    def spike_rates(self) -> dict[str, float]:
        """Return a dict from the names of spiking layers to their rates, in spikes per neuron and time step. The dict
        is empty for a network without such layers."""
        found = {name: value for name, value in self.metrics.items() if name.startswith(SPIKE_RATE)}
        return {name.removeprefix(SPIKE_RATE): value for name, value in found.items()}

    def at_rung(self, epoch: int) -> tuple[float, float]:
        """Return a pair: the trial's merit at a rung, and its final sparsity, which the trial reaches only later. For
        this merit, the network is temporarily pruned to the final sparsity.

        Args:
            epoch: the rung, an epoch at which early stopping compares trials.
        """
        assert self.final_sparsity is not None
        return self.objective.merit(self.rungs[epoch]), self.final_sparsity

    def reach_rung(self, epoch: Epoch, final_sparsity: float) -> tuple[float, float]:
        """Record the trial's metric at a rung, and return the result of `at_rung` for this rung.

        Args:
            epoch: the epoch at the rung, with its metrics.
            final_sparsity: the sparsity with which the trial ends, in [0, 1).
        """
        self.final_sparsity = final_sparsity
        self.rungs[epoch.number] = epoch.metrics[self.objective.at_target]
        return self.at_rung(epoch.number)

    def feasible(self, target: float) -> bool:
        """Return whether the trial completed with a sparsity of at least `target`."""
        return self.state is TrialState.COMPLETED and self.sparsity is not None and self.sparsity >= target

    def add(self, epoch: Epoch) -> None:
        """Update the record with the metrics of the trial's next epoch."""
        self.epochs, self.metrics = epoch.number, epoch.metrics
        self.value, self.hoyer = epoch.metrics[self.objective.val], epoch.metrics["hoyer"]
        self.sparsity, self.sparsity_total = epoch.metrics["sparsity"], epoch.metrics["sparsity_total"]
        self.nonzero_weights = int(epoch.metrics["nonzero_weights"])
        for cost in COSTS:
            setattr(self, cost, _count(epoch.metrics.get(cost)))

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as a dict that JSON can represent. The key of the attribute `value` is not "value" but
        the name of the metric, such as "val_accuracy"."""
        data = asdict(self)
        value, objective = data.pop("value"), data.pop("objective")
        return {**data, self.objective.val: value, **({} if self.objective == ACCURACY else {"objective": objective})}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TrialRecord:
        objective = Objective(**data["objective"]) if "objective" in data else ACCURACY
        fields = {"value" if name == objective.val else name: value for name, value in data.items()}
        # Keys in JSON cannot be numbers. Records of earlier versions have no rungs.
        rungs = {int(epoch): value for epoch, value in data.get("rungs", {}).items()}
        return cls(**{**fields, "state": TrialState(data["state"]), "rungs": rungs, "objective": objective})
