"""Tests the MLflow tracking with MLflow's environment variables, with stores that are missing, damaged or not writable,
and with runs that a store refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.tracking import IDENTITY, InThread, MakeTracker, begun, client, finish, read, record
from tune_sparsity.tuner.config.tracking_uri import stray_environment
from tune_sparsity.tuner.study.trial import TrialState
from tune_sparsity.tuner.tracking.client import Owed, RunWriter
from tune_sparsity.tuner.tracking.outbox import StudyIdentity


def test_mlflow_environment_variables_do_not_redirect_the_tracking(
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
    one.close(120)
    (parent,), _ = read(store)
    folder = store.parent / "mlartifacts" / "tune-sparsity" / "digits" / parent.info.run_id / "artifacts"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "best/deep/model.json",
        "pareto.csv",
    ]
    assert parent.info.status == "FINISHED"  # although one artifact is missing
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


def test_an_unwritable_store_is_reported_as_a_problem_and_raises_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    one = InThread(f"sqlite:///{tmp_path}/file/mlflow.db", IDENTITY, tmp_path / "study")
    one.start_study({}, {})
    one.start_trial(record(0))
    one.log_epoch(0, 1, {"val_accuracy": 0.5})
    assert not one.flush(120)
    one.end_trial(record(0, TrialState.COMPLETED))
    one.finish_study(status="FINISHED", metrics={}, pareto=[0], artifacts=[])
    one.close(120)
    (problem,) = one.problems
    assert "2 runs are not fully recorded" in problem
    assert "\n" not in problem
    assert one.waiting
    assert one.run_id is None
    assert one.experiment_id is None


def test_a_file_that_is_no_database_is_reported_and_not_changed(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_text("someone's notes, not a database\n" * 100)
    one = InThread(f"sqlite:///{file}", IDENTITY, tmp_path / "study")
    one.start_study({}, {})
    one.close(120)
    assert "not a database" in one.problems[0]
    assert file.read_text().startswith("someone's notes")


def test_a_store_that_comes_back_gets_everything(
    tracker: MakeTracker, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tracker()
    one.start_study({}, {})
    one.start_trial(record(0))
    assert one.flush(120)
    away = [True]
    write = RunWriter.write

    def perhaps(self: RunWriter, name: str, owed: Owed) -> list[str]:
        if away:
            raise ConnectionError("nobody there")
        return write(self, name, owed)

    monkeypatch.setattr(RunWriter, "write", perhaps)
    one.log_epoch(0, 1, {"val_accuracy": 0.5})
    one.start_trial(record(1))
    assert not one.flush(120)
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


def test_runs_that_the_store_refuses_are_reported_and_others_are_written(tracker: MakeTracker, store: Path) -> None:
    one = tracker()
    one.start_study({}, {})
    for number in (0, 1):
        one.start_trial(record(number))
    assert one.flush(120)
    client(store).delete_run(read(store)[1]["t0000"].info.run_id)
    for number in (0, 1):
        one.end_trial(record(number, TrialState.COMPLETED))
    one.finish_study(status="FINISHED", metrics={}, pareto=[1], artifacts=[])
    one.close(120)
    assert one.problems
    assert all("t0000" in line for line in one.problems)
    assert read(store)[0][0].info.status == read(store)[1]["t0001"].info.status == "FINISHED"


def test_another_study_of_the_same_name_has_runs_of_its_own(store: Path, tmp_path: Path) -> None:
    for folder in ("here", "there"):
        one = InThread(f"sqlite:///{store}", IDENTITY, tmp_path / folder)
        begun(one)
        finish(one)
    runs = client(store).search_runs([one.experiment_id])
    assert sorted(run.data.tags["role"] for run in runs) == ["parent", "parent", "trial", "trial"]


def test_a_new_store_is_complete_and_leaves_no_temporary_file(new_store: Path) -> None:
    assert [path.name for path in new_store.parent.iterdir()] == ["mlflow.db"]
    assert client(new_store).get_experiment("0").name == "Default"
