"""The study's record in MLflow: one parent run a study, one nested run a trial, written by one thread of the driver.

Nothing here holds the search up. `Tracker` notes down what each run is owed; its writer thread imports MLflow, creates
the store and writes, one batch a run. What cannot be written now stays owed and is tried again, and what remains at the
end is told in `Tracker.problems`, never raised into the search.

Only `MlflowClient` with an explicit URI is used: MLflow's global state and its environment variables decide nothing.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import math
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from tuner.records import TrialRecord, TrialState, trial_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

P = ParamSpec("P")
R = TypeVar("R")
_Point = tuple[str, float, int, int]  # a metric's name, value, Unix time in ms, step
_Recorded = dict[str, tuple[int, float]]  # the last step and value of each metric

GATHER = 1.0  # seconds for which reports are gathered into one batch, since every write takes time from the trials
ATTEMPTS = 3  # failures in a row after which the store is said to be away
PARAM_LENGTH, TAG_LENGTH, KEY_LENGTH = 6000, 5000, 250  # MLflow's limits, in characters
ACCEPTED = "sqlite:///FILE, postgresql://..., mysql://..., mssql://..., http(s)://HOST or databricks"
STATUS = {
    TrialState.RUNNING: "RUNNING",
    TrialState.COMPLETED: "FINISHED",
    TrialState.PRUNED: "FINISHED",  # MLflow has no such status: the tag `state` tells it from completed
    TrialState.FAILED: "FAILED",
}
# Answers that trying again would not change.
LASTING = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "PERMISSION_DENIED"}
_SQLITE = re.compile(r"^(sqlite(?:\+\w+)?:///)([^?]+)", re.IGNORECASE)
_CREATE_STORE = "import sys, mlflow; mlflow.MlflowClient(tracking_uri=sys.argv[1]).search_experiments()"


def resolve_tracking_uri(option: str | None) -> str:
    """`option`, else MLFLOW_TRACKING_URI, else mlflow.db in the current folder; SQLite files as absolute paths."""
    uri = (option or "").strip() or os.environ.get("MLFLOW_TRACKING_URI", "").strip() or "sqlite:///mlflow.db"
    return _SQLITE.sub(lambda match: f"{match[1]}{Path.cwd() / match[2]}", uri)


def check_tracking_uri(uri: str) -> None:
    """Checks a tracking URI's form, without MLflow and without touching the store.

    Raises:
        ValueError: In one line, what is wrong and what is accepted.
    """
    scheme, _, rest = uri.partition("://")
    plain = scheme.partition("+")[0].lower()
    if plain in ("postgresql", "mysql", "mssql", "http", "https") and rest.strip("/"):
        return
    if plain == "sqlite" and (file := _sqlite_file(uri)) is not None and file.name not in ("", ":memory:"):
        return
    plugins = importlib.metadata.entry_points(group="mlflow.tracking_store")
    if scheme == "databricks" or scheme in plugins.names:
        return
    folder = "MLflow no longer writes to plain folders: " if plain == "file" or "://" not in uri else ""
    raise ValueError(f"tracking URI {redact(uri)!r}: {folder}use {ACCEPTED}")


def redact(text: str) -> str:
    """`text` without the user names and passwords of the URIs in it."""
    text = re.sub(r"://(?:[^\s/@]*:[^\s]*|[^\s/?#]*)@", "://***@", text)
    return re.sub(r"(?i)\b(password|token|secret)=[^&\s]+", r"\1=***", text)


def stray_environment() -> list[str]:
    """The MLflow variables that are set and would redirect other tools' runs; here they are ignored."""
    names = ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID")
    return [name for name in names if os.environ.get(name)]


def _sqlite_file(uri: str) -> Path | None:
    match = _SQLITE.match(uri)
    return Path(match[2]) if match else None


@dataclass(frozen=True)
class StudyIdentity:
    """Which study the runs belong to. The same study in the same experiment continues the same runs."""

    study: str
    experiment: str
    target: float  # sparsity, a fraction in [0, 1]
    method: str  # one name, or several separated by commas


@dataclass
class _Owed:
    """What the store has not been told yet about one run: plain data, so that it could be kept in a file as well."""

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[_Point] = field(default_factory=list)
    artifacts: list[Path] = field(default_factory=list)
    status: tuple[str, int] | None = None  # MLflow's status, and since when (Unix time in ms)

    def then(self, later: _Owed) -> _Owed:
        return _Owed(
            {**self.params, **later.params},
            {**self.tags, **later.tags},
            self.metrics + later.metrics,
            self.artifacts + later.artifacts,
            later.status or self.status,
        )


@dataclass(eq=False)
class _Run:
    """One run, parent or trial. Callers write `owed` and `ended` under the tracker's lock; the rest is the writer's."""

    name: str
    identity: dict[str, str]  # the tags by which a later process finds the run again
    started: int = field(default_factory=lambda: _now())
    owed: _Owed = field(default_factory=_Owed)
    ended: bool = False
    run_id: str | None = None
    status: str = "RUNNING"  # as the store has it
    params: dict[str, str] = field(default_factory=dict)  # as the store has them
    recorded: _Recorded | None = None  # as the store has them; None: not asked yet

    def owe(
        self,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        step: int = 0,
        status: str | None = None,
    ) -> None:
        now = _now()
        self.owed.params.update({_key(k): str(v)[:PARAM_LENGTH] for k, v in (params or {}).items()})
        self.owed.tags.update({_key(k): str(v)[:TAG_LENGTH] for k, v in (tags or {}).items()})
        numbers = ((_key(k), _number(v)) for k, v in (metrics or {}).items())
        self.owed.metrics += [(k, v, now, step) for k, v in numbers if v is not None]
        if status:
            self.owed.status = (status, now)


class _Store:
    """MLflow as the writer thread sees it. Every method may raise whatever MLflow raises, and may be called again."""

    def __init__(self, uri: str, identity: StudyIdentity, parent: _Run) -> None:
        self.uri, self.identity, self.parent = uri, identity, parent
        self.experiment_id: str | None = None
        self.client: MlflowClient
        self._found: dict[str, Run] | None = None  # the parent's trials of earlier processes; None: not asked yet

    def open(self) -> None:
        """Imports MLflow, and finds or creates the store and the experiment."""
        if self.experiment_id is not None:
            return
        file = _sqlite_file(self.uri)
        if file is not None:
            _prepare_sqlite(file)
        from mlflow import MlflowClient  # takes seconds: never on the caller's thread

        _quiet_loggers()
        self.client = MlflowClient(tracking_uri=self.uri)
        name = f"tune-sparsity/{self.identity.experiment}"
        # Without a server, MLflow would put artifacts under whatever the current folder is.
        folder = None if file is None else (file.parent / "mlartifacts" / name.replace(":", "_")).absolute().as_uri()
        self.experiment_id = self._experiment(name, folder)

    def _experiment(self, name: str, artifacts: str | None) -> str:
        found = self.client.get_experiment_by_name(name)  # finds deleted ones too
        if found is None:
            try:
                return self.client.create_experiment(name, artifact_location=artifacts)
            except Exception as error:
                if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self.client.get_experiment_by_name(name)  # another process was quicker
        if found is None:
            raise RuntimeError(f"experiment {name} is there and cannot be read")
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def ensure(self, run: _Run) -> str:
        """The run's id: of the run that an earlier process began, or of a new one."""
        if run.run_id is None:
            parent_id = None if run is self.parent else self.ensure(self.parent)
            found = self._find_parent() if parent_id is None else self.trials().get(run.name)
            if found is None:
                self._create(run, parent_id)
            else:
                run.run_id, run.status, run.params = found.info.run_id, found.info.status, dict(found.data.params)
        assert run.run_id is not None
        return run.run_id

    def _create(self, run: _Run, parent_id: str | None) -> None:
        tags = {"mlflow.source.name": "tune-sparsity", **run.identity}
        if parent_id is not None:
            tags["mlflow.parentRunId"] = parent_id
        found, self._found = self._found, None  # asked again after a failure: perhaps only the answer was lost
        created = self.client.create_run(self.experiment_id or "", run.started, tags, run.name)
        self._found = {} if parent_id is None else found
        run.run_id, run.recorded = created.info.run_id, {}

    def _find_parent(self) -> Run | None:
        quote = '"' if "'" in self.identity.study else "'"
        query = f"tags.study = {quote}{self.identity.study}{quote} and tags.role = 'parent'"
        return next(iter(self._search(query, 1)), None)

    def trials(self) -> dict[str, Run]:
        """The study's trials that earlier processes recorded, by name."""
        if self._found is None:
            runs = self._search(f"tags.`mlflow.parentRunId` = '{self.ensure(self.parent)}'")
            self._found = {run.data.tags["trial"]: run for run in reversed(runs) if "trial" in run.data.tags}
        return self._found

    def _search(self, query: str, limit: int | None = None) -> list[Run]:
        runs: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id or ""], query, 1, limit or 1000, ["attributes.start_time ASC"], token
            )
            runs += page
            token = page.token
            if limit or not token:
                return runs

    def write(self, run: _Run, owed: _Owed) -> list[str]:
        """Writes what is owed, in an order that may be repeated after a failure.

        Returns:
            A line for each part that the store refuses for good.
        """
        from mlflow.entities import Metric, Param, RunTag

        run_id, refused = self.ensure(run), list[str]()

        def send(what: str, final: Callable[[Exception], bool], call: Callable[..., Any], *args: Any) -> None:
            try:
                call(run_id, *args)
            except Exception as error:
                if not final(error):
                    raise
                refused.append(f"MLflow run {run.name}: {what} not recorded: {_one_line(error)}")

        # MLflow's parameters cannot change: what a resumed study was given differently is kept as a tag.
        changed = {f"resumed.{k}": v for k, v in owed.params.items() if run.params.get(k, v) != v}
        params = {k: v for k, v in owed.params.items() if k not in run.params}
        tags = [RunTag(*item) for item in {**owed.tags, **changed}.items()]
        metrics, recorded = self._news(run, owed.metrics)
        # MLflow's client keeps a batch's limits itself; True: now, whatever MLFLOW_ENABLE_ASYNC_LOGGING says.
        log = self.client.log_batch
        send("parameters", _lasting, log, (), [Param(*item) for item in params.items()], (), True)
        send("metrics and tags", _lasting, log, [Metric(*item) for item in metrics], (), tags, True)
        run.params.update(params)
        run.recorded = recorded
        for path in owed.artifacts:  # a folder goes under its own name; no failure of theirs keeps the run from ending
            send(f"artifact {path.name}", lambda error: True, self.client.log_artifact, str(path))
        if owed.status is not None and owed.status[0] != run.status:
            if owed.status[0] == "RUNNING":
                send("status", _lasting, self.client.update_run, "RUNNING")
            else:
                send("status", _lasting, self.client.set_terminated, *owed.status)
            run.status = owed.status[0]
        return refused

    def _news(self, run: _Run, metrics: list[_Point]) -> tuple[list[_Point], _Recorded | None]:
        """The metrics that are not in the store, so that epochs run again after a restart do not appear twice."""
        if not metrics:
            return [], run.recorded
        last, news = dict(self._last_points(run) if run.recorded is None else run.recorded), list[_Point]()
        for point in metrics:
            name, value, _, step = point
            known = last.get(name, (-1, math.nan))
            if step > known[0] or (step == known[0] and repr(value) != repr(known[1])):  # repr: NaN is not NaN
                last[name] = (step, value)
                news.append(point)
        return news, last

    def _last_points(self, run: _Run) -> _Recorded:
        last: _Recorded = {}
        run_id = self.ensure(run)
        for name in self.client.get_run(run_id).data.metrics:
            points = self.client.get_metric_history(run_id, name)
            if points:
                newest = max(points, key=lambda point: (point.step, point.timestamp))
                last[name] = (newest.step, newest.value)
        return last


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
        self._study = _Run(identity.study, tags)
        self._trials: dict[int, _Run] = {}
        self._store = _Store(uri, identity, self._study)
        self._changed = threading.Condition()
        self._owing: dict[_Run, None] = {}  # the runs that are owed something, oldest debt first
        self._finish: tuple[frozenset[int], int] | None = None  # the front's trials, and when the study ended
        self._busy = self._closing = self._closed = False
        self._hurry = 0  # callers waiting in flush
        self._failures = 0  # in a row
        self._error = ""
        self._refused: list[str] = []
        _quiet_environment()
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
            self._finish = (frozenset(pareto), _now())
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

    def _trial(self, number: int) -> _Run:
        name = trial_name(number)
        tags = {"role": "trial", "study": self.identity.study, "trial": name, "number": str(number)}
        return self._trials.setdefault(number, _Run(name, tags))

    def _tell(self, record: TrialRecord, metrics: Mapping[str, Any]) -> None:
        run = self._trial(record.number)
        run.ended = record.state is not TrialState.RUNNING
        tags = {"method": record.method, "state": record.state.value, "reason": record.reason}
        self._owe(
            run, params=record.params, tags=tags, metrics=metrics, step=record.epochs, status=STATUS[record.state]
        )

    def _owe(self, run: _Run, **what: Any) -> None:
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
                failures, error = self._failures + 1, _one_line(caught)
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
                owed, run.owed = run.owed, _Owed()
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


def _prepare_sqlite(file: Path) -> None:
    """Fails early when an SQLite store cannot be written, and creates a new one whole or not at all.

    MLflow builds a new file in place, in seconds. A study killed meanwhile leaves a file that MLflow refuses from then
    on, and of two studies that start together one fails. So a process of its own builds the file elsewhere, and it is
    linked into place complete.
    """
    if file.exists():
        # MLflow would try for over a minute and a half before it says the same.
        with closing(sqlite3.connect(file, timeout=20)) as database:
            database.execute("BEGIN IMMEDIATE")
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=file.parent) as folder:
        new = Path(folder) / file.name
        command = [sys.executable, "-P", "-c", _CREATE_STORE, f"sqlite:///{new}"]
        # A session of its own: an interrupt from the keyboard ends the search, and its record is still to be written.
        made = subprocess.run(command, capture_output=True, text=True, start_new_session=True)
        if made.returncode:
            raise RuntimeError(f"{file} could not be created: {(made.stderr.strip().splitlines() or ['?'])[-1]}")
        try:
            os.link(new, file)
        except FileExistsError:  # another study was quicker: its file is as good
            pass
        except OSError:  # a file system without hard links
            if not file.exists():
                os.replace(new, file)


def _quiet_environment() -> None:
    # Standard output is --json's, and a dead server would be tried for minutes within one call.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")


def _quiet_loggers() -> None:
    """Leaves warnings of MLflow's; what fails is told in `Tracker.problems`, once, and not as tracebacks."""
    if os.environ.get("MLFLOW_LOGGING_LEVEL"):
        return
    levels = {"mlflow": logging.WARNING, "alembic": logging.WARNING, "mlflow.store.db.utils": logging.CRITICAL}
    for name, level in {**levels, "urllib3.connectionpool": logging.ERROR}.items():
        logging.getLogger(name).setLevel(level)


def _now() -> int:
    return int(time.time() * 1000)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    # MLflow stores an infinity as 1.8e308, which flattens every chart it appears in.
    return math.nan if math.isinf(number) else number


def _key(name: str) -> str:
    """`name` as MLflow accepts it for a parameter, a tag or a metric."""
    parts = re.sub(r"[^/\w.\- ]", "_", name).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:KEY_LENGTH] or "_"


def _lasting(error: Exception) -> bool:
    return isinstance(error, ValueError | TypeError) or getattr(error, "error_code", "") in LASTING


def _one_line(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return redact(f"{type(error).__name__}: {text}"[:300])
