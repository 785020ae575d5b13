"""Test studies with nested inputs, and with examples that a data set loads during training."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import mlflow
import numpy as np
import pytest

from tests.helpers.command import run_command
from tests.helpers.in_process import exported, run_in_process
from tests.study.own.loaded_experiments import EXPERIMENTS, LOADED, NESTED
from tune_sparsity.experiments import find
from tune_sparsity.experiments.examples import named
from tune_sparsity.tuner.cli import main
from tune_sparsity.tuner.tracking.pyfunc_model import load


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(EXPERIMENTS)
    numbers = np.random.default_rng(0)
    labels = np.arange(171) % 3
    x = numbers.normal(size=(171, 12)) + 2 * np.eye(12)[labels]
    np.save(tmp_path / "rows.npy", np.column_stack([x, labels]).astype(np.float32))
    return tmp_path


@pytest.mark.parametrize("name", [*NESTED, *LOADED])
def test_a_study_ends_and_its_network_can_be_exported(name: str, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = f"{own / 'own.py'}:{name}"
    folder = run_in_process(
        own / "studies",
        name,
        experiment=experiment,
        method="lpss,gmp",
        target=0.5,
        trials=4,
        data_dir=own,
    )
    assert "could not be made" not in capsys.readouterr().err
    assert {row["state"] for row in csv.DictReader((folder / "trials.csv").open())} <= {"completed", "pruned"}
    best = json.loads((folder / "result.json").read_text())["best"]
    assert best["sparsity"] >= 0.5
    assert best["test_accuracy"] > 0.6
    found = find(experiment)
    data = found.load(own)
    served = load(found, folder / "tracking" / "model")
    whole = data.test.first(data.test.examples)
    inputs = {key: tensor.numpy() for key, tensor in named(whole.x).items()}
    ours = served.predict(inputs.get("", inputs))
    assert ours.shape == (len(whole.y), 3)
    assert (ours.argmax(1) == whole.y.numpy()).mean() == pytest.approx(best["test_accuracy"], abs=1e-6)

    for kind in ("safetensors", "csr", "onnx"):
        document = exported(own / "studies", name, kind, capsys)
        assert document["largest_difference"] < 1e-4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("endless", "has no length: give it __len__"),
        pytest.param("broken", "row 70 cannot be read", marks=pytest.mark.long),
    ],
)
def test_the_last_line_of_stderr_says_why_data_cannot_be_loaded(
    name: str, words: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--target", "0.5", "--trials", "2", "--storage", str(own / "studies"), "--study", name]
    places = ["--data-dir", str(own), "--tracking-uri", f"sqlite:///{own}/mlflow.db"]
    code = main([*options, *places, "--experiment", f"{own / 'own.py'}:{name}"])
    said = capsys.readouterr()
    assert words in said.err.splitlines()[-1]
    assert "Traceback" not in said.err
    assert code == (2 if name == "endless" else 1)


@pytest.mark.parametrize("name", [*NESTED, *LOADED])
def test_no_check_fails_on_nested_inputs_and_loaded_data(
    name: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["check", f"{own / 'own.py'}:{name}", "--data-dir", str(own)])
    said = capsys.readouterr().out
    assert code == 0, said
    assert "failed" not in said


@pytest.mark.parametrize("name", ["text", pytest.param("rows", marks=pytest.mark.long)])
def test_workers_train_a_users_network_and_mlflow_serves_the_network(name: str, own: Path) -> None:
    options = ["--target", "0.5", "--trials", "3", "--json"]
    ran = run_command([*options, "--experiment", f"own.py:{name}", "--data-dir", str(own)], own)
    assert ran.code == 0, ran.stderr
    best = ran.result()["best"]
    found = find(f"{own / 'own.py'}:{name}")
    test = found.load(own).test.first(41)
    inputs = {key: tensor.numpy() for key, tensor in named(test.x).items()}
    mlflow.set_tracking_uri(f"sqlite:///{own}/mlflow.db")
    # On a busy machine, the study may end before everything is in MLflow.
    assert main(["send", ran.result()["study"], "--storage", str(own / "studies")]) == 0
    records = [record.experiment_id for record in mlflow.search_experiments()]
    (model,) = mlflow.search_logged_models(experiment_ids=records, output_format="list")
    served = mlflow.pyfunc.load_model(f"models:/{model.model_id}")
    outputs = served.predict(inputs.get("", inputs))
    assert float((outputs.argmax(1) == test.y.numpy()).mean()) == pytest.approx(best["test_accuracy"], abs=0.03)
    names = [spec.name for spec in served.metadata.get_input_schema().inputs]
    assert names == ([None] if name == "rows" else ["tokens", "mask"])


MAPPED = '''
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from tune_sparsity import Data, Experiment, Recipe

ROW = 1 << 20  # bytes of an example


class Mapped(Dataset):
    """Examples of a megabyte each in a file that is larger than memory, of which a few pages are read."""

    def __init__(self, file, start, stop):
        self.rows = np.memmap(file, np.uint8, "r").reshape(-1, ROW)[start:stop]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        x = torch.from_numpy(self.rows[index, :: ROW // 16].astype(np.float32))
        return x + torch.randn(16) + 2 * torch.eye(16)[index % 3], index % 3


class Watched(nn.Module):
    """Writes down how much anonymous memory its process has, when it is evaluated."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 3))

    def forward(self, x):
        if not self.training:
            status = Path("/proc/self/status").read_text()
            (said,) = [line for line in status.splitlines() if line.startswith("RssAnon")]
            with (Path(__file__).parent / "memory.txt").open("a") as file:
                file.write(said.split()[1] + "\\n")
        return self.net(x)


def load(data_dir):
    file = Path(data_dir) / "images"
    return Data(Mapped(file, 0, 3840), Mapped(file, 3840, 3968), Mapped(file, 3968, 4096), workers=WORKERS)


mapped = Experiment("mapped", load, Watched, Recipe(epochs=1, batch_size=64))
'''


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc/self/status tells a process's memory")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_larger_than_memory_stays_on_the_disk(workers: int, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(MAPPED.replace("WORKERS", str(workers)))
    with (tmp_path / "images").open("wb") as file:
        file.truncate(4 << 30)  # the file is sparse: it takes no space on the disk
    options = ["--target", "0.5", "--trials", "2", "--json", "--experiment", f"{tmp_path / 'own.py'}:mapped"]
    ran = run_command([*options, "--data-dir", str(tmp_path)], tmp_path)
    assert ran.code == 0, ran.stderr
    assert ran.result()["best"]["test_accuracy"] > 0.5
    kilobytes = [int(line) for line in (tmp_path / "memory.txt").read_text().split()]
    assert max(kilobytes) < 1.5 * (1 << 20)
