"""Neurons in a training: whole rows are masked, can be unmasked again, and are removed at the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers.problems import batches, blobs, normal
from tune_sparsity.sparsity import METHODS, LayerRules, LpSGD, SparseTraining, lpss
from tune_sparsity.sparsity.masks import zeros_for
from tune_sparsity.sparsity.neurons.finding import neuron_groups, with_neurons
from tune_sparsity.sparsity.neurons.groups import NeuronGroups
from tune_sparsity.sparsity.neurons.removal import smaller
from tune_sparsity.sparsity.patterns import Neurons
from tune_sparsity.sparsity.sphere import row_norm

pytest.importorskip("torch_pruning")


# Row 2 is masked as a whole. In the other rows, `share` is the share of masked weights. If it is large, compiled code
# updates only the active weights.
@pytest.mark.parametrize("share", [0.2, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gain", [False, True])
def test_a_masked_row_keeps_v_and_gain_and_trains_again_when_unmasked(
    share: float, dtype: torch.dtype, gain: bool
) -> None:
    param = nn.Parameter(normal(0, 6, 40).to(dtype))
    optimizer = LpSGD([param], lr=0.05, p=1.3, gain=gain)
    mask = (torch.rand(6, 40, generator=torch.Generator().manual_seed(0)) > share).to(dtype)
    mask[2] = 0
    before = {key: optimizer.state[param][key][2].clone() for key in ("v", "gain")}
    optimizer.set_masks({param: mask})
    for step in range(30):
        param.grad = normal(step + 1, 6, 40).to(dtype)
        optimizer.step()
        assert param.isfinite().all()
        assert not param[2].any()
    for key, value in before.items():
        torch.testing.assert_close(optimizer.state[param][key][2], value, rtol=1e-5, atol=1e-6)
    optimizer.set_masks({param: torch.ones_like(mask)})
    param.grad = normal(99, 6, 40).to(dtype)
    optimizer.step()
    assert param[2].all()
    torch.testing.assert_close(row_norm(param.detach(), 1.3), optimizer.gain(param), rtol=1e-4, atol=0)


def trained(method: str, settings: dict[str, Any], sparsity: float) -> tuple[nn.Module, SparseTraining, set[int]]:
    """Train a small network. Return the network, its training, and the set of the numbers of active neurons after each
    step."""
    x, y = blobs()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4))
    rules = with_neurons(LayerRules(pattern="neurons"), model, x[:3])  # type: ignore[arg-type]
    assert isinstance(rules.pattern, Neurons)
    groups = rules.pattern.groups
    assert isinstance(groups, NeuronGroups)
    generator = torch.Generator().manual_seed(0)
    params = {"final_sparsity": sparsity, **settings}
    sparse = METHODS[method].build(model, params, total_steps=120, generator=generator, rules=rules)
    left = set()
    for inputs, labels in batches(x, y, 120):
        sparse.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        sparse.step()
        left.add(int(groups.alive(sparse.masks)[:-1].sum()))
    return model, sparse, left


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("gmp", {"interval": 5}),
        ("lpss", {"p": 1.4, "threshold_interval": 5}),
        ("lpss", {"p": 1.4, "drop": "threshold", "threshold_interval": 5}),
    ],
)
def test_a_training_ends_with_fewer_neurons(method: str, settings: dict[str, Any]) -> None:
    model, sparse, left = trained(method, settings, 0.8)
    assert len(left) > (1 if "drop" in settings else 5)
    zeros, weights = sparse.zeros()
    assert zeros_for(0.8, weights) <= zeros <= zeros_for(0.8, weights) + 24 + 16
    x, y = blobs(seed=0)
    with torch.no_grad():
        assert (model(x).argmax(1) == y).float().mean() > 0.9
        groups = neuron_groups(model, sparse.layers, x[:3])
        found = smaller(model, groups, sparse.masks)
        torch.testing.assert_close(found(x), model(x), rtol=0, atol=1e-5)
    sizes = [module.weight.numel() for module in found.modules() if isinstance(module, nn.Linear)]
    assert sum(sizes) == weights - zeros


@pytest.mark.parametrize(("pattern", "stay"), [("neurons", 12), ("neurons:8", 8), ("neurons:5", 10)])
def test_lpss_finds_removable_neurons_by_means_of_an_example_input(pattern: str, stay: int) -> None:
    model = nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 4))
    rules = LayerRules(pattern=pattern)  # type: ignore[arg-type]
    sparse = lpss(model, total_steps=1, sparsity=0.5, rules=rules, example=torch.randn(2, 20))
    sparse.finish()
    assert int(sparse.masks[0].any(1).sum()) == stay


def test_unknown_neurons_and_a_sparsity_that_is_too_high_are_refused() -> None:
    model = nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 4))
    rules = LayerRules(pattern="neurons")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pattern neurons: the network's neurons are not known"):
        lpss(model, total_steps=1, sparsity=0.5, rules=rules)
    with pytest.raises(
        ValueError, match=r"the pattern neurons does not allow a sparsity of 0\.99: the highest is 0\.958333"
    ):
        lpss(model, total_steps=1, sparsity=0.99, rules=rules, example=torch.randn(2, 20))
