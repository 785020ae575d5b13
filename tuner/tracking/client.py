"""Write the runs of a study to an MLflow store.

This module uses only `MlflowClient` with an explicit URI. MLflow's global tracking URI and the environment variable
MLFLOW_TRACKING_URI have no effect.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_sparsity.tuner.config.tracking_uri import STRAY, is_server, sqlite_file, with_driver
from tune_sparsity.tuner.errors import redact
from tune_sparsity.tuner.tracking.outbox import PARENT, RUNNING, Note, StudyIdentity
from tune_sparsity.tuner.tracking.sqlite_template import make_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

SENDERS = 4  # requests that are sent to a server at once, so that it is never idle; a database gets one at a time
_Point = tuple[str, float, int, int]  # a metric's name, value, Unix time in ms, step
# Errors that another attempt would not avoid.
LASTING = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "PERMISSION_DENIED"}


@dataclass
class Owed:
    """Collects, from several notes, all that must still be sent to the store for one MLflow run. A note is a line of
    the outbox (see outbox.Note)."""

    started: int  # Unix time in ms
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[_Point] = field(default_factory=list)
    files: dict[str, None] = field(default_factory=dict)  # an ordered set
    status: tuple[str, int] | None = None  # MLflow's status and its time (Unix time in ms)
    dataset: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    group: dict[str, Any] = field(default_factory=dict)

    def add(self, note: Note) -> None:
        self.params |= note.params
        self.tags |= note.tags
        self.metrics += [(name, value, note.at, note.step) for name, value in note.metrics.items()]
        self.files |= dict.fromkeys(note.files)
        if note.status:
            self.status = (note.status, note.at)
        self.dataset, self.model = note.dataset or self.dataset, note.model or self.model
        self.group = note.group or self.group


def by_run(notes: Iterable[Note]) -> dict[str, Owed]:
    """Group unsent notes by MLflow run. Return a dict from the names of runs to their `Owed`. The study's parent run is
    the last key, so that this run is sent last and ends after the trials' runs."""
    owed: dict[str, Owed] = {}
    for note in notes:
        owed.setdefault(note.run, Owed(note.at)).add(note)
    if PARENT in owed:
        owed[PARENT] = owed.pop(PARENT)
    return owed


class RunWriter:
    """Writes a study's runs to one MLflow store. Every method may raise MLflow's errors. After an error, the method may
    be called again.

    Args:
        uri: the tracking URI.
        identity: the identity of the study: its name, experiment, target, method and id.
        folder: the study's folder. The paths of artifacts in notes are relative to it.
        runs: a dict from the names of runs to their ids in MLflow, for the runs whose ids are already known. This
            object adds the ids of other runs.
    """

    def __init__(self, uri: str, identity: StudyIdentity, folder: Path, runs: dict[str, str]) -> None:
        self.uri, self.identity, self.folder, self.runs = uri, identity, folder, runs
        self.experiment_id: str | None = None
        self.client: MlflowClient
        self._found: dict[str, MlflowRun] | None = None  # the trials' runs in the store by name; None: not searched yet

    def open(self) -> None:
        """Import MLflow, and find or create the study's experiment in the store. If the store is an SQLite file that
        does not exist, create it."""
        if self.experiment_id is not None:
            return
        if (file := sqlite_file(self.uri)) is not None:
            prepare_sqlite(file)
        from mlflow import MlflowClient  # the import takes seconds and must not delay the driver

        quiet_loggers()
        self.client = MlflowClient(tracking_uri=with_driver(self.uri))
        name = f"tune-sparsity/{self.identity.experiment}"
        found = self.client.get_experiment_by_name(name)  # includes deleted experiments
        if found is None:
            # If another study creates the experiment first, this call fails, and the next attempt finds the experiment.
            self.experiment_id = self.client.create_experiment(name, artifact_location=self._artifacts(name))
            return
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        self.experiment_id = found.experiment_id

    def _artifacts(self, experiment: str) -> str | None:
        """Return the artifact location for a new experiment. Return None for a server, which chooses its own location.

        For a database, MLflow would use the current folder. This method chooses a folder next to the SQLite file, or
        next to the study's folder for another database.
        """
        if is_server(self.uri):
            return None
        file = sqlite_file(self.uri)
        folder = self.folder.parent if file is None else file.parent
        return (folder / "mlartifacts" / experiment.replace(":", "_")).absolute().as_uri()

    def knows_the_study(self) -> bool:
        """Return whether the store contains the study's parent run. For example, the store does not contain the run if
        somebody has replaced the store at this URI by another store."""
        if PARENT not in self.runs:
            return False
        from mlflow import MlflowException

        try:
            self.client.get_run(self.runs[PARENT])
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return True

    def ensure(self, name: str, started: int, more: Mapping[str, str]) -> tuple[str, bool]:
        """Find or create a run. Return its id in MLflow, and whether it is new.

        Args:
            name: the name of the run.
            started: the start of the run as Unix time in ms.
            more: tags for a new run, in addition to the tags that identify its study and trial. A run that already
                exists does not get these tags.
        """
        if name in self.runs:
            return self.runs[name], False
        parent_id = None if name == PARENT else self.ensure(PARENT, started, {})[0]
        found = self._find_parent() if parent_id is None else self._trials(parent_id).get(name)
        self.runs[name] = self._create(name, started, parent_id, more) if found is None else found.info.run_id
        return self.runs[name], found is None

    def _create(self, name: str, started: int, parent_id: str | None, more: Mapping[str, str]) -> str:
        of = self.identity
        tags = {**more, "mlflow.source.name": "tune-sparsity", "study": of.study, "study_id": of.id}
        if parent_id is None:
            tags |= {"role": "parent", "target": str(of.target), "method": of.method}
        else:
            tags |= {"role": "trial", "trial": name, "number": str(int(name[1:])), "mlflow.parentRunId": parent_id}
        try:
            created = self.client.create_run(self.experiment_id or "", started, tags, name if parent_id else of.study)
        except Exception:
            self._found = None  # search again: the run may exist if only the response was lost
            raise
        if parent_id is None:
            self._found = {}
        return created.info.run_id

    def _find_parent(self) -> MlflowRun | None:
        query = f"tags.study_id = '{self.identity.id}' and tags.role = 'parent'"
        return next(iter(self._search(query, 1)), None)

    def _trials(self, parent_id: str) -> dict[str, MlflowRun]:
        """Return a dict from the names of the study's trials to their runs. The store is searched only at the first
        call. Later runs are in `runs`."""
        if self._found is None:
            runs = self._search(f"tags.`mlflow.parentRunId` = '{parent_id}'")
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

    def write_all(self, owed: Mapping[str, Owed]) -> list[str]:
        """Write the notes about several runs. The notes about the parent run are written last.

        Args:
            owed: the result of `by_run`.

        Returns:
            A line for each item (such as an artifact, or the metrics and tags) that could not be written, if another
            attempt would fail, too.
        """
        trials = [(name, each) for name, each in owed.items() if name != PARENT]
        if trials:  # find the runs before several threads need them
            self._trials(self.ensure(PARENT, min(each.started for each in owed.values()), {})[0])
        with ThreadPoolExecutor(SENDERS if is_server(self.uri) else 1) as pool:
            sent = [pool.submit(self.write, *each) for each in trials]
            wait(sent, return_when=FIRST_EXCEPTION)
            pool.shutdown(cancel_futures=True)  # do not try every run if the server is away
        refused = [line for each in sent if not each.cancelled() for line in each.result()]
        return refused + (self.write(PARENT, owed[PARENT]) if PARENT in owed else [])

    def write(self, name: str, owed: Owed) -> list[str]:
        """Write the notes about one run. After an error, this method can be called again with the same notes, because
        writing the same note twice changes nothing.

        Args:
            name: the name of the run.
            owed: what the notes contain, from `by_run`.

        Returns:
            Lines about refused items, as in `write_all`.
        """
        from mlflow.entities import Metric, Param, RunTag

        from tune_sparsity.tuner.tracking.dataset import log_dataset
        from tune_sparsity.tuner.tracking.model import log_model

        refused = list[str]()
        run_id, new = self.ensure(name, owed.started, owed.tags)

        def send(what: str, final: Callable[[Exception], bool], call: Callable[..., Any], *args: Any) -> None:
            try:
                call(run_id, *args)
            except Exception as error:
                if not final(error):
                    raise
                refused.append(f"MLflow run {name or self.identity.study}: {what} not recorded: {one_line(error)}")

        params = [Param(*item) for item in owed.params.items()]
        metrics = [Metric(*item) for item in owed.metrics]
        tags = [] if new else [RunTag(*item) for item in owed.tags.items()]
        # MLflow's client splits batches that are too large. True: send now, even with MLFLOW_ENABLE_ASYNC_LOGGING.
        send("metrics, parameters and tags", lasting, self.client.log_batch, metrics, params, tags, True)
        if owed.dataset:
            send("the data set", lasting, lambda run: log_dataset(self.client, run, owed.dataset))
        for file in owed.files:  # MLflow stores a folder as a folder with the same name
            send(f"artifact {Path(file).name}", _local, self.client.log_artifact, str(self.folder / file))
        for what, model in {"the best network": owed.model, "the group of networks": owed.group}.items():
            if model:
                send(what, _local, log_model, self.client, self.experiment_id or "", self.folder, model)
        if owed.status is not None and not (new and owed.status[0] == RUNNING):  # a new run is RUNNING
            if owed.status[0] == RUNNING:
                send("status", lasting, self.client.update_run, RUNNING)
            else:
                send("status", lasting, self.client.set_terminated, *owed.status)
        return refused


def prepare_sqlite(file: Path) -> None:
    """Create an SQLite store as a whole or not at all. If the store exists but cannot be written, raise sqlite3.Error.

    MLflow creates a new file step by step. If a study were killed during these steps, MLflow would refuse the
    incomplete file forever. If two studies started at the same time, one would fail. This function therefore creates
    the store in a temporary folder, and moves the complete file to `file`.
    """
    if file.exists():
        # If the file cannot be written, MLflow would report this only after 90 seconds.
        with closing(sqlite3.connect(file, timeout=20)) as database:
            database.execute("BEGIN IMMEDIATE")
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    import mlflow  # noqa: F401  # the import sets up the loggers

    quiet_loggers()
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=file.parent) as folder:
        new = Path(folder) / file.name
        make_store(new, (file.parent / "mlartifacts").absolute().as_uri())
        with new.open("rb") as handle:
            os.fsync(handle.fileno())
        try:
            os.link(new, file)
        except FileExistsError:  # another study has created the store
            pass
        except OSError:  # a file system without hard links
            if not file.exists():
                os.replace(new, file)


def own_environment() -> None:
    """Change the environment variables of MLflow in this process, which only sends notes to a store."""
    for name in STRAY:
        os.environ.pop(name, None)
    # With MLflow's defaults, one call would try a dead server for minutes.
    for name, value in {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_UV_AUTO_DETECT": "false",  # a logged model does not depend on the project in the current folder
    }.items():
        os.environ.setdefault(name, value)


def quiet_loggers() -> None:
    """Hide MLflow's log messages below the level WARNING. Failures are reported elsewhere, once and without
    tracebacks."""
    if os.environ.get("MLFLOW_LOGGING_LEVEL"):
        return
    levels = {"mlflow": logging.WARNING, "alembic": logging.WARNING, "mlflow.store.db.utils": logging.CRITICAL}
    for name, level in {**levels, "urllib3.connectionpool": logging.ERROR}.items():
        logging.getLogger(name).setLevel(level)


def lasting(error: Exception) -> bool:
    return isinstance(error, ValueError | TypeError) or getattr(error, "error_code", "") in LASTING


def _local(error: Exception) -> bool:
    """Return whether another attempt would fail, too. Either the store always refuses the content, or a file cannot be
    read. Everything else of the run can still be sent."""
    return lasting(error) or isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError)


def one_line(error: BaseException) -> str:
    """Return the error and its root cause in one line. The root cause stands first in the line, because MLflow's own
    errors often say little."""
    root = error
    while below := root.__cause__ or root.__context__:
        root = below
    return _brief(error, 300) if root is error else f"{_brief(root, 150)} ({_brief(error, 150)})"


def _brief(error: BaseException, length: int) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return redact(f"{type(error).__name__}: {line}")[:length]
