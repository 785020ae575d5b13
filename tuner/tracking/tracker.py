"""Record a study in MLflow: one parent run for the study, and one nested run for each trial.

Recording never delays the search. `Tracker` writes notes to a file, the study's outbox, in microseconds. A separate
process sends the notes in batches (tuner.tracking.writer), and tries again if the store cannot be reached. Notes that
have not arrived at the end of the study stay in the outbox, and `Tracker.problems` reports them. Errors of the store
never raise an exception in the search.
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
from tune_sparsity.tuner.study.trial import MEASURES, TrialRecord, TrialState, trial_name
from tune_sparsity.tuner.system.processes import own_process
from tune_sparsity.tuner.tracking import writer as writer_process
from tune_sparsity.tuner.tracking.delivery import ATTEMPTS
from tune_sparsity.tuner.tracking.outbox import KILLED, PARENT, RUNNING, UNENDED, Outbox, StudyIdentity

if TYPE_CHECKING:
    from tune_sparsity.sparsity import NetworkSize

P = ParamSpec("P")
R = TypeVar("R")
SILENCE = 90.0  # at the end, a study stops waiting if the writer is silent for so many seconds
STATUS = {
    TrialState.RUNNING: RUNNING,
    TrialState.COMPLETED: "FINISHED",
    TrialState.PRUNED: "FINISHED",  # MLflow has no status for it, but the tag `state` says "pruned"
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


def begin_writer(uri: str) -> subprocess.Popen[str]:
    """Start the process that sends a study's notes to an MLflow store. The process imports MLflow, and then waits until
    a Tracker tells it the study's folder.

    Args:
        uri: the tracking URI of the store.
    """
    return subprocess.Popen(
        own_process(writer_process.__name__, writer_process.SERVER if is_server(uri) else writer_process.DATABASE),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # later the log file in the study's folder
        text=True,
        # Ctrl-C must not end this process, because the end of the search still has to be recorded. A new
        # process group is enough. In a new session, its low priority (nice) would have no effect on the trials' share
        # of the processors, because Linux divides the processors among sessions first.
        process_group=0,
    )


@contextmanager
def writer_ahead(uri: str) -> Iterator[subprocess.Popen[str]]:
    """Start the process of `begin_writer`, and yield it. Call this function before the study, because the process needs
    seconds to import MLflow. Run the study within the `with` block, and give the process to the study's Tracker. At the
    end of the block, the process is killed if it still runs."""
    writer = begin_writer(uri)
    try:
        yield writer
    finally:
        writer.kill()
        writer.wait()


class Tracker:
    """Writes notes about a study to the outbox, and lets another process send them to MLflow.

    The methods raise no exception if the store cannot be reached. `close` must be called at the end.

    Args:
        uri: the tracking URI, from `resolve_tracking_uri`.
        identity: the identity of the study. If a study is resumed in the same folder, it continues its runs in MLflow.
        folder: the study's folder, which contains the outbox and files that become artifacts.
        system_metrics: whether to record the load of this machine in the parent run.
        writer: the process of `begin_writer`, if it is already running.
        size: the counts of the network's prunable and other parameters. If given, the metric "sparsity_matrices" is
            recorded for each trial: the fraction of zeros among all weight matrices.

    Attributes:
        seconds: the time that callers have spent in the public methods.
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
        self._noting = threading.Lock()  # plots come from another thread
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
        """Return the id of the experiment in MLflow. The id is None until the store has been opened. Call `flush` to
        wait for this."""
        return self._status.get("experiment_id")

    @property
    def run_id(self) -> str | None:
        """Return the id of the parent run in MLflow. The id is None until the run has been found or created. Call
        `flush` to wait for this."""
        return self._status.get("run_id")

    @property
    def problems(self) -> list[str]:
        """Return a line for each part of the study that is missing in MLflow. The list is complete after `close`."""
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
        """Return whether there are notes that have not arrived yet."""
        return bool(self._status["offset"] < self._outbox.size())

    @_timed
    def start_study(self, params: Mapping[str, Any], tags: Mapping[str, str], **more: Any) -> None:
        """Begin the parent run, or continue it if the study is resumed.

        Args:
            params: the parameters of the parent run.
            tags: the tags of the parent run.
            more: the keyword argument `dataset`, which is the result of `tuner.tracking.dataset.dataset_note`.
        """
        self._note(PARENT, params=params, tags=tags, status=RUNNING, **more)

    @_timed
    def start_trial(self, record: TrialRecord) -> None:
        """Begin a trial's run, or continue it if the trial is resumed."""
        self._tell(record, {})

    @_timed
    def recall(self, record: TrialRecord) -> None:
        """Record the end of a trial, if it is not recorded yet. Call this method for trials that ended before the study
        was resumed: the earlier process may have been killed before it recorded the end."""
        if self._outbox.statuses.get(record.name) != STATUS[record.state]:
            self._end(record)

    @_timed
    def log_epoch(self, number: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of an epoch. Epochs must come in ascending order. An epoch that is already recorded is not
        recorded again.

        Args:
            number: the number of the trial.
            epoch: the number of the epoch, which is the step in MLflow.
            metrics: a dict from the names of metrics to their values. NaN is kept. Infinite values become NaN, which
                MLflow can show. Values that float() does not accept are left out.
        """
        self._note(trial_name(number), metrics=metrics, step=epoch)

    @_timed
    def end_trial(self, record: TrialRecord) -> None:
        """End a trial's run with its state and its final metrics."""
        self._end(record)

    @_timed
    def log_artifacts(self, files: Iterable[Path]) -> None:
        """Add files and folders as artifacts of the parent run. A folder becomes a folder of artifacts with the same
        name.

        A file is read when it is sent, so its newest content is recorded. The same file may be added again after a
        change.
        """
        self._note(PARENT, files=files)

    @_timed
    def log_networks(
        self, folders: Iterable[Path], model: Mapping[str, Any] | None, group: Mapping[str, Any] | None = None
    ) -> None:
        """Add networks as artifacts of the parent run, and begin to send them at once.

        Sending takes about a second. The caller can do other work meanwhile.

        Args:
            folders: the folders of the networks.
            model: the description of the best network, from `tuner.tracking.model.model_note`; None if there is none.
            group: the description of a group of two networks, from `model_note`; None if there is none.
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
        """End the parent run, and set the tag `pareto` of the trials on the front to "true". Runs of trials that have
        not ended get the status KILLED.

        Args:
            status: FINISHED, FAILED or KILLED.
            metrics: the metrics of the parent run.
            pareto: the numbers of the trials on the front.
            artifacts: files and folders, as in `log_artifacts`.
        """
        front = {trial_name(number) for number in pareto}
        for name in sorted(self._outbox.pareto ^ front):
            self._note(name, tags={"pareto": str(name in front).lower()})
        self._kill_trials()
        self._note(PARENT, metrics=metrics, files=artifacts, status=status)
        self._finished = True

    @_timed
    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all notes so far have arrived, or until several attempts to reach the store have failed.

        Args:
            timeout: the longest time to wait, in seconds. If None, there is no limit.

        Returns:
            Whether all notes have arrived.
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
        """Wait until all notes have arrived, or until several attempts to reach the store have failed. After this,
        `problems` lists what is missing.

        If `finish_study` was not called, the parent run ends with the status KILLED. Further calls of `close` have no
        effect.

        Args:
            timeout: the longest time to wait, in seconds. If None, there is no such limit. With and without a limit,
                the wait ends if the sending process writes nothing for 90 seconds (the constant SILENCE).
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
        measured = {name: getattr(record, name) for name in (*MEASURES, "epochs", "seconds")}
        measured[record.objective.val] = record.value
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
        except OSError as error:  # for example, the disk is full: the search goes on without a complete record
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
        except (OSError, ValueError):  # the writer has died or is closed, which `problems` reports
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
        """Return the last line in the log of the sending process, if this process has died. Return "" if the log is
        empty."""
        try:
            lines = self._log.read_text().strip().splitlines()
        except OSError:
            return ""
        return f"the writing process ended: {lines[-1]}" if lines else ""
