"""Joining a cluster and checking its nodes, tested without a cluster: Ray's options, messages, the nodes' versions, and
the storage that nodes share."""

from __future__ import annotations

import json
import os
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

import tune_sparsity
from tune_sparsity.tuner.cluster import node_probe, nodes, private_ray_main
from tune_sparsity.tuner.cluster.join import refusal, runtime_environment
from tune_sparsity.tuner.cluster.node import Node
from tune_sparsity.tuner.cluster.nodes import Answer, compared, differences
from tune_sparsity.tuner.cluster.private_ray import NodeProcess, asks_for_token, settle_environment
from tune_sparsity.tuner.config.study_config import JOB, make_config
from tune_sparsity.tuner.storage.places import Folder
from tune_sparsity.tuner.storage.study_storage import LocalStorage

HERE = node_probe.versions()


def answer(address: str = "10.0.0.2", **other: str) -> Answer:
    return Answer(Node("id", address, 4, 0), {**HERE, **{name.replace("_", "-"): v for name, v in other.items()}}, [])


# Joining


def cpus_wanted(monkeypatch: pytest.MonkeyPatch, cores: int, gpus: int, **options: Any) -> int:
    monkeypatch.setattr(private_ray_main.os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setattr(private_ray_main, "count_gpus", lambda: gpus)
    return private_ray_main.cpus_in_use(**{**ORDINARY, **options})


ORDINARY = {
    "cpus_per_trial": 1.0,
    "gpus_per_trial": "auto",
    "workers_per_trial": 1,
    "trials": 32,
    "concurrency": None,
}


@pytest.mark.parametrize(
    ("cores", "gpus", "options", "cpus"),
    [
        (8, 0, {}, 8),
        (64, 0, {}, 32),  # as many as there are trials
        (8, 0, {"concurrency": 3}, 3),
        (8, 0, {"cpus_per_trial": 3}, 6),
        (2, 0, {"cpus_per_trial": 3}, 3),  # 2 CPUs do not fit one trial; Ray still gets enough for one
        (8, 0, {"cpus_per_trial": 0.5, "trials": 3}, 2),
        (16, 2, {}, 2),  # a whole GPU each
        (16, 2, {"gpus_per_trial": 0.25}, 8),
        (16, 2, {"gpus_per_trial": 0}, 16),
        (9, 0, {"workers_per_trial": 4}, 8),  # two trials
        (8, 0, {"workers_per_trial": 4, "cpus_per_trial": 2, "trials": 3}, 8),
        (16, 2, {"workers_per_trial": 2}, 2),  # a GPU for each worker
        (2, 0, {"workers_per_trial": 4}, 2),  # 2 CPUs do not fit one trial; Ray gets both
    ],
)
def test_a_private_ray_has_the_cpus_of_the_trials_that_run_at_once(
    cores: int, gpus: int, options: dict[str, object], cpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cpus_wanted(monkeypatch, cores, gpus, **options) == cpus


@pytest.mark.parametrize(
    ("given", "token"),
    [({}, True), ({"RAY_AUTH_MODE": "disabled"}, False), ({"RAY_AUTH_TOKEN_PATH": "/mine"}, False)],
)
def test_a_private_ray_asks_for_a_token_unless_the_user_disables_it(
    given: dict[str, str], token: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1", **given})
    settle_environment(own=True)
    first = dict(os.environ)
    assert first["RAY_AUTH_MODE"] == given.get("RAY_AUTH_MODE", "token")
    assert ("RAY_AUTH_TOKEN" in first) is token
    assert asks_for_token() is ("RAY_AUTH_MODE" not in given)
    assert first["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"  # with "0", Ray listens on loopback only
    settle_environment(own=True)
    assert dict(os.environ) == first


def test_a_cluster_that_does_not_answer_is_given_up_after_one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    settle_environment(own=True)
    assert "RAY_NUM_REDIS_GET_RETRIES" not in os.environ
    settle_environment()
    assert os.environ["RAY_NUM_REDIS_GET_RETRIES"] == "1"


def test_the_error_says_why_a_private_ray_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/proc/nowhere")
    with NodeProcess(make_config({"target": 0.9})) as node:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"Ray did not start: .*nowhere"):
                node.address()


@pytest.mark.parametrize(
    ("message", "said", "expected"),
    [
        (
            "Failed to connect",
            "gcs_client.cc: Unauthenticated: InvalidAuthToken: missing or incorrect",
            "RAY_AUTH_MODE",
        ),
        ("Token authentication is enabled but no authentication token was found. Ensure", "", "RAY_AUTH_TOKEN_PATH"),
        (
            "Version mismatch: The cluster was started with:\n    Ray: 2.50.0",
            "",
            "other versions: Version mismatch: The",
        ),
        ("Failed to connect\nto Ray", "", "no Ray cluster answers there (Failed to connect to Ray)"),
    ],
)
def test_one_line_says_why_a_cluster_was_not_joined(message: str, said: str, expected: str) -> None:
    line = refusal(message, said)
    assert expected in line
    assert "\n" not in line
    assert len(line) < 320


def test_the_runtime_environment_sends_the_package_to_every_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JOB, raising=False)
    folders = [Path(folder) for folder in runtime_environment()["py_modules"]]
    assert [folder.name for folder in folders] == ["tune_sparsity"]
    packages = [folders[0] / name for name in ("tuner", "search_spaces", "experiments", "sparsity")]
    assert all((folder / "__init__.py").is_file() for folder in (*folders, *packages))
    assert (packages[1] / "lpss.yaml").is_file()


def test_nothing_is_added_to_a_job_that_sends_its_own_python_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOB, json.dumps({"runtime_env": {"py_modules": ["gcs://x.zip"]}, "metadata": {}}))
    assert runtime_environment() == {}
    monkeypatch.setenv(JOB, json.dumps({"runtime_env": {"working_dir": "gcs://x.zip"}, "metadata": {}}))
    assert len(runtime_environment()["py_modules"]) == 1


def test_inside_a_ray_job_a_study_joins_the_cluster_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config({"target": 0.9})
    monkeypatch.delenv(JOB, raising=False)
    assert config.resolved().address is None
    monkeypatch.setenv(JOB, "{}")
    assert config.resolved().address == "auto"
    assert make_config({"target": 0.9, "address": "h:1"}).resolved().address == "h:1"


# Versions


def test_nodes_with_equal_versions_have_no_differences() -> None:
    assert differences([answer(), answer("10.0.0.3")]) == []


def test_a_difference_names_the_package_both_versions_and_the_nodes() -> None:
    (line,) = differences([answer(), answer("10.0.0.3", torch="1.0.0"), answer("10.0.0.4", torch="1.0.0")])
    assert line == f"10.0.0.3, 10.0.0.4: torch 1.0.0, and this process has {HERE['torch']}"


@pytest.mark.parametrize("package", ["python", "ray", "torch", "numpy", "tune_sparsity"])
def test_a_different_version_of_a_compared_package_is_reported(package: str) -> None:
    assert len(differences([answer(**{package: "0.0.1"})])) == 1


@pytest.mark.parametrize("package", ["safetensors", "pydantic"])
def test_some_packages_may_have_any_version_but_must_be_installed(package: str) -> None:
    assert differences([answer(**{package: "0.0.1"})]) == []
    (line,) = differences([answer(**{package: ""})])
    assert f"{package} is not installed" in line


def test_torch_is_compared_by_release_python_by_minor_and_numpy_by_major() -> None:
    assert compared("torch", "2.9.0+cu126") == compared("torch", "2.9.0+cpu") == compared("torch", "2.9.0")
    assert compared("torch", "2.9.0") != compared("torch", "2.9.1")
    assert compared("python", "3.11.7") == compared("python", "3.11.9") != compared("python", "3.12.7")
    assert compared("numpy", "2.0.1") == compared("numpy", "2.4.6") != compared("numpy", "1.26.4")


def test_the_digest_depends_on_the_code_and_not_on_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(str(tune_sparsity.__file__)).parents[1]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for folder, _, names in os.walk(root / node_probe.OURS, followlinks=True):
            for path in (Path(folder, name) for name in names if name.endswith(".py")):
                archive.write(path, path.relative_to(root))
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        archive.extractall(tmp_path / "elsewhere")

    def found(package: str) -> object:
        class Spec:
            origin = str(tmp_path / "elsewhere" / package / "__init__.py")

        return Spec

    before = node_probe.code()
    monkeypatch.setattr(node_probe.importlib.util, "find_spec", found)
    assert node_probe.code() == before != ""
    with (tmp_path / "elsewhere" / "tune_sparsity" / "tuner" / "worker" / "trainable.py").open("a") as file:
        file.write("\n")
    assert node_probe.code() != before


# Room


@pytest.mark.parametrize(
    ("cpus", "gpus", "each", "share", "room"),
    [
        (4, 0, 1, 0, 4),
        (4, 0, 3, 0, 1),
        (3, 0, 0.5, 0, 6),
        (1, 0, 2, 0, 0),
        (8, 2, 1, 0.25, 8),
        (8, 2, 1, 0.4, 4),
        (8, 3, 1, 2, 1),
        (8, 0, 1, 0.5, 0),
        (2, 4, 1, 1, 2),
        (10, 1, 1, 0.1, 10),
    ],
)
def test_a_node_has_room_for_as_many_trials_as_its_cpus_and_gpus_allow(
    cpus: float, gpus: float, each: float, share: float, room: int
) -> None:
    assert Node("id", "a", cpus, gpus).room(each, share) == room


# Storage


def test_a_node_that_finds_the_file_of_the_driver_writes_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "driver").write_text("token")
    assert node_probe.probe(Folder(tmp_path), "token", "node")["storage"] == ""
    assert (tmp_path / "node").read_text() == "token"


def test_a_file_that_arrives_late_is_waited_for(tmp_path: Path) -> None:
    late = threading.Timer(0.5, lambda: (tmp_path / "driver").write_text("token"))
    late.start()
    assert node_probe.probe(Folder(tmp_path), "token", "node")["storage"] == ""
    late.join()


def test_the_probe_distinguishes_missing_foreign_and_unreadable_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_probe, "PATIENCE", 0.1)
    assert "does not see" in node_probe.probe(Folder(tmp_path), "token", "node")["storage"]
    (tmp_path / "driver").write_text("of another study")
    assert "has another folder" in node_probe.probe(Folder(tmp_path), "token", "node")["storage"]
    assert "cannot read" in node_probe.probe(Folder(tmp_path / "driver"), "token", "node")["storage"]
    assert not (tmp_path / "node").exists()


def test_the_probe_removes_its_files_and_the_folders_that_it_made(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    with nodes._left_behind(LocalStorage(tmp_path / "kept" / "new" / "studies"), "0123456789") as place:
        assert place is not None
        assert place.read("driver") == b"0123456789"
        place.write("node", b"0123456789")
    assert list(tmp_path.rglob("*")) == [tmp_path / "kept"]


def test_a_node_whose_file_does_not_reach_the_driver_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_probe, "PATIENCE", 0.1)
    assert "writes files there" in nodes._read_back(answer(), Folder(tmp_path)).storage
    (tmp_path / "id").write_text("token")
    assert nodes._read_back(answer(), Folder(tmp_path)).storage == ""
