"""Writes and reads the journal, which is the file in which Optuna stores a study."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.study.layout import JOURNAL
from tune_sparsity.tuner.study.trial import TrialRecord
from tune_sparsity.tuner.system.signals import undisturbed

RECORD = "record"
"""The name of the user attribute of an Optuna trial in which its TrialRecord is stored."""


class Journal(JournalFileBackend):
    """Writes Optuna's journal file with fewer flushes to the disk. Optuna's dashboard can still read each line as soon
    as it is written.

    Optuna's own class flushes the file to the disk after each line. A proposal has one line for each parameter, so
    these flushes are slow. This class flushes once at the end of a block `with journal.together()`. The driver uses
    such blocks before a trial begins and after a trial ends. A crash of the process loses no written line. A crash of
    the machine can lose the lines since the last flush, for example half of a proposal.
    """

    def __init__(self, file: Path) -> None:
        _drop_torn_line(file)
        self._path, self._turn = file, JournalFileSymlinkLock(str(file))
        super().__init__(str(file), self._turn)
        self._gathering = self._behind = False

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write the lines. Outside of a block of `together`, also flush them to the disk.

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
        """Return a context manager. The lines that its block writes are flushed to the disk only once, at the end of
        the block."""
        self._gathering = True
        try:
            yield
        finally:
            self._gathering = False
            if self._behind:
                self._behind = False
                with self._path.open("ab") as file:
                    os.fsync(file.fileno())


class RecordStorage(JournalStorage):
    """Reads and writes the trials in a journal that has one study. It is faster than Optuna's own class.

    Before each new trial, Optuna asks for the trials in the state WAITING. Optuna's own class then reads all trials of
    the study. A trial that has begun never waits again. This class therefore skips all trials before the first one that
    may still wait.
    """

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal)
        self._begun = 0  # all trials with a smaller number have begun

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials of the study that have one of the states, ordered by number."""
        if deepcopy or states != (TrialState.WAITING,):
            return super().get_all_trials(study_id, deepcopy, states)
        later = list(self._after(study_id)) if self._begun else super().get_all_trials(study_id, deepcopy=False)
        waiting = [trial for trial in later if trial.state is TrialState.WAITING]
        self._begun = waiting[0].number if waiting else self._begun + len(later)
        return waiting

    def _after(self, study_id: int) -> Iterator[FrozenTrial]:
        """Yield the trials with the number `_begun` or a higher number."""
        with suppress(KeyError):  # there is no trial with this number
            for number in count(self._begun):
                yield self.get_trial(self.get_trial_id_from_study_id_trial_number(study_id, number))


def _drop_torn_line(file: Path) -> None:
    """Remove an incomplete last line, which a killed process may have left. Otherwise Optuna would append its next line
    to this one, and both lines would be unreadable."""
    text = file.read_bytes() if file.exists() else b""
    if text and not text.endswith(b"\n"):
        os.truncate(file, text.rfind(b"\n") + 1)


def read_records(study: optuna.Study) -> list[TrialRecord]:
    """Return the records of all ended trials of a study, ordered by the trials' numbers."""
    records = [
        TrialRecord.from_dict(frozen.user_attrs[RECORD])
        for frozen in study.get_trials(deepcopy=False)
        if frozen.state.is_finished() and RECORD in frozen.user_attrs
    ]
    return sorted(records, key=lambda record: record.number)


def records_of(folder: Path) -> list[TrialRecord]:
    """Return the records of all ended trials in a study's folder, ordered by the trials' numbers.

    Raises:
        UsageError: if the journal cannot be read.
    """
    try:
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        names = optuna.get_all_study_names(storage)
        return read_records(optuna.load_study(study_name=names[0], storage=storage)) if names else []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder / JOURNAL} cannot be read: {error}") from None
