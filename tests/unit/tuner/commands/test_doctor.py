"""The findings of the command doctor: each says that something works, or gives a remedy for a problem."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.helpers.command import run_command
from tune_sparsity.sparsity.optim import fused
from tune_sparsity.tuner.cli import main
from tune_sparsity.tuner.cluster import node_probe
from tune_sparsity.tuner.cluster.node import Node
from tune_sparsity.tuner.cluster.nodes import Answer
from tune_sparsity.tuner.commands.doctor import (
    Finding,
    authentication,
    gpu_memory,
    resources,
    shared_storage,
    step,
    storage_here,
    tracking,
    versions,
)
from tune_sparsity.tuner.storage.study_storage import LocalStorage

NODE = Node("id", "10.0.0.2", 4, 1)


def answer(**other: object) -> Answer:
    return Answer(**{"node": NODE, "versions": node_probe.versions(), "gpus": [], **other})  # type: ignore[arg-type]


def test_a_line_says_ok_or_what_to_do() -> None:
    assert str(Finding("mlflow", "3.17\nhere")) == "ok   mlflow: 3.17 here"
    assert str(Finding("mlflow", "gone", "start it")) == "fix  mlflow: gone: start it"


def test_doctor_says_whether_the_optimizers_step_is_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert bool(step().remedy) == (fused.kernel is None)
    (tmp_path / "tune_sparsity" / "sparsity" / "optim").mkdir(parents=True)
    (tmp_path / "tune_sparsity" / "__init__.py").touch()
    (tmp_path / "tune_sparsity" / "sparsity" / "optim" / "_kernel.pyi").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tune_sparsity")
    assert str(step()).startswith("fix  optimizer's step: not compiled")


# MLflow


@pytest.fixture
def server() -> Iterator[list]:
    """Start a server. Return its URI, and the status and the text of its answer to /version, as a list that a test may
    change."""
    what: list = ["", 200, version("mlflow")]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(what[1] if self.path == "/version" else 404)
            self.end_headers()
            self.wfile.write(what[2].encode())

        def log_message(self, *text: object) -> None:
            pass

    served = HTTPServer(("127.0.0.1", 0), Handler)
    what[0] = f"http://127.0.0.1:{served.server_port}/"
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield what
    served.shutdown()
    served.server_close()


def test_a_server_of_the_same_version_is_ok(server: list) -> None:
    assert str(tracking(server[0])).startswith(f"ok   mlflow: {version('mlflow')} at {server[0]}")


@pytest.mark.parametrize(
    ("status", "text", "remedy"),
    [
        (200, "1.30.0", "same major version"),
        (401, "", "MLFLOW_TRACKING_USERNAME"),
        (404, "", "URI of an MLflow server"),
    ],
)
def test_an_unsuitable_mlflow_server_is_reported_with_a_remedy(
    server: list, status: int, text: str, remedy: str
) -> None:
    server[1:] = [status, text]
    assert remedy in tracking(server[0]).remedy


def test_a_server_that_does_not_answer_is_reported_without_its_password() -> None:
    finding = tracking("http://user:secret@127.0.0.1:9")
    assert "does not answer" in finding.found
    assert finding.remedy
    assert "secret" not in str(finding)


@pytest.mark.slow
def test_doctor_opens_an_existing_database_and_creates_no_database(tmp_path: Path) -> None:
    assert "can write to SQLite files" in (found := tracking(f"sqlite:///{tmp_path}/mlflow.db").found)
    assert "the first study will create" in found
    assert "cannot be created" in tracking(f"sqlite:///{tmp_path}/no/mlflow.db").found
    assert not list(tmp_path.iterdir())
    (tmp_path / "empty.db").touch()
    assert tracking(f"sqlite:///{tmp_path}/empty.db").remedy == ""
    (tmp_path / "text.db").write_text("no database at all, " * 100)
    assert "does not answer" in tracking(f"sqlite:///{tmp_path}/text.db").found
    assert tracking("mlruns").remedy == "see --tracking-uri"


def environment_without(module: str, folder: Path) -> dict[str, str]:
    """Return a PYTHONPATH with which the import of the module in a new process raises ImportError."""
    (folder / "sitecustomize.py").write_text(f"""
import sys

class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise ImportError("cannot import name 'Pool' from 'sqlalchemy.pool'")

sys.meta_path.insert(0, Broken())
""")
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


@pytest.mark.slow
@pytest.mark.parametrize(("module", "new"), [("mlflow.store.tracking.sqlalchemy_store", True), ("sqlalchemy", False)])
def test_an_mlflow_that_cannot_write_to_sqlite_is_reported(module: str, new: bool, tmp_path: Path) -> None:
    site, cwd, temporary = (tmp_path / name for name in ("site", "cwd", "tmp"))
    for folder in (site, cwd, temporary):
        folder.mkdir()
    if not new:
        (cwd / "mlflow.db").touch()
    broken = environment_without(module, site)
    ran = run_command(["doctor", "--address", "127.0.0.1:9"], cwd, TMPDIR=str(temporary), **broken)
    assert ran.code == 1
    assert ran.stderr == ""
    (line,) = [line for line in ran.stdout.splitlines() if " mlflow: " in line]
    found = f"version {version('mlflow')} cannot write to SQLite files (ImportError: cannot import name 'Pool'"
    assert line.startswith(f"fix  mlflow: {found}")
    assert line.endswith("): pip install -U mlflow")
    assert list(temporary.iterdir()) == []


def test_a_missing_temporary_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    finding = tracking(f"sqlite:///{tmp_path}/mlflow.db")
    assert "No such file" in finding.found
    assert "TMPDIR" in finding.remedy


def test_a_missing_database_driver_has_a_remedy_that_shows_no_password() -> None:
    finding = tracking("mysql+nosuchdriver://u:secret@127.0.0.1:9/mlflow")
    assert finding.remedy
    assert "secret" not in str(finding)


# Nodes


def test_nodes_are_listed_with_the_room_for_trials() -> None:
    assert str(resources([NODE], 2, 0)) == "ok   nodes: 1: 10.0.0.2 (4 CPUs, 1 GPUs): room for 2 trials at once"
    assert "lower --cpus-per-trial" in resources([NODE], 8, 0).remedy
    assert resources([], 1, 0).remedy
    assert str(resources([NODE], 1, 0, 2)).endswith("room for 2 trials of 2 workers at once")
    # Each worker needs one GPU, so one trial takes both nodes.
    assert str(resources([NODE, NODE], 1, 1, 2)).endswith("room for 1 trials of 2 workers at once")
    assert "lower --workers-per-trial" in resources([NODE], 1, 1, 2).remedy


def test_versions_are_listed_and_differences_are_reported() -> None:
    (same,) = versions([answer()])
    assert same.remedy == ""
    assert f"torch {version('torch')}" in same.found
    (other,) = versions([answer(versions={**node_probe.versions(), "torch": "1.0.0"})])
    assert other.topic == "versions on 10.0.0.2"
    assert other.found.startswith("torch 1.0.0, and this process has ")
    assert other.remedy
    (silent,) = versions([answer(silent="did not answer")])
    assert silent.remedy


def test_storage_is_shared_or_the_nodes_that_do_not_see_it_are_named(tmp_path: Path) -> None:
    assert shared_storage(LocalStorage(tmp_path), [answer()]).remedy == ""
    finding = shared_storage(LocalStorage(tmp_path), [answer(), answer(storage="does not see it")])
    assert "10.0.0.2 does not see it" in finding.found
    assert finding.remedy
    assert storage_here(LocalStorage(tmp_path)).remedy == ""
    assert storage_here(LocalStorage(Path("/proc/no"))).remedy


@pytest.mark.parametrize(("share", "enough"), [(1, True), (0.5, True), (0.25, True), (0.125, False)])
def test_too_little_gpu_memory_for_the_trials_that_share_it_is_reported(share: float, enough: bool) -> None:
    gpu = {"name": "H", "total": 8192, "free": 4096}
    (finding,) = gpu_memory([answer(gpus=[gpu])], share)
    assert (finding.remedy == "") == enough
    assert f"for each of {round(1 / share)} trials" in finding.found
    if not enough:
        assert "--gpus-per-trial 0.25 " in finding.remedy


def test_gpu_memory_is_not_checked_if_trials_use_no_gpu() -> None:
    assert list(gpu_memory([answer(gpus=[{"name": "H", "total": 8192, "free": 1}])], 0)) == []


def test_the_output_of_nvidia_smi_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771, 143000'\necho 'Odd, [N/A], [N/A]'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert node_probe.gpus() == [{"name": "NVIDIA H200", "total": 143771, "free": 143000}]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert node_probe.gpus() == []


def test_authentication_has_one_remedy_for_a_private_ray_and_one_for_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert "unset RAY_AUTH_MODE" in authentication(None).remedy
    assert "start all its nodes with RAY_AUTH_MODE=token" in authentication("auto").remedy
    monkeypatch.setenv("RAY_AUTH_MODE", "Token")
    assert authentication("auto").remedy == ""


# The command


def test_a_wrong_option_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--storage", "gs://bucket"]) == 2
    assert main(["doctor", "--trials", "3"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "no other object stores are supported" in said.err
    assert len(said.err.splitlines()) == 2


def test_an_address_where_nothing_answers_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "7")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["doctor", "--address", "127.0.0.1:9"]) == 1
    lines = capsys.readouterr().out.splitlines()
    ignored = "a study ignores MLFLOW_EXPERIMENT_ID, because it creates its own MLflow runs"
    assert lines[0] == f"fix  environment: {ignored}: unset MLFLOW_EXPERIMENT_ID"
    assert lines[1].endswith("optimizer's step: compiled") == (fused.kernel is not None)
    assert lines[2].startswith("ok   mlflow: ")
    assert lines[3] == f"ok   storage: this machine can write to {tmp_path}/studies"
    assert lines[4].startswith("fix  cluster: --address '127.0.0.1:9': nothing answers there")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_doctor_prints_only_ok_lines_on_a_machine_without_faults(tmp_path: Path) -> None:
    ran = run_command(["doctor"], tmp_path)
    if fused.kernel is None:
        pytest.skip("the package was installed without a C compiler, and doctor reports this")
    assert ran.code == 0, ran.stdout + ran.stderr
    assert all(line.startswith("ok   ") for line in ran.stdout.splitlines())
    topics = [line[5:].partition(":")[0].partition(" on ")[0] for line in ran.stdout.splitlines()]
    ray = ["start of a private ray", "nodes", "ray's token authentication"]
    assert topics[:9] == ["environment", "optimizer's step", "mlflow", "storage", *ray, "shared storage", "versions"]
    assert "start of a private ray: quick, " in ran.stdout
    assert not list(tmp_path.iterdir())
