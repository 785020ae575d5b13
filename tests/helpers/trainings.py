"""Define sparse trainings that several tests use, and a topology whose masks the test chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.problems import batches, blobs, mlp
from tune_sparsity.experiments import Data, Split
from tune_sparsity.sparsity import METHODS
from tune_sparsity.sparsity.layers import prunable_layers
from tune_sparsity.sparsity.optim.lpsgd import LpSGD
from tune_sparsity.sparsity.topology.base import LayerView
from tune_sparsity.sparsity.training import SparseTraining

X, Y = blobs()
MASKED = [name for name in METHODS if name != "binary"]
"""The methods whose networks have masks."""
STILL = ("dense", "static", "snip")
"""Those whose masks do not move after the first step. The masks of every new method are expected to move."""


class Watched:
    """Data that count how often their test split is read."""

    classes = ()

    def __init__(self, data: Data) -> None:
        self.train, self.val, self._test, self.asked = data.train, data.val, data.test, 0

    @property
    def test(self) -> Split:
        self.asked += 1
        return self._test


def train(model: nn.Module, sparse: SparseTraining, start: int, stop: int, total: int = 400) -> None:
    """Train with the batches `start` to `stop` - 1 of a fixed sequence of `total` batches."""
    dtype = next(model.parameters()).dtype
    for k, (xs, ys) in enumerate(batches(X.to(dtype), Y, total)):
        if start <= k < stop:
            sparse.zero_grad()
            F.cross_entropy(model(xs), ys).backward()
            sparse.step()


def zero_weights(sparse: SparseTraining) -> int:
    """Return how many weights of the sparse layers are 0, without a look at the masks."""
    return sum(int((layer.weight == 0).sum()) for layer in sparse.layers)


class Script:
    """A topology that sets the masks in `masks` at their steps, and stores the gradients of these steps in `seen`."""

    def __init__(self, masks: dict[int, list[Tensor]]) -> None:
        self.masks, self.step = masks, 0
        self.seen: dict[int, list[Tensor]] = {}

    def due(self, step: int, total: int) -> bool:
        self.step = step
        return step in self.masks

    def update(self, layers: Sequence[LayerView], progress: float) -> list[Tensor]:
        self.seen[self.step] = [layer.gradient().clone() for layer in layers]
        return self.masks[self.step]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def scripted(
    script: dict[int, list[Tensor]], *, momentum: float = 0.9, total: int = 100, **options: Any
) -> tuple[nn.Module, SparseTraining, Script]:
    """Return a network, its training and its topology. The network has a sphere layer (10 neurons with 20 weights each)
    and an ordinary layer. At the start, all connections are active."""
    model = mlp(20, 10, 4).double()
    layers = prunable_layers(model)
    rest = [model[0].bias, *model[2].parameters()]
    groups = [{"params": [layers[0].weight], "p": 1.4, "lr": 0.05, "gain": True}, {"params": rest, "lr": 0.1}]
    topology = Script(script)
    masks = [torch.ones_like(layer.weight) for layer in layers]
    sparse = SparseTraining(
        model,
        layers,
        LpSGD(groups, momentum=momentum),
        topology,
        masks,
        sparsity=options.pop("sparsity", 0.0),
        total_steps=total,
        mask_frozen_at=options.pop("mask_frozen_at", 1.0),
        **options,
    )
    return model, sparse, topology


def without(*places: tuple[int, int]) -> list[Tensor]:
    masks = [torch.ones(10, 20).double(), torch.ones(4, 10).double()]
    for i, j in places:
        masks[0][i, j] = 0
    return masks
