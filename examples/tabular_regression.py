"""A regression on a table, scikit-learn's diabetes data. The search minimises the root mean square error.

tune-sparsity --target 0.9 --experiment examples/tabular_regression.py:diabetes
"""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tune_sparsity import Data, Experiment, Metric, Recipe, Split


def load(data_dir: Path | None) -> Data:
    x, y = (torch.tensor(part, dtype=torch.float32) for part in load_diabetes(return_X_y=True))
    x, y = (x - x.mean(0)) / x.std(0), (y[:, None] - y.mean()) / y.std()
    train, rest = train_test_split(range(len(x)), test_size=0.4, random_state=0)
    val, test = train_test_split(rest, test_size=0.5, random_state=0)
    return Data(*(Split(x[part], y[part]) for part in (train, val, test)))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 1))


def rmse(outputs: Tensor, targets: Tensor) -> Tensor:
    return mse_loss(outputs, targets).sqrt()


diabetes = Experiment(
    "diabetes", load, network, Recipe(epochs=30, batch_size=32), mse_loss, Metric("rmse", rmse, maximize=False)
)
