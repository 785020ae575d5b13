"""Test studies with --workers-per-trial 2: two processes train each trial."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.helpers.command import BLOBS, Ran, run_command

EXPERIMENT = (
    """
import os, signal, sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch import nn
from tune_sparsity import Data, Experiment, Recipe, Split

HERE = Path(__file__).parent

class Net(nn.Sequential):
    '''Leaves the process that builds it behind.'''
    def __init__(self):
        super().__init__(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 3))
        self.second, self.batches = dist.is_initialized() and dist.get_rank() == 1, 0
        with open(HERE / "pids", "a") as file:
            file.write(f"{os.getpid()} {int(self.second)}\\n")

class Slow(Net):
    def forward(self, x):
        import time
        time.sleep(0.01 * self.training)
        return super().forward(x)

class Troubled(Net):
    '''The second process is killed in the second epoch of its first training, and raises in that of its third.'''
    def forward(self, x):
        self.batches += self.training
        if self.second and self.batches == 15:
            trainings = (HERE / "pids").read_text().count(" 1\\n")
            if trainings == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if trainings == 3:
                raise ValueError("only the second process raises")
        return super().forward(x)

"""
    + BLOBS
    + """
steady = Experiment("steady", load, Net, Recipe(epochs=6, batch_size=30))
slow = Experiment("steady", load, Slow, Recipe(epochs=6, batch_size=30))
troubled = Experiment("troubled", load, Troubled, Recipe(epochs=6, batch_size=30))
"""
)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.py").write_text(EXPERIMENT)
    return folder


def arguments(name: str, study: str, **options: Any) -> list[str]:
    same = {"target": 0.5, "concurrency": 1, "trials": 4, "scheduler": "none", "sampler": "random"}
    given = {**same, "experiment": f"own.py:{name}", "study": study, **options}
    return [text for key, value in given.items() for text in (f"--{key.replace('_', '-')}", str(value))]


def ran(folder: Path, name: str, study: str, **options: Any) -> Ran:
    (folder / "pids").unlink(missing_ok=True)
    done = run_command([*arguments(name, study, **options), "--json"], folder)
    assert done.code == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


def trials(folder: Path, study: str) -> list[dict[str, str]]:
    """Return the rows of trials.csv without the column `seconds`."""
    rows = csv.DictReader((folder / "studies" / study / "trials.csv").open())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def both(own: Path) -> tuple[Ran, list[str]]:
    """The output of a study with two processes for each trial, and the lines that these processes write into `pids`."""
    done = ran(own, "steady", "both", final_seeds=1, workers_per_trial=2)
    return done, (own / "pids").read_text().splitlines()


@pytest.mark.slow
def test_a_study_with_two_workers_per_trial_writes_the_same_files_as_with_one(
    own: Path, both: tuple[Ran, list[str]]
) -> None:
    alone, (done, lines) = ran(own, "steady", "alone", final_seeds=1).result(), both
    left = [{str(file.relative_to(own / "studies" / study)) for file in (own / "studies" / study).rglob("*")}
            for study in ("alone", "both")]  # fmt: skip
    shared = [{name for name in names if not name.startswith("tracking")} for names in left]
    assert shared[0] == shared[1]
    best = done.result()["best"]
    assert best["sparsity"] >= 0.5
    assert best["test_accuracy"] == pytest.approx(alone["best"]["test_accuracy"], abs=0.02)
    assert len(trials(own, "both")) == 4
    # The same two processes trained all trials and the final seed. The line of a process with rank 1 ends with 1, and
    # each of the two may have had rank 1 in some of the trainings.
    assert len({line for line in lines if line.endswith(" 1")}) <= 2, lines


@pytest.mark.slow
@pytest.mark.usefixtures("both")
def test_a_killed_worker_fails_no_trial_and_an_exception_fails_only_its_trial(own: Path) -> None:
    troubled = ran(own, "troubled", "troubled", workers_per_trial=2)
    assert troubled.result()["states"] == {"completed": 3, "pruned": 0, "failed": 1}
    expected, found = trials(own, "both"), trials(own, "troubled")
    assert [row["state"] for row in found] == ["completed", "failed", "completed", "completed"]
    assert "ValueError: only the second process raises" in found[1].values()
    assert [found[number] for number in (0, 2, 3)] == [expected[number] for number in (0, 2, 3)]


@pytest.mark.slow
@pytest.mark.usefixtures("both")
def test_a_study_that_was_killed_goes_on_bit_for_bit(own: Path) -> None:
    command = [sys.executable, "-m", "tune_sparsity", *arguments("slow", "broken", workers_per_trial=2)]
    environment = {**os.environ, "TUNE_SPARSITY_CHECKPOINT_SECONDS": "0.1"}
    process = subprocess.Popen(command, cwd=own, env=environment, stderr=subprocess.DEVNULL)
    checkpoints = own / "studies" / "broken" / ".checkpoints"
    while not list(checkpoints.glob("t0001-*")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    resumed = run_command(["resume", "broken", "--json"], own)
    assert resumed.code == 0, resumed.stderr
    assert trials(own, "broken") == trials(own, "both")
    both, broken = (load_file(own / "studies" / study / "best" / "model.safetensors") for study in ("both", "broken"))
    assert both.keys() == broken.keys()
    assert all(bool((both[name] == broken[name]).all()) for name in both)
