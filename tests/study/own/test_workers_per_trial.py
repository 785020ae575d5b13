"""Studies whose trials are trained by two processes each."""

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


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(EXPERIMENT)
    return tmp_path


def arguments(name: str, study: str, **options: Any) -> list[str]:
    given = {"target": 0.5, "experiment": f"own.py:{name}", "study": study, "concurrency": 1, "trials": 4, **options}
    return [text for key, value in given.items() for text in (f"--{key.replace('_', '-')}", str(value))]


def ran(folder: Path, name: str, study: str, **options: Any) -> Ran:
    done = run_command([*arguments(name, study, **options), "--json"], folder)
    assert done.code == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


def trials(folder: Path, study: str) -> list[dict[str, str]]:
    """The rows of trials.csv, without what depends on the clock."""
    rows = csv.DictReader((folder / "studies" / study / "trials.csv").open())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.slow
def test_a_study_of_two_workers_a_trial_leaves_the_same_files(own: Path) -> None:
    alone = ran(own, "steady", "alone", final_seeds=1).result()
    (own / "pids").unlink()
    both = ran(own, "steady", "both", final_seeds=1, workers_per_trial=2).result()
    left = [{str(file.relative_to(own / "studies" / study)) for file in (own / "studies" / study).rglob("*")}
            for study in ("alone", "both")]  # fmt: skip
    shared = [{name for name in names if not name.startswith("tracking")} for names in left]
    assert shared[0] == shared[1]
    assert both["best"]["sparsity"] >= 0.5
    assert both["best"]["test_accuracy"] == pytest.approx(alone["best"]["test_accuracy"], abs=0.02)
    assert len(trials(own, "both")) == 4
    # Two processes served all trials, and the final seeds; the driver builds the best network again.
    lines = (own / "pids").read_text().splitlines()
    assert len({line for line in lines if line.endswith(" 1")}) <= 2, lines


@pytest.mark.slow
def test_a_lost_worker_costs_nothing_and_an_error_of_one_fails_its_trial_alone(own: Path) -> None:
    calm = ran(own, "steady", "calm", workers_per_trial=2, scheduler="none", sampler="random")
    (own / "pids").unlink()
    troubled = ran(own, "troubled", "troubled", workers_per_trial=2, scheduler="none", sampler="random")
    assert troubled.result()["states"] == {"completed": 3, "pruned": 0, "failed": 1}
    expected, found = trials(own, "calm"), trials(own, "troubled")
    assert [row["state"] for row in found] == ["completed", "failed", "completed", "completed"]
    assert "ValueError: only the second process raises" in found[1].values()
    assert [found[number] for number in (0, 2, 3)] == [expected[number] for number in (0, 2, 3)]
    assert calm.code == 0


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on_bit_for_bit(own: Path) -> None:
    same = {"workers_per_trial": 2, "scheduler": "none", "sampler": "random", "trials": 3}
    ran(own, "slow", "whole", **same)
    command = [sys.executable, "-m", "tune_sparsity", *arguments("slow", "broken", **same)]

    environment = {**os.environ, "TUNE_SPARSITY_CHECKPOINT_SECONDS": "0.1"}
    process = subprocess.Popen(command, cwd=own, env=environment, stderr=subprocess.DEVNULL)
    checkpoints = own / "studies" / "broken" / ".checkpoints"
    while not list(checkpoints.glob("t0001-*")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    resumed = run_command(["resume", "broken", "--json"], own)
    assert resumed.code == 0, resumed.stderr
    assert trials(own, "broken") == trials(own, "whole")
    whole, broken = (load_file(own / "studies" / study / "best" / "model.safetensors") for study in ("whole", "broken"))
    assert whole.keys() == broken.keys()
    assert all(bool((whole[name] == broken[name]).all()) for name in whole)
