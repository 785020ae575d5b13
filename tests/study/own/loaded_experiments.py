"""The text of a user's file: experiments with dicts or tuples as inputs, or whose examples are loaded one by one."""

EXPERIMENTS = '''
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from tune_sparsity import Data, Experiment, Recipe, Split

RECIPE = Recipe(epochs=3, batch_size=16)


def images(count, seed):
    numbers = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    return torch.randn(count, 12, generator=numbers) + 2 * torch.eye(12)[y], y


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(30, 16), nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, tokens, mask):
        weights = mask.unsqueeze(-1).to(torch.float32)
        mean = (self.embedding(tokens) * weights).sum(1) / weights.sum(1).clamp_min(1)
        return self.head(torch.relu(self.hidden(mean)))


def sentences(count, seed):
    numbers = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    tokens = torch.randint(0, 10, (count, 7), generator=numbers) + 10 * y[:, None]
    mask = torch.rand(count, 7, generator=numbers) < 0.8
    return Split({"tokens": tokens, "mask": mask}, y)


def text_data(data_dir):
    return Data(sentences(96, 0), sentences(48, 1), sentences(49, 2))


text = Experiment("text", text_data, Text, RECIPE)


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(8, 16), nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, left, right):
        return {"logits": self.head(torch.relu(self.left(left) + self.right(right)))}


def halves(count, seed):
    x, y = images(count, seed)
    return Split((x[:, :8], [x[:, 8:]]), y)


def pair_data(data_dir):
    return Data(halves(96, 0), halves(48, 1), halves(49, 2))


def logits(model, inputs):
    left, (right,) = inputs
    return model(left, right)["logits"]


pair = Experiment("pair", pair_data, Both, RECIPE, forward=logits)


def network():
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 3))


class Rows(Dataset):
    """Rows of a file, read when they are asked for; those of the training set with a little noise."""

    def __init__(self, path, start, stop, noise=0.0):
        self.rows = np.load(path, mmap_mode="r")[start:stop]
        self.noise = noise

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = torch.tensor(self.rows[index])
        return row[:12] + self.noise * torch.randn(12), row[12].long()


def rows_data(data_dir):
    path = Path(data_dir) / "rows.npy"
    return Data(Rows(path, 0, 90, noise=0.1), Rows(path, 90, 130), Rows(path, 130, 171), workers=1)


rows = Experiment("rows", rows_data, network, RECIPE)


class Stream(IterableDataset):
    """Examples in an order of its own, fewer in the second epoch than it says."""

    def __init__(self, count, seed):
        self.x, self.y = images(count, seed)
        self.epoch = None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.x)

    def __iter__(self):
        short = 20 if self.epoch == 1 else 0
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(self.epoch or 0))
        return ((self.x[i], self.y[i]) for i in order[short:].tolist())


def stream_data(data_dir):
    return Data(Stream(90, 0), Stream(40, 1), Stream(41, 2))


stream = Experiment("stream", stream_data, network, RECIPE)


class Broken(Rows):
    def __getitem__(self, index):
        if index == 70:
            raise OSError("row 70 cannot be read")
        return super().__getitem__(index)


def broken_data(data_dir):
    path = Path(data_dir) / "rows.npy"
    return Data(Broken(path, 0, 90), Rows(path, 90, 130), Rows(path, 130, 171), workers=1)


broken = Experiment("broken", broken_data, network, RECIPE)


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(12), torch.tensor(0)


def endless_data(data_dir):
    return Data(Endless(), Stream(40, 1), Stream(41, 2))


endless = Experiment("endless", endless_data, network, RECIPE)
'''
NESTED = ("text", "pair")
LOADED = ("rows", "stream")
