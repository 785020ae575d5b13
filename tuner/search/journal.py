"""Writes and reads the journal, which is Optuna's file of a study."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.study.layout import JOURNAL
from tune_sparsity.tuner.study.trial import TrialRecord
from tune_sparsity.tuner.system.signals import undisturbed

RECORD = "record"
"""The user attribute of an Optuna trial that holds its record."""


class Journal(JournalFileBackend):
    """Writes Optuna's journal file. Optuna's dashboard can read each line as soon as the line is written.

    Optuna's own class flushes the file to the disk after each line. A proposal has one line for each parameter, so
    these flushes are slow. This class flushes once, at the end of `together`. The driver uses `together` before a trial
    begins and after a trial ends. A crash of the process loses no written line. A crash of the machine can lose the
    lines since the last flush, for example half of a proposal.
    """

    def __init__(self, file: Path) -> None:
        _drop_torn_line(file)
        self._path, self._turn = file, JournalFileSymlinkLock(str(file))
        super().__init__(str(file), self._turn)
        self._gathering = self._behind = False

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write the lines. Outside of `together`, also flush them to the disk.

        Raises:
            OSError: if the lines cannot be written.
        """
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with undisturbed():  # an interrupt here could release Optuna's lock twice, which is an error
            self._turn.acquire()
            try:
                with self._path.open("ab") as file:
                    file.write(lines.encode())
                    if not self._gathering:
                        file.flush()
                        os.fsync(file.fileno())
            finally:
                self._turn.release()
        self._behind = self._gathering

    @contextmanager
    def together(self) -> Iterator[None]:
        """Flush the lines that are written within the block to the disk once, when the block ends."""
        self._gathering = True
        try:
            yield
        finally:
            self._gathering = False
            if self._behind:
                self._behind = False
                with self._path.open("ab") as file:
                    os.fsync(file.fileno())


def _drop_torn_line(file: Path) -> None:
    """Remove an incomplete last line, which a killed process has left. Optuna would append its next line to it, and
    could read neither."""
    text = file.read_bytes() if file.exists() else b""
    if text and not text.endswith(b"\n"):
        os.truncate(file, text.rfind(b"\n") + 1)


def read_records(study: optuna.Study) -> list[TrialRecord]:
    """Return the records of all ended trials of a study, by number."""
    records = [
        TrialRecord.from_dict(frozen.user_attrs[RECORD])
        for frozen in study.get_trials(deepcopy=False)
        if frozen.state.is_finished() and RECORD in frozen.user_attrs
    ]
    return sorted(records, key=lambda record: record.number)


def records_of(folder: Path) -> list[TrialRecord]:
    """Return the records of all ended trials in a study's folder, by number.

    Raises:
        UsageError: if the journal cannot be read.
    """
    try:
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        names = optuna.get_all_study_names(storage)
        return read_records(optuna.load_study(study_name=names[0], storage=storage)) if names else []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder / JOURNAL} cannot be read: {error}") from None
