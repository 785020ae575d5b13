"""MLflow as the tracker's writer thread sees it: runs, what each is still owed, and the store that takes it.

Only `MlflowClient` with an explicit URI is used: MLflow's global state and its environment variables decide nothing.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.tracking_uri import redact, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

_Point = tuple[str, float, int, int]  # a metric's name, value, Unix time in ms, step
_Recorded = dict[str, tuple[int, float]]  # the last step and value of each metric
PARAM_LENGTH, TAG_LENGTH, KEY_LENGTH = 6000, 5000, 250  # MLflow's limits, in characters
# Answers that trying again would not change.
LASTING = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "PERMISSION_DENIED"}
_CREATE_STORE = "import sys, mlflow; mlflow.MlflowClient(tracking_uri=sys.argv[1]).search_experiments()"


@dataclass(frozen=True)
class StudyIdentity:
    """Which study the runs belong to. The same study in the same experiment continues the same runs."""

    study: str
    experiment: str
    target: float | str  # sparsity, a fraction in [0, 1]; of other goals the option's value
    method: str  # one name, or several separated by commas


@dataclass
class Owed:
    """What the store has not been told yet about one run: plain data, so that it could be kept in a file as well."""

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[_Point] = field(default_factory=list)
    artifacts: list[Path] = field(default_factory=list)
    status: tuple[str, int] | None = None  # MLflow's status, and since when (Unix time in ms)

    def then(self, later: Owed) -> Owed:
        return Owed(
            {**self.params, **later.params},
            {**self.tags, **later.tags},
            self.metrics + later.metrics,
            self.artifacts + later.artifacts,
            later.status or self.status,
        )


@dataclass(eq=False)
class TrackedRun:
    """One run, parent or trial. Callers write `owed` and `ended` under the tracker's lock; the rest is the writer's."""

    name: str
    identity: dict[str, str]  # the tags by which a later process finds the run again
    started: int = field(default_factory=lambda: now_ms())
    owed: Owed = field(default_factory=Owed)
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
        now = now_ms()
        self.owed.params.update({_key(k): str(v)[:PARAM_LENGTH] for k, v in (params or {}).items()})
        self.owed.tags.update({_key(k): str(v)[:TAG_LENGTH] for k, v in (tags or {}).items()})
        numbers = ((_key(k), _number(v)) for k, v in (metrics or {}).items())
        self.owed.metrics += [(k, v, now, step) for k, v in numbers if v is not None]
        if status:
            self.owed.status = (status, now)


class Store:
    """MLflow as the writer thread sees it. Every method may raise whatever MLflow raises, and may be called again."""

    def __init__(self, uri: str, identity: StudyIdentity, parent: TrackedRun) -> None:
        self.uri, self.identity, self.parent = uri, identity, parent
        self.experiment_id: str | None = None
        self.client: MlflowClient
        self._found: dict[str, MlflowRun] | None = None  # the parent's trials of earlier processes; None: not asked yet

    def open(self) -> None:
        """Imports MLflow, and finds or creates the store and the experiment."""
        if self.experiment_id is not None:
            return
        file = sqlite_file(self.uri)
        if file is not None:
            prepare_sqlite(file)
        from mlflow import MlflowClient  # takes seconds: never on the caller's thread

        quiet_loggers()
        self.client = MlflowClient(tracking_uri=self.uri)
        name = f"tune-sparsity/{self.identity.experiment}"
        # Without a server, MLflow would put artifacts under whatever the current folder is.
        folder = None if file is None else (file.parent / "mlartifacts" / name.replace(":", "_")).absolute().as_uri()
        self.experiment_id = self._experiment(name, folder)

    def _experiment(self, name: str, artifacts: str | None) -> str:
        found = self.client.get_experiment_by_name(name)  # finds deleted ones too
        if found is None:
            # Refused when another study is quicker, and then the next round finds that one's.
            return self.client.create_experiment(name, artifact_location=artifacts)
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def ensure(self, run: TrackedRun) -> str:
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

    def _create(self, run: TrackedRun, parent_id: str | None) -> None:
        tags = {"mlflow.source.name": "tune-sparsity", **run.identity}
        if parent_id is not None:
            tags["mlflow.parentRunId"] = parent_id
        found, self._found = self._found, None  # asked again after a failure: perhaps only the answer was lost
        created = self.client.create_run(self.experiment_id or "", run.started, tags, run.name)
        self._found = {} if parent_id is None else found
        run.run_id, run.recorded = created.info.run_id, {}

    def _find_parent(self) -> MlflowRun | None:
        quote = '"' if "'" in self.identity.study else "'"
        query = f"tags.study = {quote}{self.identity.study}{quote} and tags.role = 'parent'"
        return next(iter(self._search(query, 1)), None)

    def trials(self) -> dict[str, MlflowRun]:
        """The study's trials that earlier processes recorded, by name."""
        if self._found is None:
            runs = self._search(f"tags.`mlflow.parentRunId` = '{self.ensure(self.parent)}'")
            self._found = {run.data.tags["trial"]: run for run in reversed(runs) if "trial" in run.data.tags}
        return self._found

    def _search(self, query: str, limit: int | None = None) -> list[MlflowRun]:
        runs: list[MlflowRun] = []
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id or ""],
                query,
                max_results=limit or 1000,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            runs += page
            token = page.token
            if limit or not token:
                return runs

    def write(self, run: TrackedRun, owed: Owed) -> list[str]:
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
                refused.append(f"MLflow run {run.name}: {what} not recorded: {one_line(error)}")

        # MLflow's parameters cannot change: what a resumed study was given differently is kept as a tag.
        changed = {f"resumed.{k}": v for k, v in owed.params.items() if run.params.get(k, v) != v}
        params = {k: v for k, v in owed.params.items() if k not in run.params}
        tags = [RunTag(*item) for item in {**owed.tags, **changed}.items()]
        metrics, recorded = self._news(run, owed.metrics)
        # MLflow's client keeps a batch's limits itself; True: now, whatever MLFLOW_ENABLE_ASYNC_LOGGING says.
        log = self.client.log_batch
        send("parameters", lasting, log, (), [Param(*item) for item in params.items()], (), True)
        send("metrics and tags", lasting, log, [Metric(*item) for item in metrics], (), tags, True)
        run.params.update(params)
        run.recorded = recorded
        for path in owed.artifacts:  # a folder goes under its own name; no failure of theirs keeps the run from ending
            send(f"artifact {path.name}", lambda error: True, self.client.log_artifact, str(path))
        if owed.status is not None and owed.status[0] != run.status:
            if owed.status[0] == "RUNNING":
                send("status", lasting, self.client.update_run, "RUNNING")
            else:
                send("status", lasting, self.client.set_terminated, *owed.status)
            run.status = owed.status[0]
        return refused

    def _news(self, run: TrackedRun, metrics: list[_Point]) -> tuple[list[_Point], _Recorded | None]:
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

    def _last_points(self, run: TrackedRun) -> _Recorded:
        last: _Recorded = {}
        run_id = self.ensure(run)
        for name in self.client.get_run(run_id).data.metrics:
            points = self.client.get_metric_history(run_id, name)
            if points:
                newest = max(points, key=lambda point: (point.step, point.timestamp))
                last[name] = (newest.step, newest.value)
        return last


def prepare_sqlite(file: Path) -> None:
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


def quiet_environment() -> None:
    # Standard output is --json's, and a dead server would be tried for minutes within one call.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")


def quiet_loggers() -> None:
    """Leaves warnings of MLflow's; what fails is told in `Tracker.problems`, once, and not as tracebacks."""
    if os.environ.get("MLFLOW_LOGGING_LEVEL"):
        return
    levels = {"mlflow": logging.WARNING, "alembic": logging.WARNING, "mlflow.store.db.utils": logging.CRITICAL}
    for name, level in {**levels, "urllib3.connectionpool": logging.ERROR}.items():
        logging.getLogger(name).setLevel(level)


def now_ms() -> int:
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


def lasting(error: Exception) -> bool:
    return isinstance(error, ValueError | TypeError) or getattr(error, "error_code", "") in LASTING


def one_line(error: BaseException) -> str:
    """What went wrong, and the cause at the bottom of it, which says more than MLflow's account of its request."""
    root = error
    while below := root.__cause__ or root.__context__:
        root = below
    return _brief(error, 300) if root is error else f"{_brief(root, 150)} ({_brief(error, 150)})"


def _brief(error: BaseException, length: int) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return redact(f"{type(error).__name__}: {line}")[:length]
