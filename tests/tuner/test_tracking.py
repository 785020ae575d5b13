"""Tests of the MLflow record, against real SQLite stores."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch

from tune_sparsity.experiments import Data, Split
from tune_sparsity.tuner.config.tracking_uri import stray_environment
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState
from tune_sparsity.tuner.tracking import writer
from tune_sparsity.tuner.tracking.client import Owed, Store, prepare_sqlite
from tune_sparsity.tuner.tracking.dataset import dataset_note
from tune_sparsity.tuner.tracking.delivery import only_one
from tune_sparsity.tuner.tracking.outbox import StudyIdentity
from tune_sparsity.tuner.tracking.tracker import Tracker

IDENTITY = StudyIdentity(study="digits-90", experiment="digits", target=0.9, method="lpss,rigl")
MakeTracker = Callable[..., Tracker]


class WriterThread:
    """The writer without a process of its own, whose import of MLflow takes seconds: all else is as in one."""

    def __init__(self) -> None:
        commands, self.stdin = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), "rw", strict=True))
        self.stdout, said = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), "rw", strict=True))
        self._thread = threading.Thread(target=self._serve, args=(commands, said), daemon=True)
        self._thread.start()

    def _serve(self, commands: TextIO, said: TextIO) -> None:
        with commands, said:
            writer.serve(json.loads(commands.readline()), commands, said)

    def wait(self) -> None:
        self._thread.join()


class InThread(Tracker):
    """A tracker whose writer is a thread of this process."""

    def _start(self, hello: dict[str, Any]) -> Any:
        self._writer: Any = WriterThread()
        self._ask(json.dumps(hello))
        return self._writer


@pytest.fixture(scope="session")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without experiments: creating one takes MLflow seconds."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    prepare_sqlite(file)
    return file


@pytest.fixture
def store(new_store: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "a folder"  # a space, since users' folders have them
    folder.mkdir()
    return Path(shutil.copy(new_store, folder / "mlflow.db"))


@pytest.fixture
def tracker(store: Path, tmp_path: Path) -> Iterator[MakeTracker]:
    """Makes trackers of the same store and study, and closes them."""
    made: list[Tracker] = []

    def make(identity: StudyIdentity = IDENTITY) -> Tracker:
        made.append(InThread(f"sqlite:///{store}", identity, tmp_path / "studies" / identity.study))
        return made[-1]

    yield make
    for each in made:
        each.close(30)


@pytest.fixture(autouse=True)
def _quick_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "GATHER", 0.02)
    monkeypatch.setattr(writer, "SHARE", 0)


def record(number: int, state: TrialState = TrialState.RUNNING, **known: Any) -> TrialRecord:
    return TrialRecord(number=number, method="lpss", params={"lr": 0.1, "p": 1.5}, state=state, **known)


def finish(tracker: Tracker, status: str = "FINISHED", **known: Any) -> None:
    tracker.finish_study(**{"status": status, "metrics": {"hypervolume": 0.8}, "pareto": [], "artifacts": [], **known})
    tracker.close(30)
    assert tracker.problems == []


def client(store: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{store}")


def read(store: Path, experiment: str = "digits") -> tuple[list[Any], dict[str, Any]]:
    """The experiment's parent runs, and the trials' runs by name; fails on duplicates."""
    mlflow = client(store)
    found = mlflow.get_experiment_by_name(f"tune-sparsity/{experiment}")
    runs = mlflow.search_runs([found.experiment_id])
    trials = [run for run in runs if run.data.tags["role"] == "trial"]
    by_name = {run.info.run_name: run for run in trials}
    assert len(by_name) == len(trials)
    return [run for run in runs if run.data.tags["role"] == "parent"], by_name


def test_one_parent_and_a_nested_run_a_trial(tracker: MakeTracker, store: Path) -> None:
    one = tracker()
    one.start_study({"trials": 4, "sampler": "tpe"}, {"host": "here"})
    for number in range(4):
        one.start_trial(record(number))
    one.end_trial(record(0, TrialState.COMPLETED, val_accuracy=0.97, sparsity=0.9, epochs=3, nonzero_weights=10))
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
    assert trials["t0000"].data.metrics == measures


def test_every_epoch_is_in_the_history(tracker: MakeTracker, store: Path) -> None:
    one = tracker()
    one.start_study({}, {})
    one.start_trial(record(7))
    for epoch in range(1, 21):
        one.log_epoch(7, epoch, {"train_loss": 1 / epoch, "val_accuracy": epoch / 20})
    one.end_trial(record(7, TrialState.COMPLETED, epochs=20, val_accuracy=1.0, metrics={"train_loss": 1 / 20}))
    finish(one)
    history = client(store).get_metric_history(read(store)[1]["t0007"].info.run_id, "val_accuracy")
    assert [(point.step, point.value) for point in history] == [(epoch, epoch / 20) for epoch in range(1, 21)]


def test_odd_metrics_params_and_tags_are_recorded_all_the_same(tracker: MakeTracker, store: Path) -> None:
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
    one.close(30)  # as if the process had been killed: the study and two trials are left running
    ids = {name: run.info.run_id for name, run in read(store)[1].items()}

    two = tracker()
    two.start_study({"trials": 3}, {})
    two.start_trial(record(1))
    two.log_epoch(1, 2, {"val_accuracy": 0.6, "train_loss": math.nan})  # run again from a checkpoint
    two.log_epoch(1, 3, {"val_accuracy": 0.7})
    two.end_trial(record(1, TrialState.COMPLETED, epochs=3, val_accuracy=0.7))
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


def test_a_finished_study_runs_again_while_it_is_resumed(tracker: MakeTracker, store: Path) -> None:
    one = tracker()
    one.start_study({}, {})
    one.start_trial(record(0))
    finish(one, status="KILLED")
    two = tracker()
    two.start_study({}, {})
    two.start_trial(record(0))
    assert two.flush(30)
    (parent,), trials = read(store)
    assert parent.info.status == trials["t0000"].info.status == trials["t0000"].data.tags["state"].upper() == "RUNNING"
    two.end_trial(record(0, TrialState.COMPLETED))
    finish(two)
    (parent,), trials = read(store)
    assert parent.info.status == trials["t0000"].info.status == "FINISHED"
    assert trials["t0000"].data.tags["reason"] == ""


def test_studies_of_one_experiment_keep_to_themselves(tracker: MakeTracker, store: Path) -> None:
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
def test_trials_left_running_are_killed(tracker: MakeTracker, store: Path, status: str) -> None:
    one = tracker()
    one.start_study({}, {})
    one.start_trial(record(0))
    one.log_epoch(1, 1, {"val_accuracy": 0.5})  # never announced
    finish(one, status=status)
    (parent,), trials = read(store)
    assert parent.info.status == status
    for name in ("t0000", "t0001"):
        assert trials[name].info.status == "KILLED"
        assert trials[name].info.end_time is not None
        assert trials[name].data.tags["state"] == "failed"


def test_mlflow_variables_redirect_nothing(
    tracker: MakeTracker, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = client(store).create_experiment("other")
    run = client(store).create_run(other)
    variables = {
        "MLFLOW_EXPERIMENT_ID": other,
        "MLFLOW_EXPERIMENT_NAME": "other",
        "MLFLOW_RUN_ID": run.info.run_id,
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/other.db",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "true",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    one = tracker()
    one.start_study({}, {})
    one.start_trial(record(0))
    artifact = tmp_path / "pareto.csv"
    artifact.write_text("number\n")
    finish(one, artifacts=[artifact])
    assert stray_environment() == ["MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"]
    assert sorted(read(store)[1]) == ["t0000"]
    assert [found.info.run_id for found in client(store).search_runs([other])] == [run.info.run_id]
    assert client(store).get_run(run.info.run_id).data.tags == run.data.tags
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a folder", "pareto.csv", "studies"]


def test_artifacts_lie_beside_the_store(
    tracker: MakeTracker, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "best" / "deep").mkdir(parents=True)
    (tmp_path / "pareto.csv").write_text("number\n")
    (tmp_path / "best" / "deep" / "model.json").write_text("{}")
    one = tracker()
    one.start_study({}, {})
    missing = tmp_path / "missing.html"
    artifacts = [tmp_path / "pareto.csv", missing, tmp_path / "best"]
    one.finish_study(status="FINISHED", metrics={}, pareto=[], artifacts=artifacts)
    one.close(30)
    (parent,), _ = read(store)
    folder = store.parent / "mlartifacts" / "tune-sparsity" / "digits" / parent.info.run_id / "artifacts"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "best/deep/model.json",
        "pareto.csv",
    ]
    assert parent.info.status == "FINISHED"  # whatever became of the artifacts
    assert len(one.problems) == 1
    assert "missing.html" in one.problems[0]
    assert not (tmp_path / "mlruns").exists()


def test_a_deleted_experiment_is_restored(tracker: MakeTracker, store: Path) -> None:
    deleted = client(store).create_experiment("tune-sparsity/digits")
    client(store).delete_experiment(deleted)
    one = tracker()
    one.start_study({}, {})
    finish(one)
    assert one.experiment_id == deleted
    assert client(store).get_experiment(deleted).lifecycle_stage == "active"


def test_studies_that_start_together_share_the_experiment(tracker: MakeTracker, store: Path) -> None:
    both = [tracker(StudyIdentity(name, "digits", 0.9, "lpss")) for name in "ab"]
    for one in both:
        one.start_study({}, {})
    for one in both:
        finish(one)
    assert both[0].experiment_id == both[1].experiment_id
    assert len(read(store)[0]) == 2


def test_an_unwritable_store_is_told_and_not_raised(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    one = InThread(f"sqlite:///{tmp_path}/file/mlflow.db", IDENTITY, tmp_path / "study")
    one.start_study({}, {})
    one.start_trial(record(0))
    one.log_epoch(0, 1, {"val_accuracy": 0.5})
    assert not one.flush(30)
    one.end_trial(record(0, TrialState.COMPLETED))
    one.finish_study(status="FINISHED", metrics={}, pareto=[0], artifacts=[])
    one.close(30)
    (problem,) = one.problems
    assert "2 runs are not fully recorded" in problem
    assert "\n" not in problem
    assert one.waiting
    assert one.run_id is None
    assert one.experiment_id is None


def test_a_file_that_is_no_store_is_told_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_text("someone's notes, not a database\n" * 100)
    one = InThread(f"sqlite:///{file}", IDENTITY, tmp_path / "study")
    one.start_study({}, {})
    one.close(30)
    assert "not a database" in one.problems[0]
    assert file.read_text().startswith("someone's notes")


def test_a_store_that_comes_back_gets_everything(
    tracker: MakeTracker, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tracker()
    one.start_study({}, {})
    one.start_trial(record(0))
    assert one.flush(30)
    away = [True]
    write = Store.write

    def perhaps(self: Store, name: str, owed: Owed) -> list[str]:
        if away:
            raise ConnectionError("nobody there")
        return write(self, name, owed)

    monkeypatch.setattr(Store, "write", perhaps)
    one.log_epoch(0, 1, {"val_accuracy": 0.5})
    one.start_trial(record(1))
    assert not one.flush(30)
    assert len(one.problems) == 1
    assert one.waiting
    assert "2 runs are not fully recorded" in one.problems[0]
    away.clear()
    one.log_epoch(0, 2, {"val_accuracy": 0.6})
    one.end_trial(record(0, TrialState.COMPLETED, epochs=2))
    one.end_trial(record(1, TrialState.PRUNED))
    finish(one)
    trials = read(store)[1]
    assert sorted(trials) == ["t0000", "t0001"]
    history = client(store).get_metric_history(trials["t0000"].info.run_id, "val_accuracy")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 0.6)]


def test_what_the_store_refuses_for_good_is_told_and_the_rest_written(tracker: MakeTracker, store: Path) -> None:
    one = tracker()
    one.start_study({}, {})
    for number in (0, 1):
        one.start_trial(record(number))
    assert one.flush(30)
    client(store).delete_run(read(store)[1]["t0000"].info.run_id)
    for number in (0, 1):
        one.end_trial(record(number, TrialState.COMPLETED))
    one.finish_study(status="FINISHED", metrics={}, pareto=[1], artifacts=[])
    one.close(30)
    assert one.problems
    assert all("t0000" in line for line in one.problems)
    assert read(store)[0][0].info.status == read(store)[1]["t0001"].info.status == "FINISHED"


@pytest.mark.slow
def test_a_thousand_reports_hold_the_caller_up_for_less_than_half_a_second(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the writer at its own pace
    one = Tracker(f"sqlite:///{store}", IDENTITY, tmp_path / "study")
    one.start_study({}, {})
    assert one.flush(60)
    before, cpu = one.seconds, time.process_time()
    for number in range(50):
        one.start_trial(record(number))
    for epoch, number in itertools.product(range(1, 21), range(50)):
        one.log_epoch(number, epoch, {f"metric_{n}": number + n / epoch for n in range(12)})
    for number in range(50):
        one.end_trial(record(number, TrialState.COMPLETED, epochs=20))
    held_up, cpu = one.seconds - before, time.process_time() - cpu
    finish(one)
    print(f"1,000 reports of 12 metrics: caller {held_up:.3f} s, processor {cpu:.3f} s")
    assert cpu < 0.5  # of the driver's process; processor time, since others make wall clock a matter of luck
    with closing(sqlite3.connect(store)) as database:
        (rows,) = database.execute("SELECT count(*) FROM metrics WHERE key LIKE 'metric_%'").fetchone()
    assert rows == 12_000


@pytest.mark.slow
def test_standard_streams_stay_clean_and_mlflow_stays_out_of_the_drivers_process(store: Path, tmp_path: Path) -> None:
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
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    ((parent,), _) = read(store, "e")
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(parent.data.metrics)


def begun(tracker: Tracker) -> None:
    tracker.start_study({}, {})
    tracker.start_trial(record(0))
    tracker.log_epoch(0, 1, {"val_accuracy": 0.5})
    assert tracker.flush(60), tracker.problems


def test_a_study_that_is_left_unfinished_ends_as_killed(tracker: MakeTracker, store: Path) -> None:
    one = tracker()
    begun(one)
    one.close(30)
    (parent,), trials = read(store)
    assert parent.info.status == trials["t0000"].info.status == "KILLED"
    assert (trials["t0000"].data.tags["state"], trials["t0000"].data.tags["pareto"]) == ("failed", "false")


@pytest.mark.slow
def test_the_runs_of_a_driver_that_is_killed_end_as_killed(store: Path, tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from tests.tuner.test_tracking import IDENTITY, begun
from tune_sparsity.tuner.tracking.tracker import Tracker
one = Tracker(sys.argv[1], IDENTITY, Path(sys.argv[2]))
begun(one)
one.log_epoch(0, 2, {"val_accuracy": 0.6})
os.kill(os.getpid(), signal.SIGKILL)
"""
    uri, folder = f"sqlite:///{store}", tmp_path / "study"
    done = subprocess.run([sys.executable, "-c", script, uri, str(folder)], cwd=Path(__file__).parents[2], timeout=120)
    assert done.returncode == -signal.SIGKILL
    with only_one(folder, wait=True):  # until the writer has ended
        pass
    (parent,), trials = read(store)
    assert parent.info.status == trials["t0000"].info.status == "KILLED"
    assert trials["t0000"].data.metrics == {"val_accuracy": 0.6}


def test_a_trial_that_ended_unnoticed_is_told_of_by_the_next_process(tracker: MakeTracker, store: Path) -> None:
    one = tracker()
    begun(one)
    one.close(30)
    two = tracker()
    two.start_study({}, {})
    for number in (0, 1):
        two.recall(record(number, TrialState.COMPLETED, epochs=1, val_accuracy=0.5))
    before = two._outbox.size()
    two.recall(record(0, TrialState.COMPLETED, epochs=1, val_accuracy=0.5))
    assert two._outbox.size() == before
    finish(two, pareto=[0])
    _, trials = read(store)
    assert {name: run.info.status for name, run in trials.items()} == {"t0000": "FINISHED", "t0001": "FINISHED"}
    assert {name: run.data.tags["pareto"] for name, run in trials.items()} == {"t0000": "true", "t0001": "false"}


def test_another_study_of_the_same_name_has_runs_of_its_own(store: Path, tmp_path: Path) -> None:
    for folder in ("here", "there"):
        one = InThread(f"sqlite:///{store}", IDENTITY, tmp_path / folder)
        begun(one)
        finish(one)
    runs = client(store).search_runs([one.experiment_id])
    assert sorted(run.data.tags["role"] for run in runs) == ["parent", "parent", "trial", "trial"]


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


def test_a_new_store_appears_whole_beside_nothing_else(new_store: Path) -> None:
    assert [path.name for path in new_store.parent.iterdir()] == ["mlflow.db"]
    assert client(new_store).get_experiment("0").name == "Default"
