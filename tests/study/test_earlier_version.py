"""Test that a study and a model from commit 748a2fc can still be used. Its modules had no common package."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import ROOT
from tests.helpers.command import run_command
from tests.helpers.in_process import exported
from tune_sparsity.tuner.cli import main

DATA = ROOT / "tests" / "data"
MODEL = DATA / "model_748a2fc"  # a model of a user's own experiment, as it was logged in MLflow
STUDY = DATA / "study_748a2fc"  # interrupted after its first trial, in a folder called /earlier/studies

LOAD = """
import sys, mlflow, numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
np.save(sys.argv[2], model.predict(np.load(sys.argv[3])))
names = {getattr(module, "__file__", None): set() for module in sys.modules.values()}
for name, module in sys.modules.items():
    names[getattr(module, "__file__", None)].add(id(module))
assert not [file for file, found in names.items() if file and "/experiments/" in file and len(found) > 1]
"""


@pytest.mark.slow
@pytest.mark.parametrize("inside", [False, True], ids=["elsewhere", "in the checkout"])
def test_mlflow_loads_a_model_that_an_earlier_version_logged(inside: bool, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    x = np.random.default_rng(0).normal(size=(9, 12)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    command = [sys.executable, "-c", LOAD, str(MODEL), str(tmp_path / "y.npy"), str(tmp_path / "x.npy")]
    done = subprocess.run(command, cwd=ROOT if inside else tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    w = load_file(MODEL / "data" / "model" / "model.safetensors")
    hidden = np.maximum(x @ w["0.weight"].T + w["0.bias"], 0)
    np.testing.assert_allclose(
        np.load(tmp_path / "y.npy"), hidden @ w["2.weight"].T + w["2.bias"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_a_study_of_an_earlier_version_is_resumed_reported_and_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "studies" / "cut"
    shutil.copytree(STUDY, study)
    for path in (study / "study.yaml", study / "tracking" / "outbox.jsonl", study / "tracking" / "sent.json"):
        path.write_text(path.read_text().replace("/earlier", str(tmp_path)))
    (before,) = csv.DictReader((study / "trials.csv").open())
    resumed = run_command(["resume", "cut", "--trials", "3", "--json"], tmp_path)
    assert resumed.code == 0, resumed.stderr
    assert sum(resumed.result()["states"].values()) == 3
    after = next(csv.DictReader((study / "trials.csv").open()))
    assert {name: after[name] for name in before} == before
    assert Path(exported(tmp_path / "studies", "cut", "safetensors", capsys)["file"]).is_file()
    assert main(["report", "cut", "--storage", str(tmp_path / "studies")]) == 0
