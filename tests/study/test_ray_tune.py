"""Test that Ray, Optuna and the study's records agree about the trials, and which processes run them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command import BLOBS

RAY = {"completed": "TERMINATED", "pruned": "TERMINATED", "failed": "ERROR"}
OPTUNA = {"completed": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
SCRIPT = """
import json, os, sys
from pathlib import Path
from tune_sparsity.tuner.config.study_config import make_config
from tune_sparsity.tuner.cluster.connection import connection
from tune_sparsity.tuner.driver.prepare import prepare
from tune_sparsity.tuner.driver.run import run_study
options = {"target": 0.8, "experiment": sys.argv[1], "trials": 12, "concurrency": 2, "storage": sys.argv[2]}
config = make_config({**options, "study": "s"}).resolved()
with connection(config, ahead=True) as ray:
    finished = run_study(prepare(config, share=ray.share), ray, quiet=True)
records = [[r.name, r.state, r.epochs, r.reason] for r in finished.outcome.records]
sessions = Path("/tmp/ray").glob(f"session_*_{ray._node._process.pid}")  # and those of others that had its number
raylet = max(sessions, key=lambda session: session.name) / "logs" / "raylet.out"
processes = raylet.read_text().count("Started worker process")
print(json.dumps([records, finished.ray_states, finished.optuna_states, processes, "mlflow" in sys.modules]))
"""
EXPERIMENT = (
    """
import os
import sys
import torch
from torch import nn
from tune_sparsity.experiments import Data, Experiment, Recipe, Split

class Net(nn.Sequential):
    '''Leaves its process id behind. In workers a third fail when they are built, a third in the second epoch.'''
    def __init__(self):
        super().__init__(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 3))
        with open({pids!r}, "a") as file:
            file.write(f"{{os.getpid()}}\\n")
        in_worker = "default_worker" in sys.argv[0]
        self.fate, self.batches = int(3 * torch.rand(())) if in_worker else 0, 0
        if self.fate == 1:
            raise RuntimeError("this network cannot be built")
    def forward(self, x):
        self.batches += self.training
        return super().forward(x) * (float("nan") if self.fate == 2 and self.batches > 15 else 1.0)

"""
    + BLOBS
    + """
mine = Experiment("mine", load, Net, Recipe(epochs=6, batch_size=30))
"""
)


@pytest.mark.slow
def test_trial_states_agree_and_a_process_is_used_again_after_a_failed_trial(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    (tmp_path / "own.py").write_text(EXPERIMENT.format(pids=str(pids)))
    command = [sys.executable, "-c", SCRIPT, f"{tmp_path / 'own.py'}:mine", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    records, ray_states, optuna_states, processes, mlflow_loaded = json.loads(done.stdout.splitlines()[-1])
    states = {name: state for name, state, _, _ in records}
    assert len(states) == 12
    assert {"completed", "pruned", "failed"} <= set(states.values())
    assert ray_states == {name: RAY[state] for name, state in states.items()}
    assert optuna_states == {name: OPTUNA[state] for name, state in states.items()}
    reasons = {reason for _, state, _, reason in records if state == "failed"}
    assert "RuntimeError: this network cannot be built" in reasons
    assert any(reason.startswith("NotFinite: ") for reason in reasons), reasons
    assert {epochs for _, state, epochs, _ in records if state == "completed"} == {6}
    assert {epochs for _, state, epochs, _ in records if state == "pruned"} <= {1, 3}
    assert not (tmp_path / "s" / ".ray").exists()
    assert not mlflow_loaded  # the driver does not load MLflow, which takes seconds: a separate process does
    assert processes == 2  # Ray started both at once, and they loaded torch while the driver prepared the study
    # Two processes ran all trials; the driver, which builds the best network again, is a third.
    assert len(set(pids.read_text().split())) <= 3


LOSS = """
import psutil
from tune_sparsity.tuner.driver import ray_tune
suggest = ray_tune._Searcher.suggest
def lose_the_waiting(searcher, trial_id):
    # All processes of trials end, and so that in which the trial that is asked for is to run.
    answer = suggest(searcher, trial_id)
    if isinstance(answer, dict) and answer["number"] in (2, 4):
        for child in psutil.Process().children(recursive=True):
            if "TrialTrainable" in " ".join(child.cmdline()):
                child.kill()
    return answer
ray_tune._Searcher.suggest = lose_the_waiting
"""


@pytest.mark.long
@pytest.mark.slow
def test_a_trial_gets_a_new_process_if_its_process_dies_before_the_trial(tmp_path: Path) -> None:
    script = LOSS + SCRIPT.replace('"trials": 12, "concurrency": 2', '"trials": 6, "concurrency": 1, "epochs": 3')
    command = [sys.executable, "-c", script, "digits", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "A worker died" in done.stderr
    records = json.loads(done.stdout.splitlines()[-1])[0]
    assert [name for name, *_ in records] == [f"t{number:04d}" for number in range(6)]
    assert {state for _, state, _, _ in records} <= {"completed", "pruned"}, records


def test_no_trial_loads_torchs_compiler() -> None:
    code = """
import sys, torch
from tune_sparsity.tuner.worker.trainable import make_quick
from tune_sparsity.experiments import Training, find
make_quick()
digits = find("digits")
data = digits.load(None)
training = Training(digits, data.train, data.val, "lpss", {"p": 1.5, "final_sparsity": 0.9}, epochs=1, seed=0)
training.epoch()
assert "torch._dynamo" not in sys.modules
assert "sympy" not in sys.modules
step = torch.compile(lambda x: x * 2 + 1, backend="eager")  # who wants to compile can
assert step(torch.ones(3)).tolist() == [3.0, 3.0, 3.0]
assert "torch._dynamo" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
