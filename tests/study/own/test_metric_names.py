"""Test studies with other metrics than accuracy: in all files and records, results are named after the metric."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import mlflow
import pytest

from tests.helpers.command import run_command

DATA = Path(os.environ.get("TUNE_SPARSITY_DATA") or Path(__file__).parents[4] / "shared" / "data")
FILE = '''
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAUROC
from torchmetrics.text import Perplexity

from tune_sparsity import Data, Experiment, Recipe, Split
from tune_sparsity.experiments import find

climate = replace(find("uci-climate"), name="climate", metric=MulticlassAUROC(2))

LONGEST, CHARACTERS, PADDING = 48, 97, 0


def characters(path, questions):
    """Return as many questions as numbers of their characters, and of each one the next character."""
    lines = path.read_text(encoding="latin-1").splitlines()[:questions]
    rows = []
    for line in lines:
        codes = [min(max(ord(letter) - 31, 1), CHARACTERS - 1) for letter in line.split(" ", 1)[1][: LONGEST + 1]]
        rows.append(codes + [PADDING] * (LONGEST + 1 - len(codes)))
    table = torch.tensor(rows)
    return table[:, :-1], table[:, 1:].contiguous()


def load(data_dir):
    x, y = characters(Path(data_dir) / "text" / "TREC.train", 1200)
    test = characters(Path(data_dir) / "text" / "TREC.test", 200)
    return Data(Split(x[:1000], y[:1000]), Split(x[1000:], y[1000:]), Split(*test))


class Writer(nn.Module):
    def __init__(self):
        super().__init__()
        self.letters, self.memory = nn.Embedding(CHARACTERS, 32), nn.GRU(32, 96, batch_first=True)
        self.head = nn.Linear(96, CHARACTERS)

    def forward(self, x):
        return self.head(self.memory(self.letters(x))[0])


def loss(outputs, targets):
    return cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=PADDING)


letters = Experiment(
    "letters", load, Writer, Recipe(epochs=3, batch_size=32, clip_norm=1.0), loss, Perplexity(ignore_index=PADDING),
    optimizer="adamw",
)
'''


@pytest.mark.parametrize(
    ("experiment", "metric", "direction", "kind", "worst"),
    [
        ("climate", "multiclass_auroc", "maximize", "classifier", 0.5),
        pytest.param("letters", "perplexity", "minimize", "", 40.0, marks=pytest.mark.long),
    ],
)
def test_all_results_of_a_study_have_the_metrics_name(
    experiment: str, metric: str, direction: str, kind: str, worst: float, tmp_path: Path
) -> None:
    if not (DATA / "text" / "TREC.train").exists():
        pytest.skip("no real data: set TUNE_SPARSITY_DATA to the folder that holds text/TREC.train")
    (tmp_path / "own.py").write_text(FILE)
    options = ["--target", "0.9", "--trials", "6", "--json", "--experiment", f"{tmp_path / 'own.py'}:{experiment}"]
    ran = run_command([*options, "--data-dir", str(DATA)], tmp_path)
    assert ran.code == 0, ran.stderr
    result = ran.result()
    assert result["metric"] == {"name": metric, "direction": direction}
    test = result["best"][f"test_{metric}"]
    assert test > worst if direction == "maximize" else test < worst
    assert "accuracy" not in json.dumps(result)

    (folder,) = [path.parent for path in tmp_path.glob("studies/*/trials.csv")]
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert f"val_{metric}" in rows[0]
    assert not [name for name in rows[0] if "accuracy" in name]
    completed = [float(row[f"val_{metric}"]) for row in rows if row["state"] == "completed"]
    best = max(completed) if direction == "maximize" else min(completed)
    assert result["best"][f"val_{metric}"] == pytest.approx(best, rel=1e-6)
    assert metric in (folder / "pareto.html").read_text()

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = mlflow.get_run(result["mlflow"]["run_id"])
    assert [name for name in run.data.metrics if metric in name]
    assert not [name for name in run.data.metrics if "accuracy" in name]
    (model,) = mlflow.search_logged_models(experiment_ids=[result["mlflow"]["experiment_id"]], output_format="list")
    assert (model.model_type or "") == kind
