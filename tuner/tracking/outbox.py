"""Stores notes for MLflow in a file of the study, the outbox. A note says what to write to one run in MLflow. The
driver appends notes, and another process sends them.

All data for MLflow go through this file. Notes that have not arrived stay in it, so nothing is lost if a server or a
process fails. The file is in STUDY/tracking. Each line is a JSON document. The first line identifies the study.
Processes only append lines, and write each line with a single call. Readers skip a line that is incomplete after a
crash.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tune_sparsity.tuner.system.locks import lock

FOLDER, OUTBOX = "tracking", "outbox.jsonl"
PARENT = ""  # the name of the parent run in notes; the run of a trial has the trial's name
RUNNING, KILLED = "RUNNING", "KILLED"  # statuses of MLflow
ENDED = ("FINISHED", "FAILED")
UNENDED = {"state": "failed", "reason": "the study ended before this trial"}  # a KILLED trial's tags
PARAM_LENGTH, TAG_LENGTH, KEY_LENGTH = 6000, 5000, 250  # MLflow's limits, in characters


@dataclass(frozen=True)
class StudyIdentity:
    """Identifies the study to which runs in MLflow belong."""

    study: str
    experiment: str
    target: float | str  # the value of --target or --front (Goal.option); earlier versions wrote a number
    method: str  # one name, or several separated by commas
    id: str = ""  # unique, and equal in all processes of the study; another study with the same name has another id


@dataclass
class Note:
    """One note about a run of MLflow. Its values have types that MLflow accepts."""

    run: str
    at: int = field(default_factory=lambda: now_ms())  # Unix time in ms
    step: int = 0
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    status: str = ""  # a status of MLflow
    files: list[str] = field(default_factory=list)  # artifacts: files and folders, relative to the study's folder
    dataset: dict[str, Any] = field(default_factory=dict)  # the result of dataset_note
    model: dict[str, Any] = field(default_factory=dict)  # the result of model_note for the best network
    group: dict[str, Any] = field(default_factory=dict)  # the result of model_note for a group of two networks
    begin: str = ""  # the random id of a driver's session, in the driver's first note

    def line(self) -> str:
        said = {name: value for name, value in asdict(self).items() if value or name == "run"}
        if self.metrics:  # JSON has no NaN
            said["metrics"] = {k: v if math.isfinite(v) else str(v) for k, v in self.metrics.items()}
        return json.dumps(said, separators=(",", ":")) + "\n"

    @classmethod
    def read(cls, document: dict[str, Any]) -> Note:
        known = {one.name for one in fields(cls)}
        note = cls(**{name: value for name, value in document.items() if name in known})
        note.metrics = {name: float(value) for name, value in note.metrics.items()}
        return note


def outbox_file(study_folder: Path) -> Path:
    return study_folder / FOLDER / OUTBOX


def read_identity(file: Path) -> StudyIdentity:
    """Return the identity of the study that an outbox belongs to.

    Args:
        file: the outbox.

    Raises:
        OSError: if the file does not exist.
        ValueError: if the file is not an outbox.
    """
    with file.open("rb") as lines:
        document = json.loads(lines.readline())
    return StudyIdentity(**document["study"])


def read_notes(file: Path, offset: int = 0, limit: int | None = None) -> tuple[list[Note], int]:
    """Return the notes in an outbox that begin at `offset` or later.

    Args:
        file: the outbox.
        offset: a position in bytes.
        limit: the largest number of bytes to read, in whole lines. If the first line is longer, only this line is read.
            If None, all lines are read.

    Returns:
        The notes, and the offset after them.
    """
    with file.open("rb") as lines:
        lines.seek(offset)
        text = lines.read(-1 if limit is None else limit)
        if limit is not None and b"\n" not in text:  # a line that is longer than the limit
            text += lines.readline()
    text = text[: text.rfind(b"\n") + 1]
    notes = []
    for line in text.splitlines():
        with suppress(ValueError):  # an incomplete line
            document = json.loads(line)
            if isinstance(document, dict) and "run" in document:
                notes.append(Note.read(document))
    return notes, offset + len(text)


class Outbox:
    """Appends notes to a study's outbox. The outbox is created if it does not exist. Parameters and metrics that the
    outbox already contains are not written again.

    Attributes:
        identity: the identity of the study, from the first line of the outbox.
        statuses: a dict from the names of runs to their last statuses.
        pareto: the names of the runs whose last tag `pareto` in the outbox is "true".
    """

    def __init__(self, study_folder: Path, identity: StudyIdentity) -> None:
        self.folder, self.file = study_folder, outbox_file(study_folder)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        if not self.file.exists():
            document = {"study": asdict(identity) | {"id": uuid.uuid4().hex}}
            _append(self.file, json.dumps(document) + "\n")
        self.identity = read_identity(self.file)
        self.statuses: dict[str, str] = {}
        self._params: dict[str, dict[str, str]] = {}
        self._last: dict[str, dict[str, tuple[int, float]]] = {}  # the last step and value of each run's metrics
        self.pareto: set[str] = set()
        with self.file.open("rb") as lines:
            torn = lines.seek(0, os.SEEK_END) and lines.seek(-1, os.SEEK_END) >= 0 and lines.read(1) != b"\n"
        if torn:
            _append(self.file, "\n")
        for note in read_notes(self.file)[0]:
            self._remember(note)
        self.session = uuid.uuid4().hex
        self.note(PARENT, begin=self.session)

    def size(self) -> int:
        """Return the size of the outbox in bytes, which is the offset of the next note."""
        return self.file.stat().st_size

    def note(
        self,
        run: str,
        *,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        step: int = 0,
        status: str = "",
        files: Iterable[Path] = (),
        **more: Any,
    ) -> None:
        """Append a note about a run. Parameters and metrics that the outbox already contains are left out.

        Args:
            run: the name of a trial, or PARENT for the study's parent run.
            params: the run's parameters. In MLflow, a parameter cannot get a new value. If a parameter such as `lr` has
                a new value, this value is written as the tag `resumed.lr`.
            tags: the run's tags.
            metrics: a dict from the names of metrics to their values. NaN is kept. Infinite values become NaN, which
                MLflow can show. Values that float() does not accept are left out. A metric is also left out if the
                outbox already has it at a later step, for example if a resumed trial trains an epoch again.
            step: the step of the metrics.
            status: the new status of the run in MLflow, or "" if the status does not change.
            files: the paths of artifacts. They are files or folders, in the study's folder or elsewhere.
            more: values for attributes of Note that have no argument here, such as `model`.
        """
        note = Note(run, step=step, status=status, **more)
        known = self._params.get(run, {})
        given = {_key(k): str(v)[:PARAM_LENGTH] for k, v in (params or {}).items()}
        note.params = {k: v for k, v in given.items() if k not in known}
        note.tags = {_key(k): str(v)[:TAG_LENGTH] for k, v in (tags or {}).items()}
        note.tags |= {f"resumed.{k}"[:KEY_LENGTH]: v for k, v in given.items() if known.get(k, v) != v}
        note.metrics = self._news(run, metrics or {}, step)
        note.files = [os.path.relpath(path, self.folder) for path in files]
        if note != Note(run, note.at, step):
            self._remember(note)
            _append(self.file, note.line())

    def _news(self, run: str, metrics: Mapping[str, Any], step: int) -> dict[str, float]:
        last = self._last.get(run, {})
        numbers = ((_key(name), _number(value)) for name, value in metrics.items())
        found = {name: value for name, value in numbers if value is not None}
        return {k: v for k, v in found.items() if k not in last or _later((step, v), last[k])}

    def _remember(self, note: Note) -> None:
        self.statuses.setdefault(note.run, RUNNING)
        if "pareto" in note.tags:
            (self.pareto.add if note.tags["pareto"] == "true" else self.pareto.discard)(note.run)
        if note.status:
            self.statuses[note.run] = note.status
        if note.status in ENDED and note.run != PARENT:  # to save memory, forget the values: only tags can follow
            self._params.pop(note.run, None)
            self._last.pop(note.run, None)
            return
        if self.statuses[note.run] in ENDED and note.run != PARENT:
            return
        self._params.setdefault(note.run, {}).update(note.params)
        last = self._last.setdefault(note.run, {})
        last.update({name: (note.step, value) for name, value in note.metrics.items()})


def end_abandoned(study_folder: Path, session: str = "") -> None:
    """End the runs that a driver has left unended because it died: append notes that give these runs the status KILLED.

    Args:
        study_folder: the study's folder.
        session: the attribute `session` of the Outbox of the driver that has died. If another driver has continued the
            study since then, no note is written. If this argument is "", all runs of the study that have not ended get
            the status. Use "" only if no driver of the study is running.
    """
    file = outbox_file(study_folder)
    with _appending(file) as write:
        statuses: dict[str, str] = {}
        latest = ""
        for note in read_notes(file)[0]:
            statuses[note.run] = note.status or statuses.get(note.run, RUNNING)
            latest = note.begin or latest
        left = (
            [run for run, status in statuses.items() if status == RUNNING] if latest == session or not session else []
        )
        for run in sorted(left, reverse=True):  # the parent last
            write(Note(run, tags={} if run == PARENT else UNENDED, status=KILLED).line())


def append(study_folder: Path, note: Note) -> None:
    """Append a note to a study's outbox. Other processes may append notes at the same time."""
    _append(outbox_file(study_folder), note.line())


def _append(file: Path, text: str) -> None:
    with _appending(file) as write:
        write(text)


@contextmanager
def _appending(file: Path) -> Iterator[Callable[[str], None]]:
    """Yield a function that appends text to the file. Other processes that append wait until the `with` block ends."""
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        lock(handle, wait=True)
        yield lambda text: _write(handle, text)
    finally:
        os.close(handle)


def _write(handle: int, text: str) -> None:
    os.write(handle, text.encode())


def _later(new: tuple[int, float], known: tuple[int, float]) -> bool:
    """Return whether a point (step, value) of a metric is new. It is new if its step is higher, or if its value differs
    at the same step."""
    # The texts are compared, because NaN does not equal NaN.
    return new[0] > known[0] or (new[0] == known[0] and repr(new[1]) != repr(known[1]))


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
    """Return a name that MLflow allows for parameters, tags and metrics: all other characters are replaced."""
    parts = re.sub(r"[^/\w.\- ]", "_", name).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:KEY_LENGTH] or "_"
