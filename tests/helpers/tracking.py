"""Define a tracker whose writer is a thread, and functions that read what the writer has stored in MLflow."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from tune_sparsity.tuner.study.trial import TrialRecord, TrialState
from tune_sparsity.tuner.tracking import writer
from tune_sparsity.tuner.tracking.outbox import StudyIdentity
from tune_sparsity.tuner.tracking.tracker import Tracker

IDENTITY = StudyIdentity(study="digits-90", experiment="digits", target=0.9, method="lpss,rigl")
MakeTracker = Callable[..., Tracker]


class WriterThread:
    """Runs a tracker's writer in a thread instead of a process. A new process would need seconds to import MLflow."""

    def __init__(self) -> None:
        commands, self.stdin = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), "rw", strict=True))
        self.stdout, said = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), "rw", strict=True))
        self._thread = threading.Thread(target=self._serve, args=(commands, said), daemon=True)
        self._thread.start()

    def _serve(self, commands: TextIO, said: TextIO) -> None:
        with commands, said:
            writer.serve(json.loads(commands.readline()), commands, said)

    def wait(self) -> None:
        self._thread.join()


class InThread(Tracker):
    """A tracker whose writer is a thread of this process."""

    def _start(self, hello: dict[str, Any]) -> Any:
        self._writer: Any = WriterThread()
        self._ask(json.dumps(hello))
        return self._writer


def record(number: int, state: TrialState = TrialState.RUNNING, **known: Any) -> TrialRecord:
    return TrialRecord(number=number, method="lpss", params={"lr": 0.1, "p": 1.5}, state=state, **known)


def finish(tracker: Tracker, status: str = "FINISHED", **known: Any) -> None:
    tracker.finish_study(**{"status": status, "metrics": {"hypervolume": 0.8}, "pareto": [], "artifacts": [], **known})
    tracker.close(120)
    assert tracker.problems == []


def client(store: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{store}")


def read(store: Path, experiment: str = "digits") -> tuple[list[Any], dict[str, Any]]:
    """Return the experiment's parent runs, and the trials' runs by name. Fail if two trials have the same name."""
    mlflow = client(store)
    found = mlflow.get_experiment_by_name(f"tune-sparsity/{experiment}")
    runs = mlflow.search_runs([found.experiment_id])
    trials = [run for run in runs if run.data.tags["role"] == "trial"]
    by_name = {run.info.run_name: run for run in trials}
    assert len(by_name) == len(trials)
    return [run for run in runs if run.data.tags["role"] == "parent"], by_name


def begun(tracker: Tracker) -> None:
    tracker.start_study({}, {})
    tracker.start_trial(record(0))
    tracker.log_epoch(0, 1, {"val_accuracy": 0.5})
    assert tracker.flush(120), tracker.problems
