"""Test studies whose MLflow record is interrupted: the server has an outage, or the command is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command import run_command
from tests.helpers.mlflow_servers import Server
from tests.helpers.waiting import until

pytestmark = pytest.mark.slow

AWAY = 10.0  # seconds, in which the writer tries again several times


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("server"))
    one.start()
    yield one
    one.kill()


@pytest.fixture
def study(experiment_file: Path, tmp_path: Path, server: Server) -> Callable[..., subprocess.Popen[str]]:
    """A function that begins a study in `tmp_path`, and waits until the MLflow server has the run of trial t0001."""

    def begin(name: str, trials: int) -> subprocess.Popen[str]:
        arguments = ["--target", "0.5", "--experiment", f"{experiment_file}:slow", "--trials", str(trials)]
        more = ["--study", name, "--concurrency", "1", "--tracking-uri", server.uri, "--scheduler", "none", "--json"]
        kept = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        command = [sys.executable, "-m", "tune_sparsity", *arguments, *more, "--epochs", "12"]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, cwd=tmp_path, env=kept, text=True, **streams)
        sent = tmp_path / "studies" / name / "tracking" / "sent.json"
        until(lambda: sent.exists() and '"t0001"' in sent.read_text(), process, seconds=120)
        return process

    return begin


def runs(uri: str, study: str) -> tuple[Any, list[Any]]:
    """Return the study's parent run, and the runs of its trials in order. Fail unless there is exactly one parent."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiments = [one.experiment_id for one in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.study = '{study}'", max_results=1000)
    (parent,) = [run for run in found if run.data.tags["role"] == "parent"]
    children = [run for run in found if run.data.tags["role"] == "trial"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    return parent, sorted(children, key=lambda run: run.info.run_name)


def check_all_there(uri: str, study: str, trials: int) -> None:
    """Check that the server has exactly one run for each trial, and that all runs are finished and have all epochs."""
    parent, children = runs(uri, study)
    assert [run.info.run_name for run in children] == [f"t{number:04d}" for number in range(trials)]
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert {run.data.metrics["epochs"] for run in children} == {12.0}
    assert all("train_loss" in run.data.metrics and "lr" in run.data.params for run in children)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    for run in (children[0], children[trials // 2], children[-1]):
        history = client.get_metric_history(run.info.run_id, "val_accuracy_at_target")
        assert [point.step for point in history] == list(range(1, 13))


@pytest.mark.long
def test_no_record_is_lost_if_a_server_restarts_during_a_study(
    server: Server, study: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = study("away", 24)
    server.kill()
    back = threading.Event()

    def bring_back() -> None:
        server.start()
        back.set()

    timer = threading.Timer(AWAY, bring_back)
    timer.start()
    _, stderr = process.communicate(timeout=240)
    timer.join()
    assert back.is_set()
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    csv = (tmp_path / "studies" / "away" / "trials.csv").read_text().splitlines()
    assert len(csv) == 25
    if "tune-sparsity send away" in stderr:  # the study ended before the server had everything
        assert run_command(["send", "away"], tmp_path).code == 0
    check_all_there(server.uri, "away", 24)


def test_a_server_outage_fails_no_trial_and_resume_sends_the_missing_record(
    server: Server, study: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    name = "gone"
    process = study(name, 8)
    server.kill()
    try:
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr
        assert f"tune-sparsity send {name}" in stderr
        assert len((tmp_path / "studies" / name / "trials.csv").read_text().splitlines()) == 9
    finally:
        server.start()
    later = run_command(["resume", name, "--json"], tmp_path)
    assert later.code == 0, later.stderr
    check_all_there(server.uri, name, 8)


def test_a_killed_and_resumed_study_has_one_finished_run_for_each_trial(
    server: Server, study: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = study("killed", 6)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    resumed = run_command(["resume", "killed", "--json"], tmp_path)
    assert resumed.code == 0, resumed.stderr
    assert resumed.result()["states"] == {"completed": 6, "pruned": 0, "failed": 0}
    check_all_there(server.uri, "killed", 6)
