"""Tests the best network as an MLflow model: it is logged, registered, and loaded in a new process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests import ROOT
from tests.helpers.tracking import IDENTITY, InThread
from tune_sparsity.experiments import Data, Experiment, Split, find
from tune_sparsity.experiments.base import evaluate
from tune_sparsity.tuner.tracking.model import ALIAS, model_note, model_type, requirements
from tune_sparsity.tuner.tracking.pyfunc_model import assemble, load

LOAD = """
import json, sys, mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
np.save(sys.argv[3], model.predict(np.load(sys.argv[4])))
np.save(sys.argv[5], model.predict(model.input_example))
"""


def network_of(experiment: Experiment, folder: Path) -> torch.nn.Module:
    """Write a network into a folder, as a study writes its best network."""
    torch.manual_seed(0)
    network = experiment.model()
    network.load_state_dict({**network.state_dict(), "diverges": torch.tensor(False)})
    folder.mkdir(parents=True)
    masks = {"net.0.weight.mask": torch.ones(40, 12, dtype=torch.bool)}
    save_file({**network.state_dict(), **masks}, folder / "model.safetensors")
    (folder / "model.json").write_text("{}")
    return network


@pytest.fixture
def own(experiment_file: Path) -> tuple[Experiment, Data, str]:
    """Return a user's own experiment, its data, and the name with which it was found."""
    name = f"{experiment_file}:steady"
    experiment = find(name)
    return experiment, experiment.load(None), name


def note_of(own: tuple[Experiment, Data, str], folder: Path, **more: Any) -> dict[str, Any]:
    experiment, data, name = own
    given = {"tags": {"trial": "t0003", "method": "lpss"}, "metrics": {"test_accuracy": 0.75}, "register": None, **more}
    return model_note(folder, folder / "best", experiment, name, data, **given)


def test_a_served_model_contains_only_its_tensors_json_files_and_code(
    own: tuple[Experiment, Data, str], tmp_path: Path
) -> None:
    experiment, data, name = own
    network = network_of(experiment, tmp_path / "best")
    for neighbour in ("README.md", "credentials", "run.log", "data.npy", "optuna.journal", "other.py"):
        (Path(name.partition(":")[0]).parent / neighbour).write_text("not to be logged")
    assemble(tmp_path / "served", tmp_path / "best", experiment, name, data.test.x)
    files = {str(path.relative_to(tmp_path / "served")) for path in (tmp_path / "served").rglob("*") if path.is_file()}
    assert files == {"model.safetensors", "model.json", "served.json", "code/own_experiment.py"}
    outputs = load(experiment, tmp_path / "served").predict(data.test.x.numpy())
    assert outputs.dtype == np.float32
    accuracy = float((outputs.argmax(1) == data.test.y.numpy()).mean())
    assert accuracy == pytest.approx(evaluate(experiment, network, data.test), abs=1e-12)


def test_requirements_are_pinned() -> None:
    found = dict(line.split("==") for line in requirements())
    assert {"mlflow", "numpy", "safetensors", "torch"} <= set(found)
    assert "+" not in "".join(found.values())


@pytest.mark.slow
def test_a_fresh_process_loads_the_logged_and_the_registered_model(
    own: tuple[Experiment, Data, str], tmp_path: Path
) -> None:
    experiment, data, _ = own
    folder, uri = tmp_path / "study", f"sqlite:///{tmp_path}/mlflow.db"
    network = network_of(experiment, folder / "best")
    one = InThread(uri, IDENTITY, folder)
    one.start_study({}, {})
    note = note_of(own, folder, register="sparse")
    one.log_networks([], note)
    one.finish_study(status="FINISHED", metrics={}, pareto=[])
    one.close(120)
    assert one.problems == []
    two = InThread(uri, IDENTITY, folder)  # a resumed study, with the same best network
    two.log_networks([], note)
    two.finish_study(status="FINISHED", metrics={}, pareto=[])
    two.close(120)

    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (version,) = client.search_model_versions("name = 'sparse'")
    assert client.get_model_version_by_alias("sparse", ALIAS).version == version.version
    assert {"trial": "t0003", "test_accuracy": "0.75"}.items() <= version.tags.items()
    (model,) = client.search_logged_models([str(one.experiment_id)])
    assert {metric.key: metric.value for metric in model.metrics} == {"test_accuracy": 0.75}
    artifacts = Path(model.artifact_location.removeprefix("file://"))
    assert not [path for path in artifacts.rglob("*") if path.suffix in (".pkl", ".pt", ".pth", ".bin")]

    np.save(tmp_path / "x.npy", data.test.x.numpy())
    for name in (f"runs:/{one.run_id}/best", f"models:/sparse@{ALIAS}"):
        files = [str(tmp_path / file) for file in ("got.npy", "x.npy", "example.npy")]
        command = [sys.executable, "-c", LOAD, uri, name, *files]
        subprocess.run(command, check=True, cwd=ROOT, timeout=120, capture_output=True)
        outputs = np.load(tmp_path / "got.npy")
        with torch.no_grad():
            expected = network.eval()(data.test.x).numpy()
        np.testing.assert_array_equal(outputs.argmax(1), expected.argmax(1))
        assert np.load(tmp_path / "example.npy").shape == (2, 3)
    about = json.dumps(note)
    assert "own_experiment" not in about  # no path of this machine


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        (torch.tensor([0, 2, 1]), "classifier"),
        (torch.randn(3, 1), "regressor"),
        (torch.tensor([[0, 1], [1, 1], [2, 0]]), None),  # labels that are sequences, with a token at each position
        ({"box": torch.randn(3, 4)}, None),
    ],
)
def test_the_labels_determine_the_model_type_in_mlflow(y: Any, expected: str | None) -> None:
    split = Split(torch.randn(3, 2), y)
    assert model_type(Data(split, split, split)) == expected
