"""A training does not depend on the order of a weight's dimensions. Of two networks that compute the same function, one
has transposed layers, and both are trained alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.layers import Conv1D
from tests.helpers.problems import normal
from tune_sparsity.sparsity import METHODS, SparseTraining

STEPS = 8
SETTINGS: dict[str, dict[str, Any]] = {
    "lpss": {"p": 1.4, "threshold_interval": 2},
    "lpss by threshold": {"p": 1.4, "drop": "threshold", "threshold_interval": 1, "threshold.begin": 0.0},
    "lpss by the paper's feedback": {"p": 1.4, "drop": "threshold", "threshold_interval": 1, "feedback": "published"},
    "gmp": {"interval": 1},
    "rigl": {"interval": 2},
    "set": {"interval": 2},
    "sparse-momentum": {"interval": 2},
    "snip": {},
    "static": {},
    "static uniform": {"distribution": "uniform"},
    "dense": {},
}


def usual() -> nn.Sequential:
    layers = [nn.Conv2d(6, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 1, groups=4), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(48, 10), nn.ReLU(), nn.Linear(10, 4)).double()


def turned() -> nn.Sequential:
    layers = [nn.ConvTranspose2d(6, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 12, 1, groups=4), nn.Flatten()]
    return nn.Sequential(*layers, Conv1D(10, 48), nn.ReLU(), Conv1D(4, 10)).double()


def build(make: Callable[[], nn.Sequential], name: str, weights: list[Tensor]) -> tuple[nn.Sequential, SparseTraining]:
    """Return a network with the given weight matrices and with zero biases, and its training."""
    model, method = make(), name.partition(" ")[0]
    with torch.no_grad():
        for layer, rows in zip([model[i] for i in (0, 2, 4, 6)], weights, strict=True):
            layer.bias.zero_()
            if isinstance(layer, Conv1D):
                layer.weight.copy_(rows.T)
            elif isinstance(layer, nn.ConvTranspose2d):
                for group, part in enumerate(rows.chunk(layer.groups)):
                    inputs = part.shape[1]
                    layer.weight[group * inputs : (group + 1) * inputs] = part.T[..., None, None]
            else:
                layer.weight.copy_(rows.view_as(layer.weight))
    settings = SETTINGS[name] if method == "dense" else {"final_sparsity": 0.6, **SETTINGS[name]}
    generator = torch.Generator().manual_seed(0)
    return model, METHODS[method].build(model, settings, total_steps=STEPS, generator=generator)


@pytest.mark.parametrize("name", SETTINGS)
def test_networks_that_compute_the_same_function_are_trained_alike(name: str) -> None:
    weights = [normal(i, *shape) / 2 for i, shape in enumerate([(8, 6), (12, 2), (10, 48), (4, 10)])]
    pairs = [build(make, name, weights) for make in (usual, turned)]
    x, y = normal(9, 16, 6, 2, 2), torch.arange(16) % 4
    for step in range(STEPS):
        losses = []
        for model, sparse in pairs:
            sparse.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            losses.append(loss.item())
            sparse.step()
        assert losses[0] == pytest.approx(losses[1], rel=1e-9), step
        ours, theirs = (
            [
                (layer.orientation.rows(mask), layer.rows())
                for layer, mask in zip(sparse.layers, sparse.masks, strict=True)
            ]
            for _, sparse in pairs
        )
        for (mask, rows), (other_mask, other_rows) in zip(ours, theirs, strict=True):
            assert torch.equal(mask, other_mask)
            assert torch.allclose(rows, other_rows, rtol=1e-8, atol=1e-12)
    (_, first), (_, second) = pairs
    assert first.hoyer() == pytest.approx(second.hoyer())
    assert first.zeros() == second.zeros()
