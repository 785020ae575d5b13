"""What MLflow is to be told about a study, as a file: the driver appends, whoever delivers reads.

The file is the record's one way to MLflow, so nothing is lost with a server or a process: what has not arrived is still
in it. It lies under STUDY/tracking, a JSON document a line, the first of which says whose it is. Lines are only ever
appended, each with a single write. A line that a crash of the machine tore is passed over.
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
PARENT = ""  # the name of the parent run in notes; a trial's run has the trial's
RUNNING, KILLED = "RUNNING", "KILLED"  # MLflow's
ENDED = ("FINISHED", "FAILED")
UNENDED = {"state": "failed", "reason": "the study ended before this trial"}  # a KILLED trial's tags
PARAM_LENGTH, TAG_LENGTH, KEY_LENGTH = 6000, 5000, 250  # MLflow's limits, in characters


@dataclass(frozen=True)
class StudyIdentity:
    """Which study the runs belong to."""

    study: str
    experiment: str
    target: float | str  # sparsity, a fraction in [0, 1]; of other goals the option's value
    method: str  # one name, or several separated by commas
    id: str = ""  # of this study alone, for all its processes: another one of the same name has runs of its own


@dataclass
class Note:
    """Something about one run. Values are as MLflow takes them."""

    run: str
    at: int = field(default_factory=lambda: now_ms())  # Unix time in ms
    step: int = 0
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    status: str = ""  # MLflow's
    files: list[str] = field(default_factory=list)  # artifacts, relative to the study's folder; a folder keeps its name
    dataset: dict[str, Any] = field(default_factory=dict)  # as tuner.tracking.model takes it
    model: dict[str, Any] = field(default_factory=dict)  # as tuner.tracking.model takes it
    group: dict[str, Any] = field(default_factory=dict)  # likewise, of two networks
    begin: str = ""  # a process of the driver's begins: it is this one that appends from here on

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
    """Whose outbox it is.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is none.
    """
    with file.open("rb") as lines:
        document = json.loads(lines.readline())
    return StudyIdentity(**document["study"])


def read_notes(file: Path, offset: int = 0, limit: int | None = None) -> tuple[list[Note], int]:
    """Return the notes from `offset` on.

    Args:
        offset: in bytes.
        limit: bytes to read, of which whole lines are taken; by default all.

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
        with suppress(ValueError):  # torn; and the first line, of which Note knows nothing
            document = json.loads(line)
            if isinstance(document, dict) and "run" in document:
                notes.append(Note.read(document))
    return notes, offset + len(text)


class Outbox:
    """Appends to a study's outbox, which is made if there is none, and knows what it says already.

    Attributes:
        identity: with the id that the outbox has.
        statuses: of every run, as last noted.
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
        """In bytes: the offset of what will be noted next."""
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
        """Notes something about a run: whatever of it has been noted before is left out.

        Args:
            run: PARENT, or a trial's name.
            params: once noted, MLflow keeps a parameter for ever: another value becomes a tag `resumed.NAME`.
            metrics: infinite values become NaN, which MLflow can show; what is not a number is left out, and so are
                epochs that a resumed trial trains again.
            files: in the study's folder, or anywhere.
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
        # repr: NaN is not NaN
        return {k: v for k, v in found.items() if k not in last or _later((step, v), last[k])}

    def _remember(self, note: Note) -> None:
        self.statuses.setdefault(note.run, RUNNING)
        if "pareto" in note.tags:
            (self.pareto.add if note.tags["pareto"] == "true" else self.pareto.discard)(note.run)
        if note.status:
            self.statuses[note.run] = note.status
        if (
            note.status in ENDED and note.run != PARENT
        ):  # nothing more is said of it, except for tags: a large study would fill the memory
            self._params.pop(note.run, None)
            self._last.pop(note.run, None)
            return
        if self.statuses[note.run] in ENDED and note.run != PARENT:
            return
        self._params.setdefault(note.run, {}).update(note.params)
        last = self._last.setdefault(note.run, {})
        last.update({name: (note.step, value) for name, value in note.metrics.items()})


def end_abandoned(study_folder: Path, session: str = "") -> None:
    """Notes as KILLED all runs that nobody will end.

    Args:
        session: the driver that is gone; if another has taken the study up since, nothing is noted. By default nothing
            is known to run.
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
    """Appends a note to an outbox that another process may append to."""
    _append(outbox_file(study_folder), note.line())


def _append(file: Path, text: str) -> None:
    with _appending(file) as write:
        write(text)


@contextmanager
def _appending(file: Path) -> Iterator[Callable[[str], None]]:
    """A function that appends, while no other process does."""
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        lock(handle, wait=True)
        yield lambda text: _write(handle, text)
    finally:
        os.close(handle)


def _write(handle: int, text: str) -> None:
    os.write(handle, text.encode())


def _later(new: tuple[int, float], known: tuple[int, float]) -> bool:
    """Return whether a point of (step, value) is news: a later step, or another value of the same."""
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
    """`name` as MLflow accepts it for a parameter, a tag or a metric."""
    parts = re.sub(r"[^/\w.\- ]", "_", name).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:KEY_LENGTH] or "_"
