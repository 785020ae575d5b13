"""A plain training loop whose parameters a search tunes. The argument `trial` has the parameters that the search tries.

tune-sparsity --target 0.9 --experiment examples/searched_loop.py:train --trials 8
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, random_split

EPOCHS = 10


def parts() -> list:
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    return random_split(TensorDataset(x.float() / 16, y), [0.7, 0.15, 0.15], torch.Generator().manual_seed(0))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def accuracy(model: nn.Module, data) -> float:
    model.eval()
    device = next(model.parameters()).device
    right = sum(int((model(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in DataLoader(data, 256))
    return right / len(data)


def train(trial) -> None:
    training, validation, _ = parts()
    loader = DataLoader(training, 64, shuffle=True)
    model = network().to(trial.device)
    sparse = trial.sparsify(model, total_steps=EPOCHS * len(loader))  # replaces the optimizer
    for _ in trial.epochs(EPOCHS):
        model.train()
        for x, y in loader:
            sparse.zero_grad()
            cross_entropy(model(x.to(trial.device)), y.to(trial.device)).backward()
            sparse.step()
        trial.report(lambda: accuracy(model, validation))


train.model = network  # makes a new network for trained weights; study.best.network() and MLflow need it
train.test = lambda model, data_dir: accuracy(model, parts()[2])  # called once for each network that the study tests
