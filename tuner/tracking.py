"""The study's record in MLflow: one parent run a study, one nested run a trial, written by one thread of the driver.

Nothing here holds the search up. `Tracker` notes down what each run is owed; its writer thread imports MLflow, creates
the store and writes, one batch a run. What cannot be written now stays owed and is tried again, and what remains at the
end is told in `Tracker.problems`, never raised into the search.

Only `MlflowClient` with an explicit URI is used: MLflow's global state and its environment variables decide nothing.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from tuner.mlflow_store import Owed, Store, StudyIdentity, TrackedRun, now_ms, one_line, quiet_environment
from tuner.records import TrialRecord, TrialState, trial_name
from tuner.tracking_uri import redact

if TYPE_CHECKING:
    pass

P = ParamSpec("P")
R = TypeVar("R")
GATHER = 1.0  # seconds for which reports are gathered into one batch, since every write takes time from the trials
ATTEMPTS = 3  # failures in a row after which the store is said to be away
STATUS = {
    TrialState.RUNNING: "RUNNING",
    TrialState.COMPLETED: "FINISHED",
    TrialState.PRUNED: "FINISHED",  # MLflow has no such status: the tag `state` tells it from completed
    TrialState.FAILED: "FAILED",
}


def _timed(method: Callable[Concatenate[Tracker, P], R]) -> Callable[Concatenate[Tracker, P], R]:
    @functools.wraps(method)
    def timed(self: Tracker, *args: P.args, **kwargs: P.kwargs) -> R:
        start = time.perf_counter()
        try:
            return method(self, *args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - start

    return timed


class Tracker:
    """Writes one study's MLflow record from a thread of its own.

    The methods only note things down, in microseconds, and raise nothing for a store that is away. `close` must be
    called at the end: the thread does not keep the interpreter alive.

    Args:
        uri: The tracking URI, as `resolve_tracking_uri` gives it.
        identity: The study.

    Attributes:
        seconds: How long callers' threads have spent in the public methods.
    """

    def __init__(self, uri: str, identity: StudyIdentity) -> None:
        self.seconds = 0.0
        self.identity = identity
        tags = {"role": "parent", "study": identity.study, "target": str(identity.target), "method": identity.method}
        self._study = TrackedRun(identity.study, tags)
        self._trials: dict[int, TrackedRun] = {}
        self._store = Store(uri, identity, self._study)
        self._changed = threading.Condition()
        self._owing: dict[TrackedRun, None] = {}  # the runs that are owed something, oldest debt first
        self._finish: tuple[frozenset[int], int] | None = None  # the front's trials, and when the study ended
        self._busy = self._closing = self._closed = False
        self._hurry = 0  # callers waiting in flush
        self._failures = 0  # in a row
        self._error = ""
        self._refused: list[str] = []
        quiet_environment()
        self._thread = threading.Thread(target=self._work, name="mlflow-writer", daemon=True)
        self._thread.start()

    @property
    def experiment_id(self) -> str | None:
        """None until the store was opened: see `flush`."""
        return self._store.experiment_id

    @property
    def run_id(self) -> str | None:
        """The parent run's; None until it was found or created: see `flush`."""
        return self._study.run_id

    @property
    def problems(self) -> list[str]:
        """A line for everything that could not be written; complete once `close` returned."""
        with self._changed:
            lines = list(dict.fromkeys(self._refused))
            if (self._closed or self._failures >= ATTEMPTS) and self._unwritten():
                error = self._error or "still writing when the study ended"
                missing = f"{len(self._owing) + self._busy} of {len(self._trials) + 1} runs are not fully recorded"
                lines.append(redact(f"MLflow at {self._store.uri}: {error}; {missing}"))
            return lines

    @_timed
    def start_study(self, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Begins the parent run, or takes it up again."""
        with self._changed:
            self._owe(self._study, params=params, tags=tags, status="RUNNING")

    @_timed
    def start_trial(self, record: TrialRecord) -> None:
        """Begins a trial's run, or takes it up again."""
        with self._changed:
            self._tell(record, {})

    @_timed
    def log_epoch(self, number: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Records an epoch. Epochs come in order; one that is already recorded is left as it is.

        Args:
            number: The trial's.
            epoch: The metrics' step in MLflow.
            metrics: By name. Infinite values become NaN, which MLflow can show; what is not a number is left out.
        """
        with self._changed:
            self._owe(self._trial(number), metrics=metrics, step=epoch)

    @_timed
    def end_trial(self, record: TrialRecord) -> None:
        """Ends a trial's run with its state and final measures."""
        names = ("val_accuracy", "sparsity", "sparsity_total", "hoyer", "nonzero_weights", "epochs", "seconds")
        with self._changed:
            self._tell(record, {**record.metrics, **{n: v for n in names if (v := getattr(record, n)) is not None}})

    @_timed
    def log_artifacts(self, artifacts: Iterable[Path]) -> None:
        """Adds files to the parent run, in the place of those with the same names."""
        with self._changed:
            owed = self._study.owed.artifacts
            self._owe(self._study)
            owed += [path for path in artifacts if path not in owed]

    @_timed
    def finish_study(
        self,
        *,
        status: str,
        metrics: Mapping[str, float],
        pareto: Collection[int],
        artifacts: Path | Iterable[Path] = (),
    ) -> None:
        """Ends the parent run, marks every trial as on the front or not, and ends as KILLED the trials that still run.

        Args:
            status: FINISHED, FAILED or KILLED.
            metrics: The parent run's.
            pareto: The numbers of the trials on the front.
            artifacts: Files, and folders that keep their own names, for the parent run.
        """
        with self._changed:
            self._finish = (frozenset(pareto), now_ms())
            self._owe(self._study, metrics=metrics, status=status)
            self._study.owed.artifacts += [artifacts] if isinstance(artifacts, Path) else artifacts

    @_timed
    def flush(self, timeout: float | None = None) -> bool:
        """Waits until all that was handed over is written, or the store turns out to be away.

        Returns:
            Whether all was written.
        """
        with self._changed:
            self._hurry += 1
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: not self._to_do() or self._failures >= ATTEMPTS or not self._thread.is_alive(), timeout
            )
            self._hurry -= 1
            return not self._to_do()

    @_timed
    def close(self, timeout: float | None = None) -> None:
        """Writes what is left, in `timeout` seconds at most, and ends the thread; `problems` has what could not be."""
        with self._changed:
            self._closing = True
            self._failures = min(self._failures, ATTEMPTS - 1)  # a store that was away gets one more chance
            self._changed.notify_all()
        self._thread.join(timeout)
        self._closed = True

    def _trial(self, number: int) -> TrackedRun:
        name = trial_name(number)
        tags = {"role": "trial", "study": self.identity.study, "trial": name, "number": str(number)}
        return self._trials.setdefault(number, TrackedRun(name, tags))

    def _tell(self, record: TrialRecord, metrics: Mapping[str, Any]) -> None:
        run = self._trial(record.number)
        run.ended = record.state is not TrialState.RUNNING
        tags = {"method": record.method, "state": record.state.value, "reason": record.reason}
        self._owe(
            run, params=record.params, tags=tags, metrics=metrics, step=record.epochs, status=STATUS[record.state]
        )

    def _owe(self, run: TrackedRun, **what: Any) -> None:
        run.owe(**what)
        self._owing[run] = None
        self._changed.notify_all()

    def _unwritten(self) -> bool:
        return bool(self._owing) or self._busy or self._finish is not None

    def _to_do(self) -> bool:
        return self._unwritten() or self.experiment_id is None

    def _work(self) -> None:
        """The writer thread: rounds until closed, the first at once, so that MLflow is ready for the first report."""
        while self._wait():
            try:
                self._round()
                failures, error = 0, ""
            except Exception as caught:  # whatever it is, the search goes on
                failures, error = self._failures + 1, one_line(caught)
            with self._changed:
                self._failures, self._error = failures, error
                self._changed.notify_all()

    def _wait(self) -> bool:
        """Waits for something to do, then for more of it, longer after each failure; False: the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._to_do())
            pause = GATHER * 2 ** min(self._failures, 5)
            self._changed.wait_for(lambda: self._closing or self._hurry, pause)
            failures = self._failures
            if self._closing and (failures >= ATTEMPTS or not self._unwritten()):
                return False
        if failures:  # even in a hurry, a store that has just failed gets a moment
            time.sleep(GATHER)
        return True

    def _round(self) -> None:
        """Writes everything owed, the parent run last, so that it never ends before its trials."""
        self._store.open()
        if self._finish is not None:
            self._settle(*self._finish)
        with self._changed:
            runs = sorted(self._owing, key=lambda run: run is self._study)
        for run in runs:
            with self._changed:
                owed, run.owed = run.owed, Owed()
                self._owing.pop(run)
                self._busy = True
            try:
                refused = self._store.write(run, owed)
            except Exception:
                with self._changed:
                    run.owed, self._busy = owed.then(run.owed), False
                    self._owing[run] = None
                raise
            with self._changed:
                self._refused += refused
                self._busy = False

    def _settle(self, pareto: frozenset[int], when: int) -> None:
        """Brings every trial of the study to its end, those of earlier processes too, which only the store knows."""
        earlier = {
            int(run.data.tags["number"]): run for run in self._store.trials().values() if "number" in run.data.tags
        }
        with self._changed:
            for number in earlier.keys() - self._trials.keys():
                self._trial(number).ended = earlier[number].info.status != "RUNNING"
            for number, run in self._trials.items():
                self._owe(run, tags={"pareto": str(number in pareto).lower()})
                if not run.ended:
                    self._owe(
                        run, tags={"state": TrialState.FAILED.value, "reason": "the study ended before this trial"}
                    )
                    run.owed.status, run.ended = ("KILLED", when), True
            self._finish = None
