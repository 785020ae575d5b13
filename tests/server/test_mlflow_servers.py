"""Test the MLflow record of a study on a server (also with a password or with outages) and in PostgreSQL."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.mlflow_servers import PASSWORD, Server, door, postgresql
from tests.helpers.tracking import IDENTITY, InThread, begun, record
from tune_sparsity.tuner.cli import main
from tune_sparsity.tuner.config.tracking_uri import with_driver
from tune_sparsity.tuner.study.trial import TrialState
from tune_sparsity.tuner.tracking import writer
from tune_sparsity.tuner.tracking.delivery import deliver
from tune_sparsity.tuner.tracking.outbox import end_abandoned
from tune_sparsity.tuner.tracking.tracker import Tracker

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _quick_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "GATHER", 0.1)
    monkeypatch.setattr(writer, "SHARE", 0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("server"))
    one.start()
    yield one
    one.kill()


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=with_driver(uri))


def runs_of(uri: str, tracker_or_id: Any) -> tuple[Any, dict[str, Any]]:
    """Return the study's parent run, and the runs of its trials by name. Fail if a run is there twice."""
    one = client(uri)
    parent = one.get_run(tracker_or_id)
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    children = one.search_runs([parent.info.experiment_id], query)
    by_name = {run.info.run_name: run for run in children}
    assert len(by_name) == len(children)
    assert len(one.search_runs([parent.info.experiment_id], f"tags.study_id = '{parent.data.tags['study_id']}'")) == (
        len(children) + 1
    )
    return parent, by_name


def whole_study(tracker: Tracker, folder: Path) -> None:
    """Write the record of a study with two trials and an artifact."""
    begun(tracker)
    rest_of_study(tracker, folder)


def rest_of_study(tracker: Tracker, folder: Path) -> None:
    """Write the rest of the record, after `begun` has written its first part."""
    tracker.log_epoch(0, 2, {"val_accuracy": 0.6})
    tracker.end_trial(record(0, TrialState.COMPLETED, epochs=2, value=0.6))
    tracker.start_trial(record(1))
    tracker.end_trial(record(1, TrialState.FAILED, reason="loss is NaN"))
    (folder / "pareto.csv").write_text("number\n0\n")
    finish(tracker, folder)


def finish(tracker: Tracker, folder: Path) -> None:
    files = [folder / "pareto.csv"]
    tracker.finish_study(status="FINISHED", metrics={"hypervolume": 0.1}, pareto=[0], artifacts=files)
    tracker.close(120)


def check_whole_study(uri: str, run_id: Any) -> None:
    parent, trials = runs_of(uri, run_id)
    assert (parent.info.status, parent.data.metrics) == ("FINISHED", {"hypervolume": 0.1})
    assert {name: run.info.status for name, run in trials.items()} == {"t0000": "FINISHED", "t0001": "FAILED"}
    assert [run.data.tags["pareto"] for _, run in sorted(trials.items())] == ["true", "false"]
    history = client(uri).get_metric_history(trials["t0000"].info.run_id, "val_accuracy")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 0.6)]
    assert [file.path for file in client(uri).list_artifacts(parent.info.run_id)] == ["pareto.csv"]


def test_an_mlflow_server_gets_the_complete_record_of_a_study(server: Server, tmp_path: Path) -> None:
    one = InThread(server.uri, IDENTITY, tmp_path)
    whole_study(one, tmp_path)
    assert one.problems == []
    check_whole_study(server.uri, one.run_id)
    where = client(server.uri).get_run(one.run_id).info.artifact_uri
    assert where.startswith("mlflow-artifacts:")  # the server itself stores the files and hands them out


def test_the_credentials_come_from_mlflows_environment_variables(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with door(server, "ada", PASSWORD) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
        refused = InThread(uri, IDENTITY, tmp_path / "refused")
        refused.start_study({}, {})
        refused.close(120)
        assert any("401" in line for line in refused.problems), refused.problems
        assert "wrong" not in " ".join(refused.problems)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        sent, missing = deliver(tmp_path / "refused", uri)
        assert missing == ""
        assert client(uri).get_run(sent.run_id).info.status == "KILLED"
        one = InThread(uri, IDENTITY, tmp_path / "let in")
        whole_study(one, tmp_path / "let in")
        assert one.problems == []
        check_whole_study(uri, one.run_id)
        for file in (tmp_path / "let in" / "tracking").iterdir():
            assert PASSWORD not in file.read_text()


def test_a_server_outage_during_a_study_loses_no_record(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = InThread(server.uri, IDENTITY, tmp_path)
    begun(one)
    server.kill()
    told, connect, in_time = threading.Event(), socket.socket.connect, list[bool]()

    def connect_once_told(self: socket.socket, address: Any) -> None:
        in_time.append(told.wait(120))
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_once_told)
    try:
        one.log_epoch(0, 2, {"val_accuracy": 0.6})
        one.end_trial(record(0, TrialState.COMPLETED, epochs=2, value=0.6))
        one.start_trial(record(1))
        told.set()
        assert not one.flush(120)
        assert in_time  # the writer tried to connect to the server
        assert all(in_time)  # the calls above had returned before any connection: they do not wait for the server
    finally:
        server.start()
    one.end_trial(record(1, TrialState.FAILED, reason="loss is NaN"))
    (tmp_path / "pareto.csv").write_text("number\n0\n")
    finish(one, tmp_path)
    assert one.problems == []
    check_whole_study(server.uri, one.run_id)


def test_send_delivers_the_records_that_a_dead_server_did_not_get(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "digits-90"
    one = InThread(server.uri, IDENTITY, folder)
    begun(one)
    options = "target: 0.9\nexperiment: digits\nmethod: [lpss]\ntrials: 3\nepochs: 2\nseed: 0\n"
    (folder / "study.yaml").write_text(f"{options}tracking_uri: {server.uri}\n")
    server.kill()
    send = ["send", "digits-90", "--storage", str(tmp_path)]
    try:
        rest_of_study(one, folder)
        (problem,) = one.problems
        assert "3 runs are not fully recorded" in problem
        assert server.uri in problem
        assert main(send) == 1
        assert "tune-sparsity send digits-90" in capsys.readouterr().err
    finally:
        server.start()
    assert main(send) == 0
    assert one.run_id is not None
    check_whole_study(server.uri, one.run_id)
    assert main(send) == 0  # sending a second time changes nothing
    check_whole_study(server.uri, one.run_id)
    # Another store has nothing of the study, and gets everything.
    other = f"sqlite:///{tmp_path}/other.db"
    assert main([*send, "--tracking-uri", other]) == 0
    run_id = capsys.readouterr().err.split("run ")[-1].strip()
    assert run_id != one.run_id
    check_whole_study(other, run_id)


def test_an_empty_store_in_place_of_a_lost_one_gets_the_complete_record(tmp_path: Path) -> None:
    lost, uri = f"sqlite:///{tmp_path}/lost.db", f"sqlite:///{tmp_path}/mlflow.db"
    folder = tmp_path / "digits-90"
    one = InThread(lost, IDENTITY, folder)
    whole_study(one, folder)
    sent = folder / "tracking" / "sent.json"
    # sent.json now says that the record was sent to `uri`, where the store is empty.
    sent.write_text(sent.read_text().replace(lost, uri))
    one._outbox.note("t0000", tags={"late": "yes"})
    delivered, missing = deliver(folder, uri)
    assert missing == ""
    assert delivered.run_id != one.run_id
    assert delivered.run_id is not None
    check_whole_study(uri, delivered.run_id)


def test_a_postgresql_store_has_the_same_record_as_a_file(tmp_path: Path) -> None:
    with postgresql() as uri:
        storage = tmp_path / "studies"
        one = InThread(uri, IDENTITY, storage / "digits-90")
        whole_study(one, storage / "digits-90")
        assert one.problems == []
        check_whole_study(uri, one.run_id)
        assert (
            storage / "mlartifacts" / "tune-sparsity" / "digits" / one.run_id / "artifacts" / "pareto.csv"
        ).is_file()
        # A second process continues the study and dies. `end_abandoned` then ends the runs that it has left running.
        two = InThread(uri, IDENTITY, storage / "digits-90")
        two.start_study({}, {})
        two.start_trial(record(2))
        assert two.flush(120)
        end_abandoned(storage / "digits-90", two._outbox.session)
        assert two.flush(120)
        parent, trials = runs_of(uri, one.run_id)
        assert two.run_id == one.run_id
        assert parent.info.status == trials["t0002"].info.status == "KILLED"
        two.close(120)
        for file in (storage / "digits-90" / "tracking").iterdir():
            assert "secret" not in file.read_text()
