"""Tests the tracker, which records studies in MLflow, with real SQLite stores."""

from __future__ import annotations

import gc
import itertools
import json
import math
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import pytest
import torch

from tests import ROOT
from tests.helpers.tracking import IDENTITY, MakeTracker, begun, client, finish, read, record
from tune_sparsity.experiments import Data, Split
from tune_sparsity.tuner.study.trial import TrialState
from tune_sparsity.tuner.tracking.dataset import dataset_note
from tune_sparsity.tuner.tracking.delivery import only_one
from tune_sparsity.tuner.tracking.outbox import StudyIdentity
from tune_sparsity.tuner.tracking.tracker import Tracker


def test_a_study_has_a_parent_run_and_a_nested_run_for_each_trial(tracker: MakeTracker, store: Path) -> None:
    one = tracker()
    one.start_study({"trials": 4, "sampler": "tpe"}, {"host": "here"})
    for number in range(4):
        one.start_trial(record(number))
    one.end_trial(record(0, TrialState.COMPLETED, value=0.97, sparsity=0.9, epochs=3, nonzero_weights=10))
    one.end_trial(record(1, TrialState.PRUNED, epochs=1))
    one.end_trial(record(2, TrialState.FAILED, reason="loss is NaN"))
    one.end_trial(record(3, TrialState.COMPLETED))
    finish(one, pareto={0})

    (parent,), trials = read(store)
    assert parent.info.run_id == one.run_id
    assert parent.info.experiment_id == one.experiment_id
    assert parent.info.run_name == IDENTITY.study
    assert parent.info.status == "FINISHED"
    assert parent.info.end_time is not None
    assert parent.data.params == {"trials": "4", "sampler": "tpe"}
    assert parent.data.metrics == {"hypervolume": 0.8}
    expected = {"study": "digits-90", "target": "0.9", "method": "lpss,rigl", "host": "here", "role": "parent"}
    assert expected.items() <= parent.data.tags.items()

    assert sorted(trials) == ["t0000", "t0001", "t0002", "t0003"]
    for name, run in trials.items():
        assert run.data.params == {"lr": "0.1", "p": "1.5"}
        expected = {"mlflow.parentRunId": parent.info.run_id, "study": "digits-90", "trial": name, "method": "lpss"}
        assert expected.items() <= run.data.tags.items()
    assert [run.data.tags["state"] for _, run in sorted(trials.items())] == [
        "completed",
        "pruned",
        "failed",
        "completed",
    ]
    assert [run.info.status for _, run in sorted(trials.items())] == ["FINISHED", "FINISHED", "FAILED", "FINISHED"]
    assert [run.data.tags["pareto"] for _, run in sorted(trials.items())] == ["true", "false", "false", "false"]
    assert trials["t0002"].data.tags["reason"] == "loss is NaN"
    measures = {"val_accuracy": 0.97, "sparsity": 0.9, "nonzero_weights": 10, "epochs": 3, "seconds": 0}
    assert trials["t0000"].data.metrics == measures | {"sparsity_matrices": 90 / 125}


def test_every_epoch_is_in_the_history(tracker: MakeTracker, store: Path) -> None:
    one = tracker()
    one.start_study({}, {})
    one.start_trial(record(7))
    for epoch in range(1, 21):
        one.log_epoch(7, epoch, {"train_loss": 1 / epoch, "val_accuracy": epoch / 20})
    one.end_trial(record(7, TrialState.COMPLETED, epochs=20, value=1.0, metrics={"train_loss": 1 / 20}))
    finish(one)
    history = client(store).get_metric_history(read(store)[1]["t0007"].info.run_id, "val_accuracy")
    assert [(point.step, point.value) for point in history] == [(epoch, epoch / 20) for epoch in range(1, 21)]


def test_unusual_metrics_params_and_tags_are_recorded_without_an_error(tracker: MakeTracker, store: Path) -> None:
    one = tracker()
    one.start_study({f"p{n}": "x" * 9000 for n in range(120)}, {f"t{n}": "y" * 9000 for n in range(120)})
    one.start_trial(record(0))
    odd: dict[str, Any] = {"nan": math.nan, "inf": -math.inf, "acc@1": 0.5, "../up": 1, "none": None, "text": "no"}
    one.log_epoch(0, 1, {**odd, **{f"m{n}": n for n in range(1500)}})
    finish(one)
    (parent,), trials = read(store)
    assert len(parent.data.params) == 120
    metrics = trials["t0000"].data.metrics
    assert len(metrics) == 1504
    assert metrics["acc_1"] == 0.5
    assert metrics["up"] == 1
    assert math.isnan(metrics["nan"])
    assert math.isnan(metrics["inf"])


def test_a_resumed_study_continues_the_same_runs(tracker: MakeTracker, store: Path) -> None:
    one = tracker()
    one.start_study({"trials": 2}, {})
    for number in (0, 1, 2):
        one.start_trial(record(number))
        one.log_epoch(number, 1, {"val_accuracy": 0.5})
        one.log_epoch(number, 2, {"val_accuracy": 0.6, "train_loss": math.nan})
    one.end_trial(record(0, TrialState.COMPLETED, epochs=2))
    one.close(120)  # this stands for a killed process: the study and two trials are still running
    ids = {name: run.info.run_id for name, run in read(store)[1].items()}

    two = tracker()
    two.start_study({"trials": 3}, {})
    two.start_trial(record(1))
    two.log_epoch(1, 2, {"val_accuracy": 0.6, "train_loss": math.nan})  # the epoch is trained again from a checkpoint
    two.log_epoch(1, 3, {"val_accuracy": 0.7})
    two.end_trial(record(1, TrialState.COMPLETED, epochs=3, value=0.7))
    two.start_trial(record(3))
    two.end_trial(record(3, TrialState.COMPLETED))
    finish(two, pareto=[0, 1])

    (parent,), trials = read(store)
    assert parent.info.run_id == one.run_id == two.run_id
    assert (parent.data.params["trials"], parent.data.tags["resumed.trials"]) == ("2", "3")
    assert {name: trials[name].info.run_id for name in ids} == ids
    assert sorted(trials) == ["t0000", "t0001", "t0002", "t0003"]
    assert [run.data.tags["pareto"] for _, run in sorted(trials.items())] == ["true", "true", "false", "false"]
    assert [run.info.status for _, run in sorted(trials.items())] == ["FINISHED", "FINISHED", "KILLED", "FINISHED"]
    history = client(store).get_metric_history(ids["t0001"], "val_accuracy")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 0.6), (3, 0.7)]
    assert len(client(store).get_metric_history(ids["t0001"], "train_loss")) == 1


def test_the_runs_of_a_killed_study_are_running_again_after_a_resume(tracker: MakeTracker, store: Path) -> None:
    one = tracker()
    one.start_study({}, {})
    one.start_trial(record(0))
    finish(one, status="KILLED")
    two = tracker()
    two.start_study({}, {})
    two.start_trial(record(0))
    assert two.flush(120)
    (parent,), trials = read(store)
    assert parent.info.status == trials["t0000"].info.status == trials["t0000"].data.tags["state"].upper() == "RUNNING"
    two.end_trial(record(0, TrialState.COMPLETED))
    finish(two)
    (parent,), trials = read(store)
    assert parent.info.status == trials["t0000"].info.status == "FINISHED"
    assert trials["t0000"].data.tags["reason"] == ""


def test_studies_of_one_experiment_have_separate_parent_runs(tracker: MakeTracker, store: Path) -> None:
    for study in ("a", "it's b"):
        one = tracker(StudyIdentity(study, "digits", 0.9, "lpss"))
        one.start_study({}, {})
        one.start_trial(record(0))
        one.end_trial(record(0, TrialState.COMPLETED))
        finish(one)
    runs = client(store).search_runs([one.experiment_id])
    assert len(runs) == 4
    assert len({run.data.tags["mlflow.parentRunId"] for run in runs if run.data.tags["role"] == "trial"}) == 2


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_runs_of_unfinished_trials_end_as_killed(tracker: MakeTracker, store: Path, status: str) -> None:
    one = tracker()
    one.start_study({}, {})
    one.start_trial(record(0))
    one.log_epoch(1, 1, {"val_accuracy": 0.5})  # without start_trial(record(1))
    finish(one, status=status)
    (parent,), trials = read(store)
    assert parent.info.status == status
    for name in ("t0000", "t0001"):
        assert trials[name].info.status == "KILLED"
        assert trials[name].info.end_time is not None
        assert trials[name].data.tags["state"] == "failed"


@contextmanager
def stopped(writer: subprocess.Popen[str]) -> Iterator[None]:
    """Stop the writer process while the `with` block runs. After five minutes it continues, so that a call that waits
    for the writer returns. The test then fails."""
    writer.send_signal(signal.SIGSTOP)
    late = threading.Timer(300, writer.send_signal, [signal.SIGCONT])
    late.start()
    try:
        yield
        assert psutil.Process(writer.pid).status() == psutil.STATUS_STOPPED
    finally:
        late.cancel()
        writer.send_signal(signal.SIGCONT)


def calls(act: Callable[[], object]) -> Counter[str]:
    """Return the number of calls of each function, by its name."""
    counted = Counter[str]()

    def note(frame: FrameType, event: str, what: Any) -> None:
        if event in ("call", "c_call"):
            counted[frame.f_code.co_name if event == "call" else what.__name__] += 1

    gc.disable()  # hypothesis adds callbacks to gc, and their calls would be counted too
    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
        gc.enable()
    return counted


@pytest.mark.slow
def test_the_cost_of_a_report_is_constant_and_no_report_waits_for_the_disk(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the writer has its usual pauses again (see _quick_writer)
    one = Tracker(f"sqlite:///{store}", IDENTITY, tmp_path / "study")
    one.start_study({}, {})
    assert one.flush(600)
    costs: list[Counter[str]] = []
    with stopped(one._writer):
        for number in range(20):
            one.start_trial(record(number))
        for epoch, number in itertools.product(range(1, 21), range(20)):
            metrics = {f"metric_{n}": number + n / epoch for n in range(12)}
            costs.append(calls(lambda n=number, e=epoch, m=metrics: one.log_epoch(n, e, m)))
        for number in range(20):
            one.end_trial(record(number, TrialState.COMPLETED, epochs=20))
    finish(one)
    # From the second epoch on, the cost does not grow with the study.
    assert all(cost == costs[20] for cost in costs[20:])
    assert costs[20]["write"] == 1
    assert costs[20]["fsync"] == costs[20]["flush"] == 0
    assert costs[20].total() < 1000  # calls of all functions for 12 metrics; benchmarks.tracking measures the time
    with closing(sqlite3.connect(store)) as database:
        (rows,) = database.execute("SELECT count(*) FROM metrics WHERE key LIKE 'metric_%'").fetchone()
    assert rows == 4_800


@pytest.mark.slow
def test_the_tracker_prints_nothing_and_imports_no_mlflow_in_the_driver(store: Path, tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from tune_sparsity.tuner.tracking.outbox import StudyIdentity
from tune_sparsity.tuner.tracking.tracker import Tracker
from tune_sparsity.tuner.config.tracking_uri import check_tracking_uri
check_tracking_uri(sys.argv[1])
tracker = Tracker(sys.argv[1], StudyIdentity("s", "e", 0.9, "lpss"), Path(sys.argv[2]), system_metrics=True)
tracker.start_study({}, {})
end = time.monotonic() + 60
while "system/cpu" not in (Path(sys.argv[2]) / "tracking" / "outbox.jsonl").read_text() and time.monotonic() < end:
    time.sleep(0.1)
tracker.finish_study(status="FINISHED", metrics={}, pareto=[])
tracker.close()
assert not tracker.problems, tracker.problems
assert not {"mlflow", "torch", "ray"} & set(sys.modules)
"""
    command = [sys.executable, "-c", script, f"sqlite:///{store}", str(tmp_path / "study")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    ((parent,), _) = read(store, "e")
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(parent.data.metrics)


def test_a_study_that_is_left_unfinished_ends_as_killed(tracker: MakeTracker, store: Path) -> None:
    one = tracker()
    begun(one)
    one.close(120)
    (parent,), trials = read(store)
    assert parent.info.status == trials["t0000"].info.status == "KILLED"
    assert (trials["t0000"].data.tags["state"], trials["t0000"].data.tags["pareto"]) == ("failed", "false")


@pytest.mark.slow
def test_the_runs_of_a_driver_that_is_killed_end_as_killed(store: Path, tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from tests.helpers.tracking import IDENTITY, begun
from tune_sparsity.tuner.tracking.tracker import Tracker
one = Tracker(sys.argv[1], IDENTITY, Path(sys.argv[2]))
begun(one)
one.log_epoch(0, 2, {"val_accuracy": 0.6})
os.kill(os.getpid(), signal.SIGKILL)
"""
    uri, folder = f"sqlite:///{store}", tmp_path / "study"
    done = subprocess.run([sys.executable, "-c", script, uri, str(folder)], cwd=ROOT, timeout=120)
    assert done.returncode == -signal.SIGKILL
    with only_one(folder, wait=True):  # until the writer has ended
        pass
    (parent,), trials = read(store)
    assert parent.info.status == trials["t0000"].info.status == "KILLED"
    assert trials["t0000"].data.metrics == {"val_accuracy": 0.6}


def test_a_resume_records_the_ends_that_an_earlier_process_did_not_record(tracker: MakeTracker, store: Path) -> None:
    one = tracker()
    begun(one)
    one.close(120)
    two = tracker()
    two.start_study({}, {})
    for number in (0, 1):
        two.recall(record(number, TrialState.COMPLETED, epochs=1, value=0.5))
    before = two._outbox.size()
    two.recall(record(0, TrialState.COMPLETED, epochs=1, value=0.5))
    assert two._outbox.size() == before
    finish(two, pareto=[0])
    _, trials = read(store)
    assert {name: run.info.status for name, run in trials.items()} == {"t0000": "FINISHED", "t0001": "FINISHED"}
    assert {name: run.data.tags["pareto"] for name, run in trials.items()} == {"t0000": "true", "t0001": "false"}


def test_the_data_set_is_an_input_of_the_study(tracker: MakeTracker, store: Path) -> None:
    split = Split(torch.zeros(3, 2, 5), torch.zeros(3, dtype=torch.int64))
    data = Data(split, split, split)
    one = tracker()
    one.start_study({}, {}, dataset=dataset_note("digits", data, data.checksum()))
    finish(one)
    ((parent,), _) = read(store)
    (used,) = parent.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("digits", data.checksum()[:36])
    assert json.loads(used.dataset.profile)["sha256"] == data.checksum()
    assert json.loads(used.dataset.profile)["examples"] == {"train": 3, "validation": 3, "test": 3}
    schema = json.loads(used.dataset.schema)["mlflow_tensorspec"]
    assert json.loads(schema["features"])[0]["tensor-spec"] == {"dtype": "float32", "shape": [-1, 2, 5]}
    assert json.loads(schema["targets"])[0]["tensor-spec"] == {"dtype": "int64", "shape": [-1]}
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "training")]
