"""Tests the outbox: a file into which a study writes notes, such as metrics and parameters. Later the notes are written
to MLflow."""

from __future__ import annotations

import json
import math
import multiprocessing
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_sparsity.tuner.tracking.client import by_run
from tune_sparsity.tuner.tracking.outbox import (
    KILLED,
    PARENT,
    Note,
    Outbox,
    StudyIdentity,
    append,
    end_abandoned,
    outbox_file,
    read_notes,
)

IDENTITY = StudyIdentity("study", "digits", 0.9, "lpss")
NAMES = st.text("abc_/.- ", min_size=1, max_size=8)


def told(folder: Path) -> list[Note]:
    return [note for note in read_notes(outbox_file(folder))[0] if not note.begin]


@given(
    run=st.sampled_from([PARENT, "t0001"]),
    metrics=st.dictionaries(NAMES, st.floats(), max_size=4),
    tags=st.dictionaries(NAMES, st.text(max_size=20), max_size=3),
    step=st.integers(0, 10**6),
)
def test_a_note_comes_back_as_it_was_written(
    run: str, metrics: dict[str, float], tags: dict[str, str], step: int
) -> None:
    note = Note(run, step=step, metrics=metrics, tags=tags, status="FINISHED", files=["a b"])
    line = note.line()
    assert line.count("\n") == 1
    again = Note.read(json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")))
    assert repr(again) == repr(note)


@given(limit=st.integers(1, 400))
def test_reading_notes_in_parts_of_any_size_returns_all_notes(limit: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        outbox = Outbox(Path(name), IDENTITY)
        for epoch in range(8):
            outbox.note("t0000", metrics={"loss": 1 / (epoch + 1)}, step=epoch)
        notes, offset = [], 0
        while offset < outbox.size():
            part, offset = read_notes(outbox.file, offset, limit)
            notes += part
        assert notes == read_notes(outbox.file)[0]
        assert [note.step for note in notes if note.metrics] == list(range(8))


def test_unchanged_metrics_and_parameters_are_not_written_again(tmp_path: Path) -> None:
    for _ in range(2):  # the second Outbox stands for a resumed study, which is another process
        outbox = Outbox(tmp_path, IDENTITY)
        for epoch in (1, 2):
            outbox.note("t0000", params={"p": 1.5}, metrics={"loss": math.nan, "acc": 0.5, "text": "x"}, step=epoch)
    outbox.note("t0000", metrics={"acc": 0.6}, step=2)
    outbox.note("t0000", metrics={"acc": 0.6, "loss": math.inf}, step=3)
    outbox.note(PARENT)
    points = [(note.step, sorted(note.metrics.items())) for note in told(tmp_path)]
    assert repr(points) == repr(
        [
            (1, [("acc", 0.5), ("loss", math.nan)]),
            (2, [("acc", 0.5), ("loss", math.nan)]),
            (2, [("acc", 0.6)]),
            (3, [("acc", 0.6), ("loss", math.nan)]),
        ]
    )
    assert [note.params for note in told(tmp_path)] == [{"p": "1.5"}, {}, {}, {}]


def test_a_parameter_that_changes_on_resume_is_recorded_as_a_tag(tmp_path: Path) -> None:
    Outbox(tmp_path, IDENTITY).note(PARENT, params={"trials": 2, "seed": 0})
    Outbox(tmp_path, IDENTITY).note(PARENT, params={"trials": 3, "seed": 0, "new": 1})
    first, second = told(tmp_path)
    assert (second.params, second.tags) == ({"new": "1"}, {"resumed.trials": "3"})
    assert first.params == {"trials": "2", "seed": "0"}


def test_a_study_keeps_its_id_and_two_studies_have_different_ids(tmp_path: Path) -> None:
    one, again = (Outbox(tmp_path / "a", IDENTITY).identity for _ in range(2))
    other = Outbox(tmp_path / "b", IDENTITY).identity
    assert one == again
    assert one.id != other.id
    assert len(one.id) == 32


def test_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, IDENTITY)
    outbox.note("t0000", metrics={"acc": 0.5}, step=1)
    whole = outbox.size()
    with outbox.file.open("ab") as file:
        file.write(b'{"run":"t0000","metr')
    assert read_notes(outbox.file)[1] == whole  # the rest of the line may still be written
    Outbox(tmp_path, IDENTITY).note("t0000", metrics={"acc": 0.6}, step=2)
    assert [note.metrics for note in told(tmp_path)] == [{"acc": 0.5}, {"acc": 0.6}]
    assert read_notes(outbox.file)[1] == outbox.size()


def test_abandoned_runs_end_as_killed_and_the_parent_run_is_the_last(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, IDENTITY)
    for number in range(3):
        outbox.note(f"t000{number}", tags={"state": "running"})
    outbox.note("t0001", status="FINISHED")
    end_abandoned(tmp_path, "another process's")
    assert len(told(tmp_path)) == 4
    for _ in range(2):  # the second call writes no more notes
        end_abandoned(tmp_path, outbox.session)
        assert [(note.run, note.status) for note in told(tmp_path)[4:]] == [
            ("t0002", KILLED),
            ("t0000", KILLED),
            (PARENT, KILLED),
        ]
    # A process that resumes the study reads these statuses from the outbox.
    assert Outbox(tmp_path, IDENTITY).statuses == {
        PARENT: KILLED,
        "t0000": KILLED,
        "t0001": "FINISHED",
        "t0002": KILLED,
    }


def test_processes_do_not_write_into_each_others_lines(tmp_path: Path) -> None:
    Outbox(tmp_path, IDENTITY)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(tmp_path, name)) for name in ("t0001", "t0002")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    steps = {run: [note.step for note in told(tmp_path) if note.run == run] for run in ("t0001", "t0002")}
    assert steps == {"t0001": list(range(200)), "t0002": list(range(200))}


def _append_many(folder: Path, run: str) -> None:
    for step in range(200):
        append(folder, Note(run, step=step, tags={"text": "x" * 3000}))


def test_notes_are_grouped_by_run_and_the_parent_run_is_the_last() -> None:
    notes = [
        Note(PARENT, at=1, params={"a": "1"}, status="RUNNING"),
        Note("t0000", at=2, metrics={"acc": 0.5}, step=1, files=["x"]),
        Note(PARENT, at=3, files=["f", "g"], tags={"x": "1"}),
        Note("t0000", at=4, metrics={"acc": 0.6}, step=2, status="FINISHED"),
        Note(PARENT, at=5, files=["f"], tags={"x": "2"}, status="FINISHED"),
    ]
    owed = by_run(notes)
    assert list(owed) == ["t0000", PARENT]
    assert owed["t0000"].metrics == [("acc", 0.5, 2, 1), ("acc", 0.6, 4, 2)]
    assert owed["t0000"].status == ("FINISHED", 4)
    assert (owed[PARENT].started, owed[PARENT].tags, list(owed[PARENT].files)) == (1, {"x": "2"}, ["f", "g"])
    assert owed[PARENT].status == ("FINISHED", 5)
