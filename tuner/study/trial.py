"""What is known of one trial, in the one form that the searcher, the tracker, the files and the pictures share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class TrialState(StrEnum):
    """The states of a trial; Optuna's, Ray's and MLflow's own states are derived from these."""

    RUNNING = "running"
    COMPLETED = "completed"
    PRUNED = "pruned"  # stopped early by the scheduler: what it had reached is not a result
    FAILED = "failed"  # NaN loss, an exception, a lost worker


def trial_name(number: int) -> str:
    """The name under which a trial is known everywhere: Optuna number 7 is "t0007"."""
    return f"t{number:04d}"


@dataclass(frozen=True)
class Epoch:
    """What a trial measured after one of its epochs."""

    number: int  # from 1
    metrics: dict[str, float]  # as experiments.Training.epoch names them, and MLflow shows them

    @property
    def accuracy_at_target(self) -> float:
        """The accuracy of the network as projected to its final sparsity now."""
        return self.metrics["val_accuracy_at_target"]

    @property
    def seconds(self) -> float:
        return self.metrics["epoch_seconds"]


@dataclass
class TrialRecord:
    """One trial. Accuracies and sparsities are fractions in [0, 1]; measures are None until the first epoch ended."""

    number: int
    method: str
    params: dict[str, Any]
    state: TrialState = TrialState.RUNNING
    val_accuracy: float | None = None
    sparsity: float | None = None  # zero weights / prunable weights, of the network as last validated
    sparsity_total: float | None = None  # zero weights / all parameters
    hoyer: float | None = None  # mean Hoyer sparsity of the rows on the sphere: not a fraction of zeros
    nonzero_weights: int | None = None
    epochs: int = 0
    seconds: float = 0.0  # wall clock of the trial
    final_sparsity: float | None = None  # the sparsity that the trial is to end on; known from the first rung on
    rungs: dict[int, float] = field(default_factory=dict)  # val_accuracy_at_target by the epoch of the rung
    ended: float | None = None  # Unix time in seconds
    reason: str = ""  # why a failed trial failed, in one line
    metrics: dict[str, float] = field(default_factory=dict)  # the last epoch's, under their MLflow names
    elapsed: float = 0.0  # seconds that the study had taken when the trial ended, in all its processes together

    @property
    def name(self) -> str:
        return trial_name(self.number)

    def feasible(self, target: float) -> bool:
        """Completed, and at least `target` sparse. Stopped and failed trials never are."""
        return self.state is TrialState.COMPLETED and self.sparsity is not None and self.sparsity >= target

    def add(self, epoch: Epoch) -> None:
        """Take over what the trial measured after its last epoch."""
        self.epochs, self.metrics = epoch.number, epoch.metrics
        self.val_accuracy, self.hoyer = epoch.metrics["val_accuracy"], epoch.metrics["hoyer"]
        self.sparsity, self.sparsity_total = epoch.metrics["sparsity"], epoch.metrics["sparsity_total"]
        self.nonzero_weights = int(epoch.metrics["nonzero_weights"])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TrialRecord:
        # JSON has no numbers as keys; records of earlier versions have no rungs.
        rungs = {int(epoch): accuracy for epoch, accuracy in data.get("rungs", {}).items()}
        return cls(**{**data, "state": TrialState(data["state"]), "rungs": rungs})
