"""The study's record in MLflow: one parent run a study, one nested run a trial.

Nothing here holds the search up. `Tracker` notes what there is to tell in the study's outbox, in microseconds, and a
process beside it delivers the notes in batches (tuner.tracking.writer). What cannot arrive now is tried again, and what
has not arrived at the end stays in the outbox and is told in `Tracker.problems`, never raised into the search.
"""

from __future__ import annotations

import functools
import json
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from tune_sparsity.tuner.config.tracking_uri import is_server
from tune_sparsity.tuner.errors import redact
from tune_sparsity.tuner.study.trial import COSTS, TrialRecord, TrialState, trial_name
from tune_sparsity.tuner.system.processes import own_process
from tune_sparsity.tuner.tracking import writer as writer_process
from tune_sparsity.tuner.tracking.delivery import ATTEMPTS
from tune_sparsity.tuner.tracking.outbox import KILLED, PARENT, RUNNING, UNENDED, Outbox, StudyIdentity

if TYPE_CHECKING:
    from tune_sparsity.sparsity import NetworkSize

P = ParamSpec("P")
R = TypeVar("R")
SILENCE = 90.0  # seconds without a word of the writer's after which a study that has ended waits no longer
STATUS = {
    TrialState.RUNNING: RUNNING,
    TrialState.COMPLETED: "FINISHED",
    TrialState.PRUNED: "FINISHED",  # MLflow has no such status: the tag `state` tells it from completed
    TrialState.FAILED: "FAILED",
}
_MEASURES = ("sparsity", "sparsity_total", "hoyer", "nonzero_weights", *COSTS, "epochs", "seconds")


def _timed(method: Callable[Concatenate[Tracker, P], R]) -> Callable[Concatenate[Tracker, P], R]:
    @functools.wraps(method)
    def timed(self: Tracker, *args: P.args, **kwargs: P.kwargs) -> R:
        start = time.perf_counter()
        try:
            return method(self, *args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - start

    return timed


def begin_writer(uri: str) -> subprocess.Popen[str]:
    """Starts the process that will deliver a study's record to the store at this URI, and loads MLflow first."""
    return subprocess.Popen(
        own_process(writer_process.__name__, writer_process.SERVER if is_server(uri) else writer_process.DATABASE),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # until it knows the study
        text=True,
        # An interrupt from the keyboard ends the search, whose record is still to come. Not a session of its own:
        # Linux shares the processors between sessions before it looks at how nice a process is.
        process_group=0,
    )


@contextmanager
def writer_ahead(uri: str) -> Iterator[subprocess.Popen[str]]:
    """The same for a study that is likely to begin: nothing is left of it when the block ends."""
    writer = begin_writer(uri)
    try:
        yield writer
    finally:
        writer.kill()
        writer.wait()


class Tracker:
    """Notes one study's record, and has it delivered.

    The methods raise nothing for a store that is away. `close` must be called at the end.

    Args:
        uri: the tracking URI, as `resolve_tracking_uri` gives it.
        identity: the study; the same one in the same folder continues the same runs.
        folder: the study's. The outbox lies in it, and the files that become artifacts.
        system_metrics: also record this machine's load, on the parent run.
        writer: the process that delivers, if it has been started already.
        size: of the network, for each trial's "sparsity_matrices".

    Attributes:
        seconds: how long callers have spent in the public methods.
    """

    def __init__(
        self,
        uri: str,
        identity: StudyIdentity,
        folder: Path,
        *,
        system_metrics: bool = False,
        writer: subprocess.Popen[str] | None = None,
        size: NetworkSize | None = None,
    ) -> None:
        self.seconds = 0.0
        self._uri, self._early, self._size = uri, writer, size
        self._outbox = Outbox(folder, identity)
        self._lost = ""
        self._finished = self._closed = False
        self._noting = threading.Lock()  # pictures come from a thread of their own
        self._changed = threading.Condition()
        self._status: dict[str, Any] = {"offset": 0, "failures": 0, "error": "", "refused": [], "unsent": 0}
        self._log = writer_process.log_file(folder)
        session = self._outbox.session
        hello = {"uri": uri, "folder": str(folder.absolute()), "session": session, "system_metrics": system_metrics}
        self._writer = self._start(hello)
        self._heard = time.monotonic()
        self._thread = threading.Thread(target=self._listen, name="mlflow-status", daemon=True)
        self._thread.start()

    @property
    def experiment_id(self) -> str | None:
        """None until the store was opened: see `flush`."""
        return self._status.get("experiment_id")

    @property
    def run_id(self) -> str | None:
        """Return the id of the parent run; None until it was found or created: see `flush`."""
        return self._status.get("run_id")

    @property
    def problems(self) -> list[str]:
        """Return a line for everything that has not arrived; complete once `close` returned."""
        status = self._status
        lines = [*status["refused"], *([self._lost] if self._lost else [])]
        away = status["failures"] >= ATTEMPTS
        if away or (self._closed and status["offset"] < self._outbox.size()):
            error = status["error"] or self._last_words() or "still sending when the study ended"
            missing = f"{status['unsent']} runs are not fully recorded" if away else "not all runs are fully recorded"
            lines.append(redact(f"MLflow at {self._uri}: {error}; {missing}"))
        return lines

    @property
    def waiting(self) -> bool:
        """Return whether something has not arrived that may arrive later."""
        return bool(self._status["offset"] < self._outbox.size())

    @_timed
    def start_study(self, params: Mapping[str, Any], tags: Mapping[str, str], **more: Any) -> None:
        """Begins the parent run, or takes it up again.

        Args:
            more: `dataset`, as `tuner.tracking.dataset.dataset_note` gives it.
        """
        self._note(PARENT, params=params, tags=tags, status=RUNNING, **more)

    @_timed
    def start_trial(self, record: TrialRecord) -> None:
        """Begins a trial's run, or takes it up again."""
        self._tell(record, {})

    @_timed
    def recall(self, record: TrialRecord) -> None:
        """Tells of a trial that ended in an earlier process, if that was killed before it could."""
        if self._outbox.statuses.get(record.name) != STATUS[record.state]:
            self._end(record)

    @_timed
    def log_epoch(self, number: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Records an epoch. Epochs come in order; one that is already recorded is left as it is.

        Args:
            number: the trial's.
            epoch: the metrics' step in MLflow.
            metrics: by name. Infinite values become NaN, which MLflow can show; what is not a number is left out.
        """
        self._note(trial_name(number), metrics=metrics, step=epoch)

    @_timed
    def end_trial(self, record: TrialRecord) -> None:
        """Ends a trial's run with its state and final measures."""
        self._end(record)

    @_timed
    def log_artifacts(self, files: Iterable[Path]) -> None:
        """Makes files, and folders that keep their own names, the parent run's artifacts, as they are when they are
        sent. May be called again for the same files."""
        self._note(PARENT, files=files)

    @_timed
    def log_networks(
        self, folders: Iterable[Path], model: Mapping[str, Any] | None, group: Mapping[str, Any] | None = None
    ) -> None:
        """Makes the networks that are reported artifacts of the parent run, at once: that takes a second, in which the
        rest of what is to be told is made.

        Args:
            folders: the networks'.
            model: the best network, as `tuner.tracking.model.model_note` gives it.
            group: a group of two networks, likewise.
        """
        self._note(PARENT, files=folders, model=dict(model or {}), group=dict(group or {}))
        self._ask(writer_process.FLUSH)

    @_timed
    def finish_study(
        self,
        *,
        status: str,
        metrics: Mapping[str, float],
        pareto: Collection[int],
        artifacts: Iterable[Path] = (),
    ) -> None:
        """Ends the parent run, marks the trials on the front, and ends as KILLED the trials that still run.

        Args:
            status: FINISHED, FAILED or KILLED.
            metrics: the parent run's.
            pareto: the numbers of the trials on the front.
            artifacts: as `log_artifacts` takes them.
        """
        front = {trial_name(number) for number in pareto}
        for name in sorted(self._outbox.pareto ^ front):
            self._note(name, tags={"pareto": str(name in front).lower()})
        self._kill_trials()
        self._note(PARENT, metrics=metrics, files=artifacts, status=status)
        self._finished = True

    @_timed
    def flush(self, timeout: float | None = None) -> bool:
        """Waits until all that was noted has arrived, or the store turns out to be away.

        Returns:
            Whether all has arrived.
        """
        wanted = self._outbox.size()
        self._ask(writer_process.FLUSH)
        with self._changed:
            self._changed.wait_for(
                lambda: self._arrived(wanted) or self._status["failures"] >= ATTEMPTS or not self._thread.is_alive(),
                timeout,
            )
            return self._arrived(wanted)

    @_timed
    def close(self, timeout: float | None = None) -> None:
        """Waits until all has arrived, or the store turns out to be away; `problems` has what has not.

        A study that was not finished ends here as KILLED.

        Args:
            timeout: seconds to wait at most; by default as long as the writer is heard of.
        """
        if self._closed:
            return
        if not self._finished:
            self._kill_trials()
            self._note(PARENT, status=KILLED)
        self._ask(writer_process.CLOSE)
        self._heard, deadline = time.monotonic(), None if timeout is None else time.monotonic() + timeout
        while self._thread.is_alive():
            self._thread.join(0.2)
            if time.monotonic() - self._heard > SILENCE or (deadline is not None and time.monotonic() > deadline):
                self._writer.kill()
                break
        self._thread.join()
        self._writer.wait()
        self._closed = True

    def _end(self, record: TrialRecord) -> None:
        measured = {record.objective.val: record.value, **{name: getattr(record, name) for name in _MEASURES}}
        if self._size is not None and record.nonzero_weights is not None:
            measured["sparsity_matrices"] = self._size.sparsity_matrices(record.nonzero_weights)
        measures = {name: value for name, value in measured.items() if value is not None}
        known = record.name in self._outbox.pareto
        self._tell(record, {**record.metrics, **measures}, {"pareto": str(known).lower()})

    def _tell(self, record: TrialRecord, metrics: Mapping[str, Any], more: Mapping[str, str] | None = None) -> None:
        tags = {"method": record.method, "state": record.state.value, "reason": record.reason, **(more or {})}
        status = STATUS[record.state]
        self._note(record.name, params=record.params, tags=tags, metrics=metrics, step=record.epochs, status=status)

    def _kill_trials(self) -> None:
        for name, status in list(self._outbox.statuses.items()):
            if name != PARENT and status == RUNNING:
                self._note(name, tags={**UNENDED, "pareto": "false"}, status=KILLED)

    def _note(self, run: str, **what: Any) -> None:
        try:
            with self._noting:
                self._outbox.note(run, **what)
        except OSError as error:  # a full disk, say: the search ends when it must, and not for its record
            self._lost = f"{self._outbox.file} could not be written: {error.strerror}; not all runs are fully recorded"

    def _arrived(self, wanted: int) -> bool:
        return self._status["offset"] >= wanted and self.experiment_id is not None

    def _start(self, hello: dict[str, Any]) -> subprocess.Popen[str]:
        self._writer = self._early or begin_writer(self._uri)
        self._ask(json.dumps(hello))
        return self._writer

    def _ask(self, line: str) -> None:
        assert self._writer.stdin is not None
        try:
            self._writer.stdin.write(f"{line}\n")
            self._writer.stdin.flush()
            if line == writer_process.CLOSE:
                self._writer.stdin.close()
        except (OSError, ValueError):  # it died, or has been closed: `problems` says so
            pass

    def _listen(self) -> None:
        assert self._writer.stdout is not None
        for line in self._writer.stdout:
            with self._changed:
                self._status, self._heard = json.loads(line), time.monotonic()
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _last_words(self) -> str:
        """Return the last line of a writer that died."""
        try:
            lines = self._log.read_text().strip().splitlines()
        except OSError:
            return ""
        return f"the writing process ended: {lines[-1]}" if lines else ""
