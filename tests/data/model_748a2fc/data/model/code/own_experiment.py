import torch
from torch import nn

from experiments import Data, Experiment, Recipe, Split
from experiments.augment import Normalise
from sparsity import LayerRules


def load(data_dir):
    g = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(3, 12, generator=g)

    def split(n):
        y = torch.randint(0, 3, (n,), generator=g)
        return Split(means[y] + torch.randn(n, 12, generator=g), y)

    return Data(split(300), split(120), split(120), classes=("a", "b", "c"))


def model():
    return nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 3))


mine = Experiment("mine", load, model, Recipe(epochs=4, batch_size=30), layers=LayerRules(dense=("2.*",)))
