"""What Ray itself says of the trials, beside what the study's records and Optuna say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RAY = {"completed": "TERMINATED", "pruned": "TERMINATED", "failed": "ERROR"}
OPTUNA = {"completed": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
SCRIPT = """
import json, sys
from tuner.config import make_config
from tuner.run import prepare, run_study
options = {"target": 0.8, "experiment": sys.argv[1], "trials": 8, "storage": sys.argv[2], "study": "s"}
finished = run_study(prepare(make_config(options).resolved()), quiet=True)
print(json.dumps([{r.name: r.state for r in finished.outcome.records}, finished.ray_states, finished.optuna_states]))
"""


@pytest.mark.slow
def test_rays_own_states_agree_with_the_records_and_with_optuna(experiment_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, f"{experiment_file}:sometimes_nan", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    states, ray_states, optuna_states = json.loads(done.stdout.splitlines()[-1])
    assert len(states) == 8
    assert "failed" in states.values()
    assert ray_states == {name: RAY[state] for name, state in states.items()}
    assert optuna_states == {name: OPTUNA[state] for name, state in states.items()}
    assert not (tmp_path / "s" / ".ray").exists()
