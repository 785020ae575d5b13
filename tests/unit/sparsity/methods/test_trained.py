"""Methods that begin with a trained network: the first masks, the unchanged weights at the start, and the precision of
the optimizer's state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.layers import kept_in_evaluation
from tests.helpers.problems import batches, blobs, mlp
from tune_sparsity.sparsity import METHODS, LayerRules, LpssSettings, SparseTraining, lpss, prunable_layers
from tune_sparsity.sparsity.distributions import layer_counts
from tune_sparsity.sparsity.masks import zeros_for
from tune_sparsity.sparsity.optim.lpsgd import LpSGD

pytestmark = pytest.mark.usefixtures("either_step")

STEPS = 40
SPARSE_AT_ONCE = ("rigl", "set", "sparse-momentum", "static")
PARAMS: dict[str, dict[str, Any]] = {
    "lpss": {"p": 1.3, "initial_sparsity": 0.3, "threshold_interval": 1, "threshold.begin": 0.0},
    "gmp": {"begin": 0.0, "interval": 1},
    **{name: {"interval": 10} for name in SPARSE_AT_ONCE[:3]},
    "static": {},
    "snip": {},
}


def transposed() -> nn.Sequential:
    """Return a network with a transposed convolution, whose neurons are the second dimension of its weight."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (5, 4)), nn.ConvTranspose1d(5, 6, 2), nn.ReLU(), nn.Flatten(), nn.Linear(30, 4)
    )


def build(method: str, model: nn.Module, **params: Any) -> SparseTraining:
    settings = {"final_sparsity": 0.8, **PARAMS[method], **params}
    generator = torch.Generator().manual_seed(0)
    return METHODS[method].build(model, settings, total_steps=STEPS, generator=generator, trained=True)


def train(model: nn.Module, sparse: SparseTraining, steps: int) -> None:
    x, y = blobs()
    for xs, ys in batches(x, y, steps):
        sparse.zero_grad()
        F.cross_entropy(model(xs), ys).backward()
        sparse.step()


def kept_are_largest(weights: list[Tensor], masks: list[Tensor]) -> bool:
    """Return whether no masked weight has a larger magnitude than a kept weight of any of these layers."""
    kept = torch.cat([weight.abs()[mask != 0] for weight, mask in zip(weights, masks, strict=True)])
    masked = torch.cat([weight.abs()[mask == 0] for weight, mask in zip(weights, masks, strict=True)])
    return bool(kept.min() >= masked.max())


@pytest.mark.parametrize("method", SPARSE_AT_ONCE)
@pytest.mark.parametrize("distribution", ["uniform", "erk", "global"])
@pytest.mark.parametrize("make", [lambda: mlp(20, 30, 12, 4), transposed])
def test_methods_that_begin_sparse_begin_with_the_largest_weights(method: str, distribution: str, make: Any) -> None:
    model = make()
    weights = [layer.weight.detach().clone() for layer in prunable_layers(model)]
    sparse = build(method, model, distribution=distribution)
    total = sum(weight.numel() for weight in weights)
    assert sparse.zeros() == (zeros_for(0.8, total), total)
    if distribution == "global":
        assert kept_are_largest(weights, sparse.masks)
        return
    shapes = [layer.turned(layer.weight).shape for layer in sparse.layers]
    assert [int(mask.sum()) for mask in sparse.masks] == layer_counts(shapes, 0.8, distribution)
    for weight, mask, layer in zip(weights, sparse.masks, sparse.layers, strict=True):
        assert kept_are_largest([weight], [mask])
        assert torch.equal(layer.weight, weight * mask)


@pytest.mark.parametrize("method", ["lpss", "gmp"])
def test_methods_that_become_sparse_begin_dense_and_drop_the_smallest(method: str) -> None:
    model = mlp(20, 30, 12, 4)
    weights = [layer.weight.detach().clone() for layer in prunable_layers(model)]
    slow = {"lr": 1e-6} | ({"sphere_lr": 1e-6} if method == "lpss" else {})
    sparse = build(method, model, **slow)
    assert sparse.sparsity() == 0.0
    train(model, sparse, 8)
    assert 0.1 < sparse.sparsity() < 0.8
    # lpss does not compare the last layer's weights, which are off the sphere, with weights on the sphere.
    hidden = slice(0, 2) if method == "lpss" else slice(0, 3)
    assert kept_are_largest(weights[hidden], sparse.masks[hidden])


def test_threshold_adaptation_begins_dense_too() -> None:
    settings = LpssSettings(0.8, 1.3, drop="threshold", initial_sparsity=0.3)
    sparse = lpss(mlp(20, 30, 4), settings, total_steps=STEPS, trained=True)
    assert sparse.sparsity() == 0.0
    assert sparse.topology.feedback.reference(0.0) == 0.0  # type: ignore[attr-defined]


def test_snip_chooses_masks_by_products_of_weights_and_gradients() -> None:
    model = mlp(20, 30, 4)
    weights = [layer.weight.detach().clone() for layer in prunable_layers(model)]
    sparse = build("snip", model)
    x, y = blobs()
    F.cross_entropy(model(x), y).backward()
    scores = [weight * layer.weight.grad for weight, layer in zip(weights, sparse.layers, strict=True)]
    sparse.move_masks()
    assert kept_are_largest(scores, sparse.masks)
    assert not kept_are_largest(weights, sparse.masks)


def test_masks_moved_before_a_step_do_not_move_again_in_this_step() -> None:
    ends = []
    for ahead in (False, True):
        model = mlp(20, 30, 12, 4)
        settings = {"drop": "threshold", "feedback": "pi", "initial_sparsity": 0.0}
        sparse = build("lpss", model, **settings)
        for xs, ys in batches(*blobs(), 12):
            sparse.zero_grad()
            F.cross_entropy(model(xs), ys).backward()
            if ahead:
                sparse.move_masks()
            sparse.step()
        assert sparse.sparsity() > 0
        ends.append((model.state_dict(), sparse.topology.state_dict(), sparse.lr_sum))
    (first, *state), (second, *other) = ends
    assert state == other
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),  # in float32 the weights would lose half of their digits in the first step
    ],
)
def test_v_and_gain_are_at_least_float32_and_the_start_changes_no_weight(dtype: torch.dtype, kept: torch.dtype) -> None:
    model = mlp(20, 30, 12, 4).to(dtype)
    before = copy.deepcopy(model.state_dict())
    sparse = lpss(model, LpssSettings(0.0, 1.05), total_steps=STEPS, trained=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert isinstance(sparse.optimizer, LpSGD)
    state = sparse.optimizer.state[model[0].weight]
    assert {key: value.dtype for key, value in state.items()} == {"v": kept, "gain": kept}


@pytest.mark.parametrize("method", PARAMS)
def test_training_a_float64_network_keeps_float64_precision(method: str) -> None:
    model = mlp(20, 30, 12, 4, norm=True).double().eval()
    x = blobs()[0].double()
    before = model(x).detach()
    slow = {"lr": 1e-15, "weight_decay": 0.0} | ({"sphere_lr": 1e-15} if method == "lpss" else {})
    sparse = build(method, model, final_sparsity=0.0, **slow)
    for _ in range(STEPS):
        sparse.zero_grad()
        model(x).square().mean().backward()
        sparse.step()
    assert torch.allclose(model(x), before, rtol=1e-11, atol=1e-11)
    assert {param.dtype for param in model.parameters()} == {torch.float64}


def test_row_norms_before_a_batch_norm_with_constant_statistics_are_learnt() -> None:
    model, x = mlp(20, 30, 12, 4, norm=True), blobs()[0]
    model(x)  # so that the constants are no longer 0 and 1
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            kept_in_evaluation(module)
    before, constants = model(x).detach(), copy.deepcopy(list(model.buffers()))
    sparse = lpss(model, LpssSettings(0.0, 1.3), total_steps=STEPS, trained=True, example=x)
    assert torch.equal(model(x), before)
    gain = sparse.optimizer.gain(model[0].weight).clone()  # type: ignore[attr-defined]
    train(model, sparse, 10)
    assert (sparse.optimizer.gain(model[0].weight) - gain).abs().max() > 1e-3  # type: ignore[attr-defined]
    assert all(torch.equal(one, other) for one, other in zip(model.buffers(), constants, strict=True))


def test_the_scale_of_rows_before_a_batch_normalisation_changes_nothing() -> None:
    scales = 2.0 ** torch.arange(-6, 24, 1).float()[:, None]
    ends = []
    for scale in (torch.ones(30, 1), scales):
        model = mlp(20, 30, 12, 4, norm=True)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eps = 1e-30
        with torch.no_grad():
            model[0].weight.mul_(scale)
        sparse = lpss(model, LpssSettings(0.0, 1.3), total_steps=STEPS, trained=True)
        gain = sparse.optimizer.gain(model[0].weight).clone()  # type: ignore[attr-defined]
        with torch.no_grad():
            model[0].bias.zero_()
        train(model, sparse, 10)
        assert torch.equal(sparse.optimizer.gain(model[0].weight), gain)  # type: ignore[attr-defined]
        ends.append(sparse.optimizer.sphere_weights(model[0].weight))  # type: ignore[attr-defined]
    assert torch.allclose(*ends, rtol=1e-3, atol=1e-5)


def test_an_older_state_without_gains_resumes_with_rows_of_norm_1() -> None:
    """In states that older versions saved, the rows of layers before a normalisation have the norm 1 and no gains."""
    model = mlp(20, 30, 12, 4, norm=True)
    sparse = lpss(model, LpssSettings(0.0, 1.3), total_steps=STEPS)
    train(model, sparse, 3)
    saved = copy.deepcopy(sparse.state_dict())
    optimizer = sparse.optimizer
    assert isinstance(optimizer, LpSGD)
    with torch.no_grad():
        for index, param in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            if saved["optimizer"]["state"][index].pop("gain", None) is not None:
                param.copy_(optimizer.sphere_weights(param))
    weights = copy.deepcopy(model.state_dict())
    again = mlp(20, 30, 12, 4, norm=True)
    resumed = lpss(again, LpssSettings(0.0, 1.3), total_steps=STEPS)
    again.load_state_dict(weights)
    resumed.load_state_dict(saved)
    train(again, resumed, 3)
    norms = (again[0].weight.abs() ** 1.3).sum(1)
    assert torch.allclose(norms, torch.ones(30), atol=1e-4)
    assert not torch.equal(again[0].weight, weights["0.weight"])


def test_pruning_a_trained_network_ends_better_than_pruning_a_random_one() -> None:
    x, y = blobs(800, features=30, classes=10)
    losses = []
    for trained in (False, True):
        model = mlp(30, 60, 30, 10)
        if trained:
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            for xs, ys in batches(x, y, 300):
                optimizer.zero_grad()
                F.cross_entropy(model(xs), ys).backward()
                optimizer.step()
        sparse = lpss(model, LpssSettings(0.9, 1.5), total_steps=STEPS, trained=trained)
        for xs, ys in batches(x, y, STEPS):
            sparse.zero_grad()
            F.cross_entropy(model(xs), ys).backward()
            sparse.step()
        assert sparse.sparsity() == 0.9
        losses.append(F.cross_entropy(model(x), y).item())
    assert losses[1] < 0.5 * losses[0]


def test_pruning_frozen_weights_keeps_the_largest() -> None:
    model = mlp(20, 30, 12, 4)
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    rules = LayerRules(prune={"0.weight": 1})
    generator = torch.Generator().manual_seed(0)
    sparse = METHODS["static"].build(
        model, {"final_sparsity": 0.5}, total_steps=STEPS, generator=generator, rules=rules, trained=True
    )
    train(model, sparse, 3)
    assert torch.equal(model[0].weight, before * sparse.masks[0])
    assert kept_are_largest([before], sparse.masks[:1])


def test_a_row_of_zeros_learns() -> None:
    model = mlp(20, 30, 12, 4)
    with torch.no_grad():
        model[0].weight[3] = 0.0
    sparse = lpss(model, LpssSettings(0.0, 1.3), total_steps=STEPS, trained=True)
    x, _ = blobs()
    before = model(x).detach()
    train(model, sparse, 1)
    assert (model(x) - before).abs().max() < 0.5 * before.abs().max()
    train(model, sparse, STEPS - 1)
    assert model[0].weight[3].abs().max() > 1e-3
