"""Tests the journal: Optuna can read it, and a batch of lines is synced to disk once."""

from __future__ import annotations

import os
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from tune_sparsity.tuner.search.journal import Journal, RecordStorage


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each call of fsync adds the size of its file."""
    sizes: list[int] = []
    wait = os.fsync

    def counted(file: int) -> None:
        wait(file)
        sizes.append(os.fstat(file).st_size)

    monkeypatch.setattr("tune_sparsity.tuner.search.journal.os.fsync", counted)
    return sizes


def lines(n: int) -> list[dict[str, int]]:
    return [{"op_code": 0, "n": i} for i in range(n)]


def test_every_append_to_the_journal_is_synced_to_disk(tmp_path: Path, waits: list[int]) -> None:
    journal = Journal(tmp_path / "j")
    for _ in range(3):
        journal.append_logs(lines(2))
    assert len(waits) == 3
    assert waits[-1] == (tmp_path / "j").stat().st_size


def test_a_batch_of_lines_is_synced_once_and_readable_before_the_sync(tmp_path: Path, waits: list[int]) -> None:
    journal = Journal(tmp_path / "j")
    with journal.together():
        for _ in range(5):
            journal.append_logs(lines(1))
        assert list(JournalFileBackend(str(tmp_path / "j")).read_logs(0)) == lines(1) * 5  # as a dashboard would
        assert list(journal.read_logs(3)) == lines(1) * 2
        assert not waits
    assert waits == [(tmp_path / "j").stat().st_size]
    with journal.together():
        pass
    assert len(waits) == 1  # a block without lines does not wait
    journal.append_logs(lines(1))
    assert len(waits) == 2


def test_lines_written_before_an_error_are_synced_to_disk(tmp_path: Path, waits: list[int]) -> None:
    journal = Journal(tmp_path / "j")

    def fail() -> None:
        with journal.together():
            journal.append_logs(lines(1))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert len(waits) == 1


@pytest.mark.parametrize("torn", [b'{"op', b"", b'{"op_code":0}'])
def test_a_line_that_a_process_died_in_is_dropped(tmp_path: Path, torn: bytes) -> None:
    whole = b'{"op_code":0,"n":0}\n'
    (tmp_path / "j").write_bytes(whole + torn)
    journal = Journal(tmp_path / "j")
    assert (tmp_path / "j").read_bytes() == whole
    journal.append_logs([{"op_code": 0, "n": 1}])
    assert list(JournalFileBackend(str(tmp_path / "j")).read_logs(0)) == lines(2)


def test_the_journal_can_be_written_in_turn_with_optunas_own_backend(tmp_path: Path) -> None:
    ours, theirs = Journal(tmp_path / "j"), JournalFileBackend(str(tmp_path / "j"))
    for _ in range(3):
        ours.append_logs(lines(1))
        theirs.append_logs(lines(1))
    assert list(ours.read_logs(0)) == lines(1) * 6
    assert not list(tmp_path.glob("*.lock"))


def test_waiting_trials_are_found_even_if_another_process_enqueued_them(tmp_path: Path) -> None:
    file = tmp_path / "j"
    study = optuna.create_study(storage=RecordStorage(Journal(file)), study_name="one")

    def waiting() -> list[int]:
        return [trial.number for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,))]

    assert waiting() == []
    for value in (1, 2):
        study.enqueue_trial({"x": value})
    assert waiting() == [0, 1]
    first = study.ask()
    assert waiting() == [1]
    assert study.ask().number == 1
    assert study.ask().number == 2  # no enqueued trial is left, so this trial is new
    assert waiting() == []
    study.tell(first, 1.0)
    other = optuna.load_study(study_name="one", storage=JournalStorage(JournalFileBackend(str(file))))
    other.enqueue_trial({"x": 3})
    assert waiting() == [3]
    again = optuna.load_study(study_name="one", storage=RecordStorage(Journal(file)))
    asked = again.ask()
    assert (asked.number, asked.suggest_float("x", 0, 9)) == (3, 3.0)
    assert waiting() == []
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3]
