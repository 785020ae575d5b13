"""Test studies on two Ray nodes with token authentication. Two network namespaces take the place of two machines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from tests.helpers.command import BLOBS
from tests.helpers.namespaces import ADDRESS, CLIENT, HEAD, S3_PORT, WORKER, TwoNodes, two_nodes
from tests.helpers.s3_servers import BUCKET, S3Server
from tune_sparsity.tuner.storage.local_copy import CACHE_VARIABLE

pytestmark = pytest.mark.slow

EXPERIMENT = (
    """
import os
import sys
import time
from pathlib import Path

import torch
from torch import nn
from tune_sparsity.experiments import Data, Experiment, Recipe, Split
from beside import HIDDEN

class Net(nn.Sequential):
    '''Leaves a file behind in a folder of the machine that it is built on.'''
    def __init__(self):
        super().__init__(nn.Linear(12, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 3))
        if "default_worker" in sys.argv[0]:
            built = Path({where!r}, str(os.stat("/proc/self/ns/net").st_ino))
            built.mkdir(parents=True, exist_ok=True)
            (built / str(time.time_ns())).touch()
            waited = 0.0  # for the other node to have a trial too, which on a busy machine comes late
            while len(list(built.parent.iterdir())) < 2 and waited < 60:
                time.sleep(0.2)
                waited += 0.2

def loss(outputs, targets):
    time.sleep(0.05 if len(targets) == 30 else 0)  # ten batches: half a second an epoch
    return nn.functional.cross_entropy(outputs, targets)

"""
    + BLOBS
    + """
def marked(data_dir):
    if data_dir is not None:
        (data_dir / "there").read_text()
        loads = Path({where!r}).parent / "loads"
        loads.mkdir(exist_ok=True)
        (loads / str(os.stat("/proc/self/ns/net").st_ino)).touch()
    return load(data_dir)

mine = Experiment("mine", marked, Net, Recipe(epochs=2, batch_size=30), loss=loss)
"""
)


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    with two_nodes() as started:
        own = started.hidden / "own"
        own.mkdir()
        (own / "mine.py").write_text(EXPERIMENT.format(where=str(started.folder / "where")))
        (own / "beside.py").write_text("HIDDEN = 40\n")
        yield started


def options(nodes: TwoNodes, study: str, trials: int) -> list[str]:
    search = ["--target", "0.8", "--experiment", f"{nodes.hidden}/own/mine.py:mine", "--trials", str(trials)]
    where = ["--address", ADDRESS, "--storage", f"{nodes.folder}/studies", "--study", study]
    return [*search, "--scheduler", "none", *where, "--json"]


def built(nodes: TwoNodes) -> dict[str, int]:
    """Return how many networks each machine has built."""
    return {machine.name: len(list(machine.iterdir())) for machine in (nodes.folder / "where").glob("*")}


def finished(study: Path) -> dict[int, list[float]]:
    """Return the values of each completed trial, read from the study's Optuna journal."""
    if not (study / "optuna.journal").exists():
        return {}
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(study / "optuna.journal")))
    if study.name not in (name.study_name for name in storage.get_all_studies()):
        return {}
    trials = optuna.load_study(study_name=study.name, storage=storage).trials
    return {trial.number: trial.values for trial in trials if trial.state is optuna.trial.TrialState.COMPLETE}


@pytest.fixture
def store(nodes: TwoNodes) -> Iterator[str]:
    """Start an S3 server that both machines reach. Yield the URI of a bucket on this server."""
    server = S3Server(nodes.folder, HEAD, before=nodes.inside("head", []), port=S3_PORT)
    script = f"""
import time, urllib.request
for left in reversed(range(300)):
    try:
        urllib.request.urlopen(urllib.request.Request("{server.endpoint}/{BUCKET}", method="PUT"), timeout=10).close()
        break
    except OSError:
        if not left:
            raise
        time.sleep(0.1)
"""
    try:
        subprocess.run(nodes.inside("head", [sys.executable, "-c", script]), check=True, timeout=120)
        yield f"s3://{BUCKET}"
    finally:
        server.kill()


def test_a_study_on_two_nodes_ships_its_code_and_writes_only_to_an_object_store(nodes: TwoNodes, store: str) -> None:
    """Because of TUNE_SPARSITY_LARGE_DATA, the data count as large: each node loads them itself, from the same path."""
    (nodes.folder / "data").mkdir()
    (nodes.folder / "data" / "there").touch()
    cache = nodes.hidden / "cache"  # which the other machine does not see
    aside = {CACHE_VARIABLE: str(cache)}
    where = ["--data-dir", nodes.folder / "data", "--storage", f"{store}/team"]
    process = nodes.command(*options(nodes, "stored", 4), *where, TUNE_SPARSITY_LARGE_DATA="1000", **aside)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["states"] == {"completed": 4, "pruned": 0, "failed": 0}
    assert sum(built(nodes).values()) >= 4
    assert len(built(nodes)) == 2, "one node has built all networks"
    assert len(list((nodes.folder / "loads").iterdir())) == 2
    assert not (nodes.folder / "studies" / "stored").exists()
    shutil.rmtree(cache)
    page = nodes.folder / "stored.html"
    process = nodes.command("report", "stored", "--storage", f"{store}/team", "--out", page, **aside)
    assert process.wait(240) == 0, process.communicate()[1]
    assert "t0003" in page.read_text()


def test_missing_large_data_on_a_node_stop_the_study_with_a_one_line_error(nodes: TwoNodes) -> None:
    (nodes.hidden / "data").mkdir()  # the other machine does not see it
    (nodes.hidden / "data" / "there").touch()
    sizes = {"TUNE_SPARSITY_LARGE_DATA": "1000"}
    process = nodes.command(*options(nodes, "nowhere", 4), "--data-dir", nodes.hidden / "data", **sizes)
    stdout, stderr = process.communicate(timeout=240)
    assert (process.returncode, stdout) == (2, "")
    (line,) = [line for line in stderr.splitlines() if not line.startswith("Starting")]
    assert line.startswith(
        f"tune-sparsity: node {WORKER}: the data of mine are missing or differ from the data on this"
    )
    assert "(FileNotFound" in line
    assert not (nodes.folder / "studies" / "nowhere").exists()


def test_a_study_runs_through_ray_client(nodes: TwoNodes) -> None:
    pytest.importorskip("grpc")
    process = nodes.command(*options(nodes, "client", 2), "--address", CLIENT, "--final-seeds", "1")
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    result = json.loads(stdout)
    assert result["states"] == {"completed": 2, "pruned": 0, "failed": 0}
    assert result["final_seeds"][0]["test_accuracy"]["mean"] > 0.5
    assert (nodes.folder / "studies" / "client" / "best" / "model.safetensors").is_file()


def test_doctor_reports_no_problem_on_two_nodes(nodes: TwoNodes) -> None:
    process = nodes.command("doctor", "--address", ADDRESS, "--storage", nodes.folder / "studies")
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stdout + stderr
    assert stderr == ""
    assert all(line.startswith("ok   ") for line in stdout.splitlines())
    assert f"ok   nodes: 2: {HEAD} (1 CPUs, 0 GPUs), {WORKER} (1 CPUs, 0 GPUs): room for 2 trials at once" in stdout
    assert "ok   ray's token authentication: on" in stdout
    assert f"ok   versions on {WORKER}: python 3." in stdout


@pytest.mark.long
def test_storage_that_the_nodes_do_not_share_is_refused_at_the_start(nodes: TwoNodes) -> None:
    apart = nodes.hidden / "studies"
    process = nodes.command(*options(nodes, "apart", 2), "--storage", apart)
    stdout, stderr = process.communicate(timeout=240)
    assert (process.returncode, stdout) == (2, "")
    (line,) = [line for line in stderr.splitlines() if not line.startswith("Starting")]
    assert line.startswith(f"tune-sparsity: --storage {apart}: node {WORKER} does not see the files that")
    assert not apart.exists()


def test_a_client_without_the_token_is_refused(nodes: TwoNodes) -> None:
    for given in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        process = nodes.command(*options(nodes, "refused", 2), RAY_NUM_REDIS_GET_RETRIES="2", **given)
        stdout, stderr = process.communicate(timeout=240)
        assert (process.returncode, stdout) == (2, "")
        assert "the cluster requires a token" in stderr
        assert "Traceback" not in stderr
        assert len([line for line in stderr.splitlines() if not line.startswith("Starting")]) == 1
        assert not (nodes.folder / "studies" / "refused").exists()


def test_no_finished_trial_is_lost_if_a_node_dies_during_a_study(nodes: TwoNodes) -> None:
    trials, study = 8, nodes.folder / "studies" / "killed"
    process = nodes.command(*options(nodes, "killed", trials))
    end = time.monotonic() + 200
    before = dict.fromkeys(built(nodes), 0) | built(nodes)
    while time.monotonic() < end and process.poll() is None:  # until both nodes are in their second trial
        if len(finished(study)) >= 2 and all(built(nodes)[machine] > count + 1 for machine, count in before.items()):
            break
        time.sleep(0.1)
    assert process.poll() is None, process.communicate()[1]
    kept = finished(study)
    nodes.kill("worker")
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    states = json.loads(stdout)["states"]
    assert sum(states.values()) == trials
    assert states["failed"] == 0  # the head node ran the trials of the dead node again
    after = finished(study)
    assert len(kept) >= 2
    assert {number: after[number] for number in kept} == kept
    assert len(after) == states["completed"]
