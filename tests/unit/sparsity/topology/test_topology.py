"""Dropping and growing agree with plain loops. Global magnitude pruning and threshold adaptation work in trainings of
networks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.problems import batches, blobs, mlp, normal
from tune_sparsity.sparsity.layers import prunable_layers
from tune_sparsity.sparsity.masks import zeros_for
from tune_sparsity.sparsity.methods.registry import LpssSettings, lpss
from tune_sparsity.sparsity.optim.lpsgd import LpSGD
from tune_sparsity.sparsity.schedules import Schedule
from tune_sparsity.sparsity.topology.base import LayerView, sparsity_of
from tune_sparsity.sparsity.topology.controller import PaperFeedback, ProportionalIntegral
from tune_sparsity.sparsity.topology.magnitude import GlobalMagnitude
from tune_sparsity.sparsity.topology.threshold_adaptation import ThresholdAdaptation, drop_below, grow_by_gradient
from tune_sparsity.sparsity.training import SparseTraining

seeds = st.integers(0, 2**32 - 1)


def some_mask(seed: int, density: float, *shape: int) -> Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < density).float()


# ---- drop


@given(seeds, st.floats(0, 1), st.floats(0, 1), st.floats(0.3, 20), st.floats(-60, 60))
def test_drop_below_agrees_with_brute_force(seed: int, density: float, rho: float, spread: float, shift: float) -> None:
    """In some drawn cases all magnitudes are nearly equal. In others they differ by many orders of magnitude."""
    logs = shift + spread * normal(seed, 4, 9)
    mask = some_mask(seed + 1, density, 4, 9)
    kept = drop_below(logs, mask, rho)
    for row in range(4):
        active = [j for j in range(9) if mask[row, j]]
        magnitude = [2.0 ** float(logs[row, j]) for j in range(9)]
        mean = math.fsum(magnitude[j] for j in active) / max(1, len(active))
        for j in range(9):
            if j not in active:
                assert kept[row, j] == 0
            elif abs(magnitude[j] - rho * mean) > 1e-9 * mean:
                assert kept[row, j] == (magnitude[j] > rho * mean)


def test_the_drop_threshold_ignores_the_magnitudes_of_pruned_weights() -> None:
    # Active magnitudes 1, 4, 10 (mean 5); the pruned one, 1000, would raise the mean and the threshold.
    logs = torch.tensor([[1.0, 4.0, 10.0, 1000.0]]).log2()
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert drop_below(logs, mask, 0.19).tolist() == [[1.0, 1.0, 1.0, 0.0]]
    assert drop_below(logs, mask, 0.21).tolist() == [[0.0, 1.0, 1.0, 0.0]]
    assert drop_below(logs, mask, 0.81).tolist() == [[0.0, 0.0, 1.0, 0.0]]


@given(seeds, st.floats(0.01, 1), st.floats(0, 1), st.sampled_from([torch.float32, torch.float64]))
def test_no_neuron_loses_its_last_connection(seed: int, density: float, rho: float, dtype: torch.dtype) -> None:
    mask = some_mask(seed, density, 50, 7)
    kept = drop_below(normal(seed + 1, 50, 7).to(dtype), mask, rho)
    assert torch.equal(kept.sum(1) > 0, mask.sum(1) > 0)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 1000])
def test_weights_of_equal_magnitude_stay_if_the_threshold_is_their_mean(n: int) -> None:
    assert drop_below(torch.full((2, n), -0.3), torch.ones(2, n), 1.0).sum() == 2 * n


def test_a_dead_neuron_stays_dead_and_a_threshold_of_zero_drops_no_weight() -> None:
    mask = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    logs = torch.tensor([[1.0, 2.0, 3.0], [-500.0, 0.0, 0.0]])
    assert torch.equal(drop_below(logs, mask, 0.0), mask)
    assert drop_below(logs, mask, 1.0).tolist() == [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    nothing = torch.full((1, 3), -math.inf)  # weights that are exactly zero: their mean is zero, too
    assert drop_below(nothing, torch.ones(1, 3), 0.5).tolist() == [[1.0, 1.0, 1.0]]


def test_drop_keeps_the_shape_of_a_convolution() -> None:
    logs, mask = normal(0, 3, 2, 3, 3), some_mask(1, 0.5, 3, 2, 3, 3)
    kept = drop_below(logs, mask, 0.4)
    assert kept.shape == mask.shape
    assert torch.equal(kept.flatten(1), drop_below(logs.flatten(1), mask.flatten(1), 0.4))


# ---- grow


@given(seeds, st.floats(0, 1), st.integers(0, 60))
def test_grow_by_gradient_agrees_with_brute_force(seed: int, density: float, count: int) -> None:
    shapes = [(3, 5), (4, 2, 3)]
    before = [some_mask(seed + k, density, *shape) for k, shape in enumerate(shapes)]
    kept = [mask * some_mask(seed + 9, 0.5, *mask.shape) for mask in before]
    gradients = [normal(seed + 20 + k, *shape) for k, shape in enumerate(shapes)]
    grown = grow_by_gradient(kept, before, gradients, count)

    ranked = []
    for layer, (mask, gradient) in enumerate(zip(before, gradients, strict=True)):
        rows = gradient.flatten(1).tolist()
        for i, row in enumerate(rows):
            length = math.sqrt(math.fsum(g * g for g in row))
            ranked += [(abs(g) / length, layer, i, j) for j, g in enumerate(row) if mask.flatten(1)[i, j] == 0]
    expected = [mask.flatten(1).clone() for mask in kept]
    for _, layer, i, j in sorted(ranked, reverse=True)[:count]:
        expected[layer][i, j] = 1.0
    for result, wanted in zip(grown, expected, strict=True):
        assert torch.equal(result.flatten(1).float(), wanted)


def test_weights_grow_by_the_magnitude_of_the_gradient() -> None:
    grown = grow_by_gradient([torch.zeros(1, 4)], [torch.zeros(1, 4)], [torch.tensor([[1.0, -3.0, 2.0, 0.0]])], 1)
    assert grown[0].tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_a_weight_does_not_regrow_in_the_update_that_drops_it() -> None:
    before, kept = torch.tensor([[1.0, 1.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    gradient = torch.tensor([[5.0, 100.0, 1.0, 2.0]])
    assert grow_by_gradient([kept], [before], [gradient], 1)[0].tolist() == [[1.0, 0.0, 0.0, 1.0]]
    # If more weights should grow than there are candidates, all candidates grow.
    assert grow_by_gradient([kept], [before], [gradient], 9)[0].tolist() == [[1.0, 0.0, 1.0, 1.0]]


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1e3, 1e30])
def test_growth_ignores_the_norm_of_the_gradient_of_each_neuron(scale: float) -> None:
    # The second neuron's gradient is far smaller or larger, but points more clearly at one connection.
    gradient = torch.tensor([[3.0, 3.0, 3.0], [scale, 0.1 * scale, 0.0]])
    grown = grow_by_gradient([torch.zeros(2, 3)], [torch.zeros(2, 3)], [gradient], 1)
    assert grown[0].tolist() == [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]


def test_weights_of_neurons_with_zero_gradient_grow_last() -> None:
    gradient = torch.tensor([[0.0, 0.0], [1e-3, 1e-3]])
    grown = grow_by_gradient([torch.zeros(2, 2)], [torch.zeros(2, 2)], [gradient], 2)
    assert grown[0].tolist() == [[0.0, 0.0], [1.0, 1.0]]


# ---- at which steps the masks change


@pytest.mark.parametrize(
    "topology", [GlobalMagnitude, lambda *args: ThresholdAdaptation(args[0], PaperFeedback(0.5), args[1])]
)
def test_masks_are_updated_at_every_interval_from_begin_to_end(topology: Any) -> None:
    rule = topology(Schedule("cubic", 0.2, 0.0, 0.1, 0.5), 30)
    assert [step for step in range(1000) if rule.due(step, 1000)] == list(range(120, 501, 30))


# ---- the topologies by themselves


def pruned(log_magnitude: Tensor, mask: Tensor, gradient: Tensor) -> LayerView:
    return LayerView("layer", mask, lambda: log_magnitude, lambda: gradient)


@given(seeds, st.floats(0, 1))
def test_global_magnitude_keeps_the_largest_weights_at_the_scheduled_sparsity(seed: int, progress: float) -> None:
    schedule = Schedule("cubic", 0.2, 0.95)
    layers = [pruned(normal(seed + k, 6, 8), torch.ones(6, 8), torch.zeros(6, 8)) for k in range(2)]
    masks = GlobalMagnitude(schedule).update(layers, progress)
    zeros = sum(int((mask == 0).sum()) for mask in masks)
    assert zeros == zeros_for(schedule(progress), 96)
    cut = torch.cat([layer.log_magnitude().flatten() for layer in layers]).sort(descending=True).values[96 - zeros - 1]
    for mask, layer in zip(masks, layers, strict=True):
        expected = (layer.log_magnitude() >= cut).to(mask)
        if expected.sum() >= 1:  # if all magnitudes of a layer are below the cut, its largest weight stays
            assert (mask != expected).sum() <= 1


def test_threshold_adaptation_grows_gamma_times_the_number_of_dropped_weights() -> None:
    # Each of 4 rows has the magnitudes 1 to 10. 1 and 2 are below 0.5 x 5.5 (the mean), so 8 weights are dropped.
    # The mask of `idle` is zero: 10 of all 50 weights are pruned, so the sparsity is .2. The target is .4, so gamma is
    # .9 x .2/.4 = .45.
    logs = torch.arange(1.0, 11.0).log2().expand(4, 10)
    dense = pruned(logs, torch.ones(4, 10), torch.zeros(4, 10))
    idle = pruned(torch.zeros(1, 10), torch.zeros(1, 10), torch.arange(10.0).view(1, 10) - 20)
    feedback = PaperFeedback(0.4)
    topology = ThresholdAdaptation(Schedule("constant", 0.5), feedback)
    first, second = topology.update([dense, idle], 0.3)
    assert first.tolist() == [[0.0, 0.0] + [1.0] * 8] * 4
    assert second.tolist() == [[1.0] * 4 + [0.0] * 6]  # round(.45 x 8) = 4 weights with the largest |gradient|


def test_each_neuron_keeps_its_largest_weight_at_a_high_controller_gain() -> None:
    feedback = ProportionalIntegral(Schedule("constant", 0.99), kp=100.0)
    topology = ThresholdAdaptation(Schedule("constant", 0.9), feedback)
    logs = normal(0, 20, 30)
    mask = torch.ones(20, 30)
    for _ in range(30):
        (mask,) = topology.update([pruned(logs, mask, normal(1, 20, 30))], 0.5)
    assert (mask.sum(1) == 1).all()
    assert torch.equal(mask.argmax(1), logs.argmax(1))


def test_the_sparsity_of_masks_in_half_precision_is_exact() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        mask = torch.ones(300, 301, dtype=dtype)
        mask[:, :100] = 0
        assert sparsity_of([mask, torch.ones(7, dtype=dtype)]) == pytest.approx(30000 / 90307, abs=1e-12)


# ---- in a training


def test_global_magnitude_pruning_follows_its_schedule_exactly() -> None:
    x, y = blobs()
    model = mlp(20, 30, 4)
    layers = prunable_layers(model)
    optimizer = LpSGD([{"params": [layers[0].weight], "p": 1.4, "gain": True}, {"params": [layers[1].weight]}], 0.02)
    schedule = Schedule("cubic", 0.0, 0.9, 0.1, 0.7)
    masks = [torch.ones_like(layer.weight) for layer in layers]
    sparse = SparseTraining(
        model,
        layers,
        optimizer,
        GlobalMagnitude(schedule, 10),
        masks,
        sparsity=0.9,
        total_steps=200,
        mask_frozen_at=0.75,
    )
    current = 0
    for k, (xs, ys) in enumerate(batches(x, y, 200)):
        sparse.zero_grad()
        F.cross_entropy(model(xs), ys).backward()
        sparse.step()
        if 20 <= k <= 140 and k % 10 == 0:
            current = zeros_for(schedule(k / 200), 720)
        elif k >= 150:
            current = zeros_for(0.9, 720)
        assert sparse.zeros() == (current, 720)


@pytest.mark.parametrize("feedback", ["pi", "published"])
@pytest.mark.parametrize("target", [0.5, 0.9])
def test_threshold_adaptation_brings_a_network_to_its_target(feedback: str, target: float) -> None:
    x, y = blobs()
    model = mlp(20, 64, 32, 4)
    settings = LpssSettings(target, 1.2, sphere_lr=0.05, threshold_interval=5, feedback=feedback)
    sparse = lpss(model, settings, total_steps=400)
    series = []
    for xs, ys in batches(x, y, 280):  # up to the projection, which is at 70 % of 400
        sparse.zero_grad()
        F.cross_entropy(model(xs), ys).backward()
        sparse.step()
        series.append(sparse.sparsity())
    assert series[39] == pytest.approx(0.2, abs=0.001)  # nothing moves before 10 %
    assert not sparse.fixed
    assert series[-1] == pytest.approx(target, abs=0.04)
    assert len(set(series)) > 20
    assert all((mask.sum(1) > 0).all() for mask in sparse.masks)  # every neuron keeps a connection
