"""The events that the listeners of a running study get, their order, and the effect of a listener that fails."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tune_sparsity.search_spaces import load_space
from tune_sparsity.tuner.config.study_config import make_config
from tune_sparsity.tuner.driver.listeners import KeepNetworks, WriteTables
from tune_sparsity.tuner.driver.ray_tune import StopWhen
from tune_sparsity.tuner.driver.study_run import Listener, StudyRun
from tune_sparsity.tuner.search.searcher import OptunaSearcher
from tune_sparsity.tuner.study.goal import at_targets
from tune_sparsity.tuner.study.layout import weights_file
from tune_sparsity.tuner.study.trial import Epoch, TrialRecord, TrialState

METRICS = {"sparsity": 0.9, "sparsity_total": 0.8, "hoyer": 0.5, "nonzero_weights": 10.0, "epoch_seconds": 2.0}


def epoch(number: int, accuracy: float = 0.5) -> Epoch:
    return Epoch(number, {**METRICS, "val_accuracy": accuracy, "val_accuracy_at_target": accuracy})


def study_in(folder: Path, listeners: Sequence[Listener] = (), clock: Any = lambda: 0.0, **options: Any) -> StudyRun:
    (folder / "s").mkdir(parents=True, exist_ok=True)
    config = make_config({"target": 0.9, "trials": 8, "storage": folder, "study": "s", **options})
    searcher = OptunaSearcher([load_space("lpss", 0.9)], 0.9, journal=folder / "s" / "optuna.journal", sampler="random")
    return StudyRun(config, at_targets(0.9), searcher, listeners, clock=clock)


class Notes(Listener):
    """Records the events of which a study informs it, and raises an error at the event `fails_at`."""

    def __init__(self, name: str, notes: list[tuple[Any, ...]], fails_at: str = "") -> None:
        self._name, self._notes, self._fails_at = name, notes, fails_at

    def _note(self, event: str, *what: Any) -> None:
        self._notes.append((self._name, event, *what))
        if event == self._fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")

    def trial_recalled(self, study: StudyRun, record: TrialRecord) -> None:
        self._note("recalled", record.number, str(record.state))

    def study_begun(self, study: StudyRun) -> None:
        self._note("study begun")

    def trial_begun(self, study: StudyRun, record: TrialRecord) -> None:
        self._note("begun", record.number)

    def epoch_trained(self, study: StudyRun, record: TrialRecord, epoch: Epoch) -> None:
        self._note("epoch", record.number, epoch.number, record.value)

    def network_sent(self, study: StudyRun, record: TrialRecord, network: bytes) -> None:
        self._note("network", record.number, network)

    def trial_ended(self, study: StudyRun, record: TrialRecord) -> None:
        self._note("ended", record.number, str(record.state), study.standing.best is record)

    def study_ended(self, study: StudyRun) -> None:
        self._note("study ended")


def test_listeners_get_events_in_order_and_the_end_of_the_study_in_reverse(tmp_path: Path) -> None:
    notes: list[tuple[Any, ...]] = []
    study = study_in(tmp_path, [Notes("a", notes), Notes("b", notes)])
    with study.lasting():
        study.ask()
        study.epochs(0, [epoch(1), epoch(2, 0.6)])
        study.epochs(0, [epoch(2, 0.7)], again=True)  # the record has epoch 2 already
        study.network_sent(0, b"x")
        study.end(0, TrialState.COMPLETED)
        study.end(0, TrialState.FAILED)  # trial 0 has ended already
    events = [
        ("study begun",),
        ("begun", 0),
        ("epoch", 0, 1, 0.5),
        ("epoch", 0, 2, 0.6),
        ("network", 0, b"x"),
        ("ended", 0, "completed", True),
    ]
    told = [(name, *event) for event in events for name in ("a", "b")]
    assert notes == [*told, ("b", "study ended"), ("a", "study ended")]
    notes.clear()
    study_in(tmp_path, [Notes("a", notes)])
    assert notes == [("a", "recalled", 0, "completed")]


@pytest.mark.parametrize("event", ["begun", "epoch", "ended"])
def test_a_full_disk_in_a_listener_ends_the_study_and_skips_later_listeners(event: str, tmp_path: Path) -> None:
    notes: list[tuple[Any, ...]] = []
    study = study_in(tmp_path, [Notes("a", notes), Notes("b", notes, event), Notes("c", notes)])
    stop = StopWhen(None)
    with study.lasting():
        stop.unless_disk_full(study.ask)
        stop.unless_disk_full(study.epoch, 0, epoch(1))
        stop.unless_disk_full(study.end, 0, TrialState.COMPLETED)
    assert "No space left" in stop.disk
    assert [name for name, what, *_ in notes if what == event] == ["a", "b"]
    # After the error of "b", no listener is told of anything but the end of the study.
    assert [name for name, what, *_ in notes[-5:-3]] == ["a", "b"]
    assert [note for note in notes if note[1] == "study ended"] == [(name, "study ended") for name in "cba"]


def test_listeners_that_have_begun_end_when_a_later_one_cannot_begin(tmp_path: Path) -> None:
    notes: list[tuple[Any, ...]] = []
    study = study_in(tmp_path, [Notes("a", notes), Notes("b", notes, "study begun"), Notes("c", notes)])
    with pytest.raises(OSError, match="No space left"), study.lasting():
        pytest.fail("the study runs")
    assert notes == [("a", "study begun"), ("b", "study begun"), ("a", "study ended")]


def test_only_networks_that_would_be_reported_are_kept(tmp_path: Path) -> None:
    weights = tmp_path / "w"
    study = study_in(tmp_path, [KeepNetworks(weights)])
    for accuracy, kept in ((0.5, [0]), (0.4, [0]), (0.9, [2])):
        number = len(study.records)
        study.ask()
        study.epoch(number, epoch(1, accuracy))
        study.network_sent(number, b"network")
        study.end(number, TrialState.COMPLETED)
        assert sorted(weights.iterdir()) == [weights_file(weights, one) for one in kept]


def test_the_tables_are_written_only_after_a_pause_of_some_seconds(tmp_path: Path) -> None:
    now = [0.0]
    study = study_in(tmp_path, [WriteTables(tmp_path / "s", clock=lambda: now[0])], lambda: now[0])
    table = tmp_path / "s" / "trials.csv"
    for seconds, rows in ((4.0, None), (2.0, 2), (4.0, 2), (2.0, 4)):
        now[0] += seconds
        asked = study.ask()
        assert asked is not None
        study.end(asked.number, TrialState.FAILED, "why")
        assert (len(table.read_text().splitlines()) - 1 if table.exists() else None) == rows


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"trials": 2}, "The search ended after all 2 trials."),
        ({"patience": 1}, "The search ended after 2 trials: the last 1 brought no gain, and --patience is 1."),
    ],
)
def test_a_study_keeps_its_first_reason_to_end(options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    study = study_in(tmp_path, **options)
    numbers = [asked.number for asked in (study.ask(), study.ask()) if asked]
    assert len(numbers) == 2
    assert study.why_ended == (reason if "trials" in options else "")
    study.end(numbers[0], TrialState.FAILED)
    assert study.ask() is None
    study.epoch(numbers[1], epoch(1))
    study.end(numbers[1], TrialState.COMPLETED)
    assert study.standing.since_gain == 0  # this gain comes after the search has ended
    assert study.ask() is None
    assert study.why_ended == reason
