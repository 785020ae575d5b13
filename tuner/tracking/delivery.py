"""Deliver a study's outbox to an MLflow store. A delivery continues at the place where the last one ended.

The outbox is a file of notes. A note says what to write into MLflow (see tuner.tracking.outbox). The outbox is sent in
parts of about a megabyte. The file sent.json next to the outbox says which notes have arrived in the store. If a
process dies after sending a part and before writing sent.json, the part is sent again. This does no harm, because the
store does not add a metric, parameter or tag that it already has.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tune_sparsity.tuner.errors import redact
from tune_sparsity.tuner.system.files import write_atomically
from tune_sparsity.tuner.system.locks import lock
from tune_sparsity.tuner.tracking.client import RunWriter, by_run, one_line
from tune_sparsity.tuner.tracking.outbox import PARENT, outbox_file, read_identity, read_notes

SENT, LOCK = "sent.json", "lock"
PART = 1 << 20  # bytes of the outbox that are sent together
ATTEMPTS = 3  # failures in a row after which the store counts as away


@dataclass
class Sent:
    """Describes which notes have arrived in a store.

    Attributes:
        uri: the store's URI without credentials.
        offset: the position in the outbox, in bytes. All notes before it have arrived.
        experiment_id: MLflow's id of the experiment; None until the store was opened.
        runs: a dict from the names of runs to their ids in MLflow.
        refused: a line for each item (such as an artifact, or the metrics and tags of a run) that could not be written,
            if another attempt would fail, too.
    """

    uri: str
    offset: int = 0
    experiment_id: str | None = None
    runs: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    @property
    def run_id(self) -> str | None:
        return self.runs.get(PARENT)


def read_sent(study_folder: Path, uri: str) -> Sent:
    """Return a `Sent`, which describes the notes that have arrived in the store at `uri`. If the study's last delivery
    went to another store, no notes have arrived."""
    try:
        sent = Sent(**json.loads((outbox_file(study_folder).parent / SENT).read_text()))
    except (OSError, ValueError, TypeError):
        return Sent(redact(uri))
    return sent if sent.uri == redact(uri) else Sent(redact(uri))


def written_to(study_folder: Path) -> str | None:
    """Return the URI, without credentials, of the store of the study's last delivery. Return None if there was no
    delivery."""
    try:
        return str(json.loads((outbox_file(study_folder).parent / SENT).read_text())["uri"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


class Delivery:
    """Sends the notes in a study's outbox to the MLflow store. Each call of `part` sends about a megabyte of notes.

    Args:
        study_folder: the study's folder.
        uri: the tracking URI.
    """

    def __init__(self, study_folder: Path, uri: str) -> None:
        self.folder, self.file = study_folder, outbox_file(study_folder)
        self.sent = read_sent(study_folder, uri)
        self._store = RunWriter(uri, read_identity(self.file), study_folder, self.sent.runs)
        self._opened = False
        if not (self.file.parent / SENT).exists():
            self._note()

    @property
    def waiting(self) -> bool:
        return self.file.stat().st_size > self.sent.offset

    def part(self) -> None:
        """Send the next part of the outbox, if there are unsent notes. This method may raise MLflow's errors. After an
        error, it may be called again."""
        self._open()
        notes, offset = read_notes(self.file, self.sent.offset, PART)
        try:
            self.sent.refused += self._store.write_all(by_run(notes))
            self.sent.refused = list(dict.fromkeys(self.sent.refused))
            self.sent.offset = offset
        finally:
            self._note()

    def _open(self) -> None:
        if self._opened:
            return
        self._store.open()
        if not self._store.knows_the_study():
            self.sent.runs.clear()
            self.sent.offset = 0
        self.sent.experiment_id, self._opened = self._store.experiment_id, True

    def unsent_runs(self) -> int:
        """Return the number of runs with notes that have not arrived."""
        return len({note.run for note in read_notes(self.file, self.sent.offset)[0]})

    def _note(self) -> None:
        write_atomically(self.file.parent / SENT, json.dumps(asdict(self.sent)) + "\n")


def deliver(study_folder: Path, uri: str, pause: float = 1.0) -> tuple[Sent, str]:
    """Send all unsent notes to the store, without a separate process. Give up after three failures in a row (the
    constant ATTEMPTS).

    Args:
        study_folder: the study's folder.
        uri: the tracking URI.
        pause: seconds between an error and the next attempt.

    Returns:
        Two values. The first describes the notes that have arrived. The second is the reason why notes are missing, or
        "" if all have arrived.
    """
    delivery = Delivery(study_folder, uri)
    failures, error = 0, ""
    while delivery.waiting and failures < ATTEMPTS:
        try:
            delivery.part()
            failures, error = 0, ""
        except Exception as caught:
            failures, error = failures + 1, one_line(caught)
            time.sleep(pause)
    return delivery.sent, error and missing(delivery, uri, error)


def missing(delivery: Delivery, uri: str, error: str) -> str:
    """Return a line that says how many runs are incomplete in the store, and why."""
    return redact(f"MLflow at {uri}: {error}; {delivery.unsent_runs()} runs are not fully recorded there")


@contextmanager
def only_one(study_folder: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the study's lock for sending notes within the `with` block. Only one process at a time may send the notes of
    a study, because two processes would create runs twice.

    Args:
        study_folder: the study's folder.
        wait: whether to wait until another process releases the lock.

    Yields:
        True if this process has the lock. False if another process has it, and `wait` is False.
    """
    with (outbox_file(study_folder).parent / LOCK).open("w") as handle:
        yield lock(handle.fileno(), wait=wait)
