"""The final sparsity is exact to one weight, the weights of largest magnitude are kept, and the final masks do not
change."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.helpers.examples import examples
from tests.helpers.problems import mlp
from tests.helpers.trainings import scripted, train, without, zero_weights
from tune_sparsity.sparsity.distributions import layer_counts
from tune_sparsity.sparsity.layers import prunable_layers
from tune_sparsity.sparsity.masks import zeros_for
from tune_sparsity.sparsity.methods.registry import LpssSettings, lpss
from tune_sparsity.sparsity.schedules import KINDS, Schedule
from tune_sparsity.sparsity.topology.magnitude import GlobalMagnitude
from tune_sparsity.sparsity.training import SparseTraining

# ---- the final sparsity


def convolutional() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Unflatten(1, (1, 4, 5)),
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, padding=1, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(48, 4),
        )


@pytest.mark.parametrize("target", [0.5, 0.8, 0.9, 0.95, 0.98, 0.99])
@pytest.mark.parametrize("network", [lambda: mlp(20, 64, 32, 4), convolutional], ids=["mlp", "convolutional"])
def test_final_sparsity_is_exact_to_the_weight(network: Callable[[], nn.Module], target: float) -> None:
    model = network()
    sparse = lpss(model, total_steps=100, sparsity=target)
    total = sum(p.numel() for name, p in model.named_parameters() if p.dim() > 1)
    train(model, sparse, 0, 100)
    assert sparse.zeros() == (zeros_for(target, total), total)
    assert zero_weights(sparse) == zeros_for(target, total)
    assert sparse.sparsity() >= target > sparse.sparsity() - 1 / total


@examples(30)
@given(
    target=st.integers(0, 99).map(lambda k: k / 100),
    p=st.floats(1.02, 2.0),
    rate=st.floats(0.001, 0.25),
    shape=st.sampled_from(KINDS),
    start=st.floats(0.01, 1.0),
    span=st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda s: abs(s[0] - s[1]) > 1e-3).map(sorted),
    interval=st.integers(1, 10),
    feedback=st.sampled_from(["pi", "published"]),
    initial=st.floats(0, 0.9),
    steps=st.integers(1, 30),
)
def test_final_sparsity_is_exact_whatever_the_settings(
    target: float,
    p: float,
    rate: float,
    shape: str,
    start: float,
    span: list[float],
    interval: int,
    feedback: str,
    initial: float,
    steps: int,
) -> None:
    model = mlp(20, 12, 4)
    chosen = LpssSettings(
        target,
        p,
        sphere_lr=rate,
        threshold=Schedule(shape, start, 0.0, *span),
        threshold_interval=interval,
        feedback=feedback,
        initial_sparsity=initial,
    )
    sparse = lpss(model, chosen, total_steps=steps)
    train(model, sparse, 0, steps)
    assert sparse.fixed
    assert zero_weights(sparse) == sparse.zeros()[0] == zeros_for(target, 288)
    assert all(torch.isfinite(param).all() for param in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_final_sparsity_is_exact_in_other_precisions(dtype: torch.dtype) -> None:
    # In float16 at p = 1.05, most active weights underflow to 0. The last step makes them nonzero again.
    model = mlp(20, 64, 32, 4).to(dtype)
    sparse = lpss(model, LpssSettings(0.6, 1.05, sphere_lr=0.05, threshold_interval=5), total_steps=100)
    train(model, sparse, 0, 99)
    underflown = zero_weights(sparse) > sparse.zeros()[0]
    assert underflown or dtype != torch.float16  # bfloat16 has float32's range, so there may be no underflow
    train(model, sparse, 99, 100)
    assert sparse.zeros()[0] == zeros_for(0.6, 3456)
    assert zero_weights(sparse) == zeros_for(0.6, 3456)


def test_steps_after_the_last_keep_the_final_sparsity() -> None:
    model = mlp(20, 64, 32, 4)
    sparse = lpss(model, LpssSettings(0.3, 1.02, sphere_lr=0.2, threshold_interval=5), total_steps=50)
    train(model, sparse, 0, 49)
    small = sum(int((layer.weight.abs() < 2.0**-100).sum()) for layer in sparse.layers)
    assert small > sparse.zeros()[0]  # active weights as good as zero
    for k in range(49, 55):
        train(model, sparse, k, k + 1)
        assert zero_weights(sparse) == sparse.zeros()[0] == zeros_for(0.3, 3456)
    assert sparse.progress == 1.0


# ---- masks


@pytest.mark.parametrize("p", [1.05, 1.5])
def test_pruned_weights_are_zero_after_every_step(p: float) -> None:
    model = mlp(20, 64, 32, 4)
    sparse = lpss(model, LpssSettings(0.9, p, sphere_lr=0.05, threshold_interval=5), total_steps=200)
    assert sparse.sparsity() == pytest.approx(0.2, abs=1e-3)
    seen = set()
    for k in range(200):
        train(model, sparse, k, k + 1)
        for layer, mask in zip(sparse.layers, sparse.masks, strict=True):
            assert (layer.weight[mask == 0] == 0).all()
            # Active weights on the sphere are nonzero unless they underflow. With p = 1.05, a weight is proportional
            # to |v|^20, where v is the number that LpSGD stores. In float32, |v|^20 is 0 if |v| < .0055.
            if layer.sphere and p == 1.5:
                assert (layer.weight[mask == 1] != 0).all()
        seen.add(sparse.zeros()[0])
    assert len(seen) > 10


@pytest.mark.parametrize("drop", ["ramp", "threshold"])
def test_masks_do_not_change_after_they_are_frozen(drop: str) -> None:
    model = mlp(20, 64, 32, 4)
    settings = LpssSettings(0.9, 1.3, sphere_lr=0.05, drop=drop, threshold_interval=1)
    sparse = lpss(model, settings, total_steps=100)
    train(model, sparse, 0, 70)
    assert not sparse.fixed
    before = [mask.clone() for mask in sparse.masks]
    train(model, sparse, 70, 71)
    assert sparse.fixed
    moved = not all(torch.equal(mask, old) for mask, old in zip(sparse.masks, before, strict=True))
    # With threshold_interval=1, the ramp reaches the final sparsity one step earlier.
    assert moved == (drop == "threshold")
    fixed = [mask.clone() for mask in sparse.masks]
    weights = model[0].weight.detach().clone()
    for k in range(71, 100):
        train(model, sparse, k, k + 1)
        assert all(torch.equal(mask, old) for mask, old in zip(sparse.masks, fixed, strict=True))
    assert not torch.equal(model[0].weight, weights)  # the active weights still train


def test_the_masks_do_not_change_after_a_call_of_project() -> None:
    model = mlp(20, 64, 32, 4)
    sparse = lpss(model, LpssSettings(0.9, 1.3, sphere_lr=0.05, threshold_interval=1), total_steps=100)
    train(model, sparse, 0, 30)
    sparse.project()
    fixed = [mask.clone() for mask in sparse.masks]
    train(model, sparse, 30, 60)
    assert sparse.progress < sparse.mask_frozen_at
    assert all(torch.equal(mask, old) for mask, old in zip(sparse.masks, fixed, strict=True))


def test_projection_keeps_the_active_weights_of_largest_magnitude() -> None:
    model = mlp(20, 64, 32, 4)
    sparse = lpss(model, LpssSettings(0.9, 1.3, sphere_lr=0.05), total_steps=400)
    train(model, sparse, 0, 100)
    assert sparse.sparsity() < 0.9
    weights = [layer.weight.detach().abs().flatten().clone() for layer in sparse.layers]
    sparse.project()
    # The layers on the sphere are ranked together. The last layer is not on the sphere and is ranked alone.
    for part in (slice(0, 2), slice(2, 3)):
        magnitudes = torch.cat(weights[part])
        masks = torch.cat([mask.flatten() for mask in sparse.masks[part]])
        assert magnitudes[masks == 1].min() > magnitudes[masks == 0].max()
    once = torch.cat([mask.flatten() for mask in sparse.masks])
    sparse.project()
    assert torch.equal(once, torch.cat([mask.flatten() for mask in sparse.masks]))


def test_layers_off_the_sphere_get_their_erk_share() -> None:
    # At p near 1, rows on the sphere have few large weights. Ranked with them, the last layer would lose classes.
    model = mlp(20, 64, 32, 4)
    sparse = lpss(model, LpssSettings(0.95, 1.05), total_steps=400)
    train(model, sparse, 0, 60)
    sparse.project()
    shapes = [layer.weight.shape for layer in sparse.layers]
    assert int(sparse.masks[2].sum()) == layer_counts(shapes, 0.95, "erk")[2]
    assert sparse.masks[2].any(1).all()
    assert sparse.zeros()[0] == zeros_for(0.95, sum(shape.numel() for shape in shapes))


def test_a_projection_keeps_active_zero_weights_rather_than_pruned_weights() -> None:
    model, sparse, _ = scripted({0: without(*((i, j) for i in range(10) for j in range(10)))}, sparsity=0.5)
    with torch.no_grad():
        model[2].weight.zero_()  # an output layer that starts at zero, as some do
    sparse.masks[0].copy_(without(*((i, j) for i in range(10) for j in range(10)))[0])
    sparse.project()
    assert sparse.zeros() == (120, 240)
    assert sparse.masks[0][:, :10].sum() == 0  # none of the 100 pruned ones came back
    assert sparse.masks[0].sum() + sparse.masks[1].sum() == 120


def test_a_network_sparser_than_its_target_gets_weights_back() -> None:
    model, sparse, _ = scripted({0: without(*((i, j) for i in range(10) for j in range(19)))}, sparsity=0.5)
    train(model, sparse, 0, 1)
    assert sparse.zeros()[0] == 190
    sparse.project()
    assert sparse.zeros()[0] == 120


def test_a_training_does_not_change_the_masks_that_it_was_given() -> None:
    model = mlp(20, 10, 4)
    layers = prunable_layers(model)
    given_masks = [torch.ones_like(layer.weight) for layer in layers]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    ramp = GlobalMagnitude(Schedule("constant", 0.5), 1)
    sparse = SparseTraining(model, layers, optimizer, ramp, given_masks, sparsity=0.5, total_steps=10)
    train(model, sparse, 0, 1)
    assert sparse.sparsity() == 0.5
    assert all((mask == 1).all() for mask in given_masks)


# ---- projected()


def test_the_context_manager_projected_prunes_a_network_and_then_restores_it() -> None:
    model = mlp(20, 64, 32, 4)
    sparse = lpss(model, LpssSettings(0.9, 1.3, sphere_lr=0.05), total_steps=400)
    train(model, sparse, 0, 100)
    before = copy.deepcopy(model.state_dict())
    zeros = sparse.zeros()
    with sparse.projected():
        assert zero_weights(sparse) == zeros_for(0.9, 3456)
        inside = copy.deepcopy(model.state_dict())
    assert zeros[0] < zeros_for(0.9, 3456)
    assert sparse.zeros() == zeros
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    sparse.project()
    assert all(torch.equal(inside[name], value) for name, value in model.state_dict().items())
    with sparse.projected():  # the masks are fixed, so the projection changes nothing
        assert all(torch.equal(inside[name], value) for name, value in model.state_dict().items())


def test_the_context_manager_projected_restores_the_weights_after_an_error() -> None:
    model = mlp(20, 64, 32, 4)
    sparse = lpss(model, total_steps=400, sparsity=0.9)
    before = copy.deepcopy(model.state_dict())

    def fail() -> None:
        with sparse.projected():
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
