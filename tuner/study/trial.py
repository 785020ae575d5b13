"""What is known of one trial, in the one form that the searcher, the tracker, the files and the pictures share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from tune_sparsity.tuner.study.objective import ACCURACY, Objective

BINARY = "binary"
"""The method whose networks have no zeros, and a bit a weight."""
FINAL_SPARSITY = "final_sparsity"
"""The parameter that all methods but `dense` and `binary` have: the sparsity that a trial ends on."""
WEIGHT_BITS = "weight_bits"
"""The parameter of all methods but `binary` that says how many bits a prunable weight has."""
SPIKE_RATE = "spike_rate_"
"""The beginning of the names of measures that are a spiking layer's rate; the layer's name follows."""


COSTS = ("size_bytes", "macs", "syn_ops", "bit_ops", "train_bytes")
"""The measures of a trial that are counts of bytes or operations; each is an attribute of a TrialRecord."""


class TrialState(StrEnum):
    """The states of a trial; Optuna's, Ray's and MLflow's own states are derived from these."""

    RUNNING = "running"
    COMPLETED = "completed"
    PRUNED = "pruned"  # stopped early by the scheduler: what it had reached is not a result
    FAILED = "failed"  # NaN loss, an exception, a lost worker


def trial_name(number: int) -> str:
    """Return the name under which a trial is known everywhere: Optuna number 7 is "t0007"."""
    return f"t{number:04d}"


@dataclass(frozen=True)
class Epoch:
    """What a trial measured after one of its epochs."""

    number: int  # from 1
    metrics: dict[str, float]  # as experiments.Training.epoch names them, and MLflow shows them

    @property
    def seconds(self) -> float:
        return self.metrics["epoch_seconds"]


def _count(value: float | None) -> int | None:
    return None if value is None else int(value)


@dataclass
class TrialRecord:
    """One trial. Sparsities are fractions in [0, 1]; measures are None until the first epoch ended."""

    number: int
    method: str
    params: dict[str, Any]
    state: TrialState = TrialState.RUNNING
    value: float | None = None  # the objective's, on the validation data
    sparsity: float | None = None  # zero weights / prunable weights, of the network as last validated
    sparsity_total: float | None = None  # zero weights / all parameters
    hoyer: float | None = None  # mean Hoyer sparsity of the rows on the sphere: not a fraction of zeros
    nonzero_weights: int | None = None
    size_bytes: int | None = None  # of the network's packed file; known once the mask is fixed
    macs: int | None = None  # multiply-adds an example with weights that are not zero; likewise
    syn_ops: int | None = None  # synaptic operations an example, of a network of spiking neurons that was trained whole
    bit_ops: int | None = None  # those of `macs` that are products of two signs, of a binary network
    train_bytes: int | None = None  # alive at most in a step of the training, as measured
    epochs: int = 0
    seconds: float = 0.0  # wall clock of the trial
    final_sparsity: float | None = None  # the sparsity that the trial is to end on; known from the first rung on
    rungs: dict[int, float] = field(default_factory=dict)  # the value at the final sparsity, by the epoch
    ended: float | None = None  # Unix time in seconds
    reason: str = ""  # why a failed trial failed, in one line
    metrics: dict[str, float] = field(default_factory=dict)  # the last epoch's, under their MLflow names
    elapsed: float = 0.0  # seconds that the study had taken when the trial ended, in all its processes together
    objective: Objective = ACCURACY

    @property
    def name(self) -> str:
        return trial_name(self.number)

    @property
    def merit(self) -> float | None:
        """Return how good the trial's value is; larger is better, whatever the metric."""
        return None if self.value is None else self.objective.merit(self.value)

    @property
    def text(self) -> str:
        """Return the trial's value as people read it; nothing before the first epoch has ended."""
        return "" if self.value is None else self.objective.text(self.value)

    @property
    def spike_rates(self) -> dict[str, float]:
        """Return the spikes a neuron and step of each spiking layer, by its name; of other networks nothing."""
        found = {name: value for name, value in self.metrics.items() if name.startswith(SPIKE_RATE)}
        return {name.removeprefix(SPIKE_RATE): value for name, value in found.items()}

    def at_rung(self, epoch: int) -> tuple[float, float]:
        """Return what the trial had at a rung: its merit there, and the sparsity that it is to end on."""
        assert self.final_sparsity is not None
        return self.objective.merit(self.rungs[epoch]), self.final_sparsity

    def reach_rung(self, epoch: Epoch, final_sparsity: float) -> tuple[float, float]:
        """Take note of a rung, and return `at_rung`."""
        self.final_sparsity = final_sparsity
        self.rungs[epoch.number] = epoch.metrics[self.objective.at_target]
        return self.at_rung(epoch.number)

    def feasible(self, target: float) -> bool:
        """Completed, and at least `target` sparse. Stopped and failed trials never are."""
        return self.state is TrialState.COMPLETED and self.sparsity is not None and self.sparsity >= target

    def add(self, epoch: Epoch) -> None:
        """Take over what the trial measured after its last epoch."""
        self.epochs, self.metrics = epoch.number, epoch.metrics
        self.value, self.hoyer = epoch.metrics[self.objective.val], epoch.metrics["hoyer"]
        self.sparsity, self.sparsity_total = epoch.metrics["sparsity"], epoch.metrics["sparsity_total"]
        self.nonzero_weights = int(epoch.metrics["nonzero_weights"])
        for cost in COSTS:
            setattr(self, cost, _count(epoch.metrics.get(cost)))

    def to_dict(self) -> dict[str, Any]:
        """Return the record in JSON's types, its value under the metric's name."""
        data = asdict(self)
        value, objective = data.pop("value"), data.pop("objective")
        return {**data, self.objective.val: value, **({} if self.objective == ACCURACY else {"objective": objective})}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TrialRecord:
        objective = Objective(**data["objective"]) if "objective" in data else ACCURACY
        fields = {"value" if name == objective.val else name: value for name, value in data.items()}
        # JSON has no numbers as keys; records of earlier versions have no rungs.
        rungs = {int(epoch): value for epoch, value in data.get("rungs", {}).items()}
        return cls(**{**fields, "state": TrialState(data["state"]), "rungs": rungs, "objective": objective})
