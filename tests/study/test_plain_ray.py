"""Test studies for which the fast start of Ray, which uses internal names of Ray, fails. Ray must then be started
through its public API, and leave no process behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command import Ran, run_command
from tests.helpers.outcome import optuna_states, trials_of
from tests.helpers.renamed_ray import renamed_ray
from tune_sparsity.tuner.cluster.ray_patches import PLAIN, PRIVATE

SAID = "Ray is started through its public API, which takes longer ("
SCRIPT = """
import json, os, sys, psutil
from tune_sparsity.tuner.config.study_config import make_config
from tune_sparsity.tuner.cluster.connection import connection

said = []
how = sys.argv[1]
config = make_config({"target": 0.9, "concurrency": 1}).resolved()
with connection(config, ahead=how != "late", say=said.append) as connected:
    if how != "unshared":
        connected.share(lambda: how != "threads")
    connected.wait()
    import ray

    found = ray.get(ray.remote(lambda: 41).remote()) + 1
    servers = [p for p in psutil.Process().children(recursive=True) if p.name() in ("gcs_server", "raylet")]
    names = sorted(p.name() for p in servers)
    connections = [c for p in servers for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    listening = {c.laddr.ip.removeprefix("::ffff:") for c in connections}
    agents = [p.name() for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::Dashboard")]
print(json.dumps({
    "said": said, "plain": connected.plain, "found": found, "servers": names, "listening": sorted(listening),
    "agents": agents, "mode": os.environ["RAY_AUTH_MODE"],
    "after": [p.cmdline() for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE],
}))
"""


def environment(home: Path, ray: Path | None = None) -> dict[str, str]:
    """Return environment variables with an empty home folder. If `ray` is given, Ray is imported from this folder."""
    home.mkdir(exist_ok=True)
    paths = [str(ray)] if ray else []
    path = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    # At the low priority that Ray gives to workers, their imports take minutes on a busy machine.
    return {"HOME": str(home), "PYTHONPATH": path, "RAY_worker_niceness": "0"}


def started(how: str, home: Path, ray: Path | None = None) -> dict[str, Any]:
    """Start a private Ray with `SCRIPT`. Return what the script prints. Fail if a process or a file of Ray remains."""
    env = {**os.environ, **environment(home, ray)}
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        env.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["after"] == []
    assert not (home / ".ray").exists()
    return dict(found)


def check(found: dict[str, Any], plain: bool) -> None:
    assert found["found"] == 42
    assert found["servers"] == ["gcs_server", "raylet"]  # one Ray: the servers of a failed start are gone
    assert found["listening"] == ["127.0.0.1"]
    assert found["mode"] == "token"
    assert bool(found["agents"]) is plain  # a plain Ray has them
    assert bool(found["plain"]) is plain
    assert found["said"] == ([f"{SAID}{found['plain']})"] if plain else [])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["late", "threads"])
def test_ray_uses_its_public_api_after_a_refused_fork_and_not_for_a_late_start(how: str, tmp_path: Path) -> None:
    found = started(how, tmp_path)
    check(found, plain=how == "threads")
    assert "threads" in found["plain"] or how == "late"


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("private", PRIVATE, ids=lambda private: private.name)
def test_ray_starts_if_one_of_its_private_names_is_missing(private: Any, tmp_path: Path) -> None:
    found = started("ahead", tmp_path / "home", renamed_ray([private.name], tmp_path / "ray"))
    check(found, plain=private.without.startswith(PLAIN))
    assert private.name.rpartition(".")[2] in found["plain"] or not found["plain"]


LATE = """
import json, psutil
from tune_sparsity.tuner.config.study_config import make_config
from tune_sparsity.tuner.cluster.connection import connection

said = []
with connection(make_config({"target": 0.9, "concurrency": 1}).resolved(), ahead=True, say=said.append) as connected:
    connected.share(lambda: True)
    try:
        connected.wait()
    except RuntimeError as error:
        told = str(error)
processes = psutil.Process().children(recursive=True)
print(json.dumps([said, told, [p.cmdline() for p in processes if p.status() != psutil.STATUS_ZOMBIE]]))
"""


@pytest.mark.slow
def test_a_raylet_that_does_not_start_is_reported(tmp_path: Path) -> None:
    ray = renamed_ray([], tmp_path / "ray")
    node = ray / "ray" / "_private" / "node.py"
    text = node.read_text()
    patient, hasty = "raylet_start_wait_time_s = 30", "raylet_start_wait_time_s = -1"
    assert patient in text
    hurried = text.replace(patient, hasty).replace("node_info = ray._private.services.get_node(", "raise RuntimeError(")
    node.unlink()
    node.write_text(hurried)
    env = {**os.environ, **environment(tmp_path / "home", ray)}
    done = subprocess.run([sys.executable, "-c", LATE], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    said, error, after = json.loads(done.stdout.splitlines()[-1])
    assert [line.partition(" (")[0] for line in said] == [SAID.rstrip(" ("), "Ray is started once more"]
    assert all("timed out during startup" in line for line in (*said, error))
    assert error.startswith("Ray did not start: ")
    assert after == []


@pytest.fixture(scope="module")
def other_ray(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Ray without the private names that our code uses."""
    return renamed_ray([private.name for private in PRIVATE], tmp_path_factory.mktemp("other") / "ray")


@pytest.fixture(scope="module")
def plain_study(tmp_path_factory: pytest.TempPathFactory, other_ray: Path) -> Ran:
    """The output of a study of four trials with `other_ray`."""
    cwd = tmp_path_factory.mktemp("plain")
    env = environment(cwd / "home", other_ray)
    return run_command(["--target", "0.9", "--trials", "4", "--epochs", "4", "--study", "s"], cwd, timeout=900, **env)


@pytest.mark.slow
def test_a_study_succeeds_with_a_ray_that_lacks_all_private_names(plain_study: Ran) -> None:
    assert plain_study.code == 0, plain_study.stderr
    assert sum(line.startswith(SAID) for line in plain_study.stderr.splitlines()) == 1
    rows = trials_of(plain_study.cwd / "studies" / "s")
    assert [int(row["number"]) for row in rows] == list(range(4))
    assert {row["state"] for row in rows} <= {"completed", "pruned"}
    assert set(optuna_states(plain_study.cwd / "studies" / "s").values()) <= {"COMPLETE", "PRUNED"}
    assert not (plain_study.cwd / "home" / ".ray").exists()


@pytest.mark.slow
def test_doctor_tells_which_ray_is_used_and_why(tmp_path: Path, other_ray: Path) -> None:
    ran = run_command(["doctor"], tmp_path, **environment(tmp_path / "home", other_ray))
    (line,) = [line for line in ran.stdout.splitlines() if "start of a private ray" in line]
    assert line.startswith("ok   start of a private ray: through its public API, which takes longer (")
    assert "has no attribute" in line or "cannot import name" in line or "No module named" in line
    assert "ok   ray's token authentication: on" in ran.stdout
    assert not (tmp_path / "home" / ".ray").exists()
