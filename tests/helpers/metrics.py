"""Define experiments as a user writes them. Most of them have another metric than the accuracy."""

from __future__ import annotations

EXPERIMENTS = '''
import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.nn import functional as F
from torchmetrics import AUROC, F1Score
from tune_sparsity import Data, Experiment, Metric, Recipe, Split

MEAN, SPREAD = 152.0, 77.0


def split(x, y, *sizes):
    return Data(*map(Split, x.split(sizes), y.split(sizes)))


def load_patients(data_dir):
    x, y = (torch.tensor(part, dtype=torch.float32) for part in load_diabetes(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return split(20 * x[order], y[order, None], 282, 80, 80)


def mlp(inputs, outputs):
    return lambda: nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, outputs))


def squares(outputs, targets):
    return F.mse_loss(outputs, (targets - MEAN) / SPREAD)


def rmse(outputs, targets):
    return (MEAN + SPREAD * outputs - targets).square().mean().sqrt()


error = Metric("rmse", rmse, maximize=False)
diabetes = Experiment("diabetes", load_patients, mlp(10, 1), Recipe(6, 16), squares, error)


def load_rare(data_dir):
    """Eight in a hundred are positive, and hard to tell from the others."""
    g = torch.Generator().manual_seed(0)
    y = (torch.arange(900) % 12 == 0).long()[torch.randperm(900, generator=g)]
    return split(torch.randn(900, 12, generator=g) + 0.3 * y[:, None], y, 500, 200, 200)


def auroc(outputs, targets):
    score = outputs[:, 1] - outputs[:, 0]
    pairs = score[targets == 1][:, None] - score[targets == 0]
    return (pairs > 0).double().mean() + 0.5 * (pairs == 0).double().mean()


by_accuracy = Experiment("rare", load_rare, mlp(12, 2), Recipe(4, 20))
by_auroc = Experiment("rare", load_rare, mlp(12, 2), Recipe(4, 20), metric=Metric("auroc", auroc, percent=True))
macro_f1 = F1Score(task="multiclass", num_classes=2, average="macro")
by_f1 = Experiment("rare", load_rare, mlp(12, 2), Recipe(4, 20), metric=Metric("macro_f1", macro_f1, percent=True))


class Letters(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.hidden, self.out = nn.Embedding(9, 16), nn.Linear(16, 24), nn.Linear(24, 9)
    def forward(self, x):
        return self.out(torch.relu(self.hidden(self.embedding(x))))


def load_letters(data_dir):
    """The next letter is two further, and one in five times any letter."""
    g = torch.Generator().manual_seed(0)
    text = torch.randint(0, 9, (400, 1), generator=g)
    for _ in range(8):
        any_letter = torch.randint(0, 9, (400, 1), generator=g)
        follows = torch.rand(400, 1, generator=g) < 0.8
        text = torch.cat([text, torch.where(follows, (text[:, -1:] + 2) % 9, any_letter)], 1)
    return split(text[:, :-1], text[:, 1:], 240, 80, 80)


def token_loss(outputs, targets):
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def perplexity(outputs, targets):
    return token_loss(outputs, targets).exp()


letters = Experiment(
    "letters", load_letters, Letters, Recipe(5, 16), token_loss, Metric("perplexity", perplexity, maximize=False)
)


class Odd(nn.Module):
    """Of some seeds its metric is no number."""
    def __init__(self):
        super().__init__()
        self.register_buffer("odd", (torch.rand(()) < 0.4).float())
        self.net = nn.Linear(10, 1)
    def forward(self, x):
        return torch.cat([self.net(x), self.odd.expand(len(x), 1)], 1)


def odd_rmse(outputs, targets):
    return rmse(outputs[:, :1], targets) if outputs[0, 1] == 0 else torch.tensor(torch.nan)


def odd_squares(outputs, targets):
    return squares(outputs[:, :1], targets)


odd_error = Metric("rmse", odd_rmse, maximize=False)
odd = Experiment("odd", load_patients, Odd, Recipe(3, 16), odd_squares, odd_error)
'''
