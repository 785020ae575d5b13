"""The metric decides which trial is best."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from tests.helpers.in_process import run_in_process

FILE = '''
from functools import partial

import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn.functional import cross_entropy

from tune_sparsity import Data, Experiment, Metric, Recipe, Split


def split(count, seed):
    """One example in ten is of class 1, which has larger inputs: no input makes it the more probable class."""
    numbers = torch.Generator().manual_seed(seed)
    y = (torch.arange(count) % 10 == 0).long()
    return Split(torch.randn(count, 6, generator=numbers) + 0.4 * y[:, None], y)


def load(data_dir):
    return Data(split(600, 0), split(400, 1), split(400, 2))


def network():
    """A network that takes everything for class 0 before it is trained."""
    model = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 2))
    with torch.no_grad():
        model[2].bias.copy_(torch.tensor([3.0, -3.0]))
    return model


def auroc(outputs, targets):
    return roc_auc_score(targets.numpy(), (outputs[:, 1] - outputs[:, 0]).numpy())


loss = partial(cross_entropy, weight=torch.tensor([1.0, 9.0]))
by_accuracy = Experiment("by_accuracy", load, network, Recipe(epochs=4, batch_size=30), loss)
by_auroc = Experiment("by_auroc", load, network, Recipe(epochs=4, batch_size=30), loss, Metric("auroc", auroc))
'''
SPACE = """
method: gmp
parameters:
  lr: {type: categorical, choices: [0.000001, 0.05]}
  final_sparsity: target
first:
  - {lr: 0.000001}
  - {lr: 0.05}
"""


def test_a_search_by_auroc_picks_another_trial_than_accuracy_would(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(FILE)
    (tmp_path / "rates.yaml").write_text(SPACE)
    best, values = {}, {}
    for metric in ("accuracy", "auroc"):
        folder = run_in_process(
            tmp_path / "studies",
            metric,
            experiment=f"{tmp_path / 'own.py'}:by_{metric}",
            space=str(tmp_path / "rates.yaml"),
            method="gmp",
            target=0.5,
            trials=2,
            scheduler="none",
        )
        best[metric] = json.loads((folder / "result.json").read_text())["best"]["params"]["lr"]
        rows = csv.DictReader((folder / "trials.csv").open())
        values[metric] = {float(row["lr"]): float(row[f"val_{metric}"]) for row in rows}
    assert best == {"accuracy": 0.000001, "auroc": 0.05}
    assert values["accuracy"][0.000001] == 0.9  # the accuracy of a network that always answers class 0
    assert values["accuracy"][0.05] < 0.85
    assert values["auroc"][0.05] > values["auroc"][0.000001] + 0.1
