"""Test studies from Python: their options, their results, and the errors for mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import plotly.graph_objects as go
import pytest
import torch

from tests.helpers.in_process import exported, run_in_process
from tests.study.own.loaded_experiments import EXPERIMENTS
from tune_sparsity import load_study, tune
from tune_sparsity.tuner.api import Study

SCRIPT = """
import torch
from torch import nn
from tune_sparsity import Data, Experiment, Recipe, Split, tune

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 3))
    def forward(self, x):
        return self.body(x)

def load(data_dir):
    def split(n, seed):
        y = torch.arange(n) % 3
        return Split(torch.randn(n, 12, generator=torch.Generator().manual_seed(seed)) + 2 * torch.eye(12)[y], y)
    return Data(split(120, 0), split(60, 1), split(60, 2))

study = tune(Experiment("mine", load, Net, Recipe(3, 16)), target=0.8, trials=3, storage="studies")
network = study.best.network()
weights = [layer.weight for layer in network.modules() if isinstance(layer, nn.Linear)]
assert isinstance(network, Net) and not network.training
assert sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights) >= 0.8
test = load(None).test
print("found", study.name, study.best.test_accuracy, float((network(test.x).argmax(1) == test.y).float().mean()))
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("api")
    return tune(
        "digits",
        quiet=True,
        target=[0.8, 0.9],
        trials=5,
        epochs=2,
        method=["lpss", "gmp"],
        storage=folder / "studies",
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
    )


def test_a_study_object_has_tables_pictures_and_networks(study: Study) -> None:
    assert list(study.trials["number"]) == list(range(5))
    assert set(study.trials["method"]) == {"lpss", "gmp"}
    assert (study.front["sparsity"].diff().dropna() > 0).all()
    assert (study.front["val_accuracy"].diff().dropna() < 0).all()
    assert len(study.epochs) >= 5
    assert {"front", "progress", "curves"} <= set(study.pictures)
    assert all(isinstance(figure, go.Figure) for figure in study.pictures.values())
    assert {"best", "best-0.8"} <= set(study.networks)
    assert study.best is not None
    assert study.best.trial == study.result["best"]["trial"]
    assert study.networks["best"].test_accuracy == study.best.test_accuracy
    state = study.best.network().state_dict()
    zeros = sum(int((weight == 0).sum()) for name, weight in state.items() if name.endswith("weight"))
    assert zeros == study.best.weights - study.best.nonzero_weights
    assert "test_accuracy" in dir(study.best)
    with pytest.raises(AttributeError, match=r"this network has no 'test_rmse'\. Its attributes: trial"):
        _ = study.best.test_rmse
    assert study.name in repr(study)
    assert "<table" in study._repr_html_()


def test_an_ended_study_is_loaded_by_its_name_and_by_its_folder(study: Study) -> None:
    for again in (load_study(study.name, study.folder.parent), load_study(study.folder)):
        assert again.result == study.result
        assert again.trials.equals(study.trials)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": 2}, "--target 2: a target is a sparsity in"),
        ({"target": 0.9, "trails": 3}, "unknown option 'trails' .did you mean trials"),
        ({}, "--target is missing"),
        ({"target": 0.9, "experiment": "digit"}, "did you mean digits"),
        (
            {"target": 0.9, "experiment": torch.nn.Linear(2, 2)},
            "experiment must be a name, a tune_sparsity.Experiment or a training loop",
        ),
    ],
)
def test_a_mistake_in_the_options_raises_value_error_and_writes_nothing(
    options: dict, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        tune(**options)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="no study 'nothing'"):
        load_study("nothing")


def test_an_experiment_without_a_source_file_trains_and_is_not_logged_as_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    *said, last = ran.stdout.splitlines()
    _, name, told, measured = last.split()
    assert float(told) == pytest.approx(float(measured))
    assert any("MLflow gets no model of the best network" in line for line in said)
    assert not any("To try that again" in line for line in said)
    exported(tmp_path / "studies", name, "safetensors", capsys)


def test_a_study_of_another_metric_has_attributes_with_the_metrics_name(tmp_path: Path) -> None:
    code = EXPERIMENTS + "\nfrom tune_sparsity import Metric\nfrom dataclasses import replace\n"
    code += "def error(outputs, targets):\n    return (outputs.argmax(1) != targets).float().mean()\n"
    code += 'wrong = replace(stream, name="wrong", metric=Metric("wrong", error, maximize=False))\n'
    (tmp_path / "own.py").write_text(code)
    study = load_study(run_in_process(tmp_path / "studies", "s", experiment=f"{tmp_path}/own.py:wrong", target=0.5))
    assert study.best is not None
    assert study.best.val_wrong == study.trials["val_wrong"].min()
