"""The weights that a selection keeps: totals are exact, each neuron keeps a minimum, and scores equal their
definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from tests.helpers.examples import examples
from tests.helpers.problems import normal
from tune_sparsity.sparsity.distributions import layer_counts
from tune_sparsity.sparsity.masks import keep_largest, zeros_for
from tune_sparsity.sparsity.selection import Selection, fitted, lamp_score, relative_magnitude, selection_for

shapes = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 30), st.integers(1, 40)),
        st.tuples(st.integers(1, 20), st.just(1), st.integers(1, 3), st.integers(1, 3)),
    ),
    min_size=1,
    max_size=5,
)
seeds = st.integers(0, 2**32 - 1)
selections = st.builds(Selection, st.sampled_from(["global", "erk", "uniform"]), st.integers(0, 3), st.booleans())


def layers(seed: int, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Return logarithms of different magnitudes. The scales of the rows differ by many orders of magnitude."""
    found = []
    for index, shape in enumerate(shapes):
        scale = 10 * normal(seed + 100 + index, shape[0]).view(-1, *[1] * (len(shape) - 1))
        found.append((scale + normal(seed + index, *shape)).float())
    return found


@examples(200)
@given(shapes, seeds, st.floats(0, 0.999), selections, st.lists(st.booleans(), min_size=5, max_size=5), st.booleans())
def test_the_total_is_exact_and_every_neuron_keeps_its_minimum(
    shapes: list[tuple[int, ...]], seed: int, sparsity: float, selection: Selection, sphere: list[bool], masked: bool
) -> None:
    logs = layers(seed, shapes)
    active = [(normal(seed + 50 + k, *shape) > 0).float() for k, shape in enumerate(shapes)] if masked else None
    masks = selection(logs, sphere[: len(logs)], sparsity, active)
    total = sum(log.numel() for log in logs)
    keep = total - zeros_for(sparsity, total)
    assert sum(int(mask.count_nonzero()) for mask in masks) == keep
    assert all(mask.shape == log.shape for mask, log in zip(masks, logs, strict=True))
    assert {float(value) for mask in masks for value in mask.unique()} <= {0.0, 1.0}
    for floor in range(selection.a_neuron, 0, -1):
        least = [min(floor, math.prod(shape[1:])) for shape in shapes]
        if sum(shape[0] * number for shape, number in zip(shapes, least, strict=True)) <= keep:
            counts = [mask.flatten(1).sum(1) for mask in masks]
            assert all((count >= number).all() for count, number in zip(counts, least, strict=True))
            break


@examples(200)
@given(shapes, seeds, st.floats(0, 0.999), selections, st.booleans())
def test_a_layer_keeps_its_largest_weights_beyond_the_minimum_of_each_neuron(
    shapes: list[tuple[int, ...]], seed: int, sparsity: float, selection: Selection, sphere: bool
) -> None:
    logs = layers(seed, shapes)
    masks = selection(logs, [sphere] * len(logs), sparsity)
    for log, mask in zip(logs, masks, strict=True):
        rows, kept = log.flatten(1), mask.flatten(1) == 1
        least = rows.masked_fill(~kept, math.inf).amin(1)
        assert (least >= rows.masked_fill(kept, -math.inf).amax(1)).all()  # in every neuron
        shown = relative_magnitude(log).flatten(1) if selection.normalised else rows
        rank = shown.argsort(1, descending=True).argsort(1)
        beyond = shown[kept & (rank >= selection.a_neuron)]
        assert not len(beyond) or not (~kept).any() or beyond.min() >= shown[~kept].max()


@given(shapes, seeds, st.floats(0, 0.999))
def test_without_a_minimum_per_neuron_the_largest_weights_of_all_layers_stay(
    shapes: list[tuple[int, ...]], seed: int, sparsity: float
) -> None:
    logs = layers(seed, shapes)
    total = sum(log.numel() for log in logs)
    expected = keep_largest(logs, total - zeros_for(sparsity, total))
    masks = Selection()(logs, [False] * len(logs), sparsity)
    assert all(torch.equal(mask, other) for mask, other in zip(masks, expected, strict=True))


@given(seeds, st.booleans())
def test_masked_weights_are_kept_only_if_all_active_weights_are_kept(seed: int, normalised: bool) -> None:
    logs = layers(seed, [(6, 10), (8, 5)])
    logs[0][0] = -math.inf  # weights of zero that are active
    active = [(normal(seed + 50 + k, *log.shape) > 0).float() for k, log in enumerate(logs)]
    count = sum(int(mask.sum()) for mask in active)
    for keep in (count - 5, count, count + 5):
        masks = Selection(normalised=normalised)(logs, [True, True], (100 - keep) / 100, active)
        assert sum(int((mask * own).sum()) for mask, own in zip(masks, active, strict=True)) == min(keep, count)


@pytest.mark.parametrize("distribution", ["erk", "uniform"])
def test_the_distribution_determines_the_number_of_weights_in_each_layer(distribution: str) -> None:
    logs = [normal(0, 300, 784), 5 + normal(1, 100, 300), normal(2, 10, 100)]
    masks = Selection(distribution, a_neuron=1)(logs, [True, True, False], 0.9)
    assert [int(mask.sum()) for mask in masks] == layer_counts([log.shape for log in logs], 0.9, distribution)


@pytest.mark.parametrize("distribution", ["global", "erk", "uniform"])
def test_every_depthwise_filter_keeps_a_weight_if_enough_weights_are_kept(distribution: str) -> None:
    pointwise, depthwise = normal(0, 128, 128, 1, 1), normal(1, 128, 1, 3, 3) - 20
    masks = Selection(distribution, a_neuron=1)([pointwise, depthwise], [False, False], 0.95)
    assert all((mask.flatten(1).sum(1) > 0).all() for mask in masks)
    assert sum(int(mask.sum()) for mask in masks) == 17536 - zeros_for(0.95, 17536)


# ---- scores


@given(seeds, st.floats(-60, 60))
def test_relative_magnitude_divides_by_the_root_mean_square_of_the_row(seed: int, shift: float) -> None:
    weights = normal(seed, 4, 2, 3)
    expected = weights.abs() / weights.flatten(1).square().mean(1).sqrt().view(4, 1, 1)
    assert torch.allclose(relative_magnitude(weights.abs().log2() + shift).exp2(), expected, rtol=1e-9)


def test_the_norm_and_fan_in_of_a_row_do_not_change_its_relative_magnitudes() -> None:
    for fan_in in (1, 9, 784):
        rows = torch.full((2, fan_in), 1.0).log2() + torch.tensor([[-200.0], [90.0]])
        assert torch.allclose(relative_magnitude(rows), torch.zeros(2, fan_in), atol=1e-5)


def test_weights_of_zero_have_the_lowest_score() -> None:
    logs = torch.tensor([[-math.inf, -math.inf], [0.0, -math.inf]])
    assert relative_magnitude(logs).tolist() == [[-math.inf, -math.inf], [0.5, -math.inf]]
    assert lamp_score(logs).tolist() == [[-math.inf, -math.inf], [0.0, -math.inf]]
    assert lamp_score(torch.full((2, 2), -math.inf)).tolist() == [[-math.inf] * 2] * 2


@given(seeds, st.floats(-60, 60))
def test_lamp_score_equals_its_definition(seed: int, shift: float) -> None:
    weights = normal(seed, 5, 6)
    squares = weights.flatten().square().tolist()
    expected = [one / math.fsum(other for other in squares if other >= one) for one in squares]
    found = lamp_score(weights.abs().log2() + shift)
    assert found.exp2().flatten().tolist() == pytest.approx(expected, rel=1e-9)
    assert torch.equal(found.flatten().argsort(), weights.abs().flatten().argsort())


def test_half_precisions_are_scored_in_single_precision() -> None:
    logs = normal(0, 40, 50)
    for dtype in (torch.bfloat16, torch.float16):
        found = lamp_score(relative_magnitude(logs.to(dtype)))
        assert found.dtype == torch.float32
        assert torch.allclose(found.double(), lamp_score(relative_magnitude(logs)), atol=0.2)


@pytest.mark.parametrize(
    ("norm", "normalised"), [(nn.BatchNorm1d(5), True), (nn.LayerNorm(5), True), (nn.Identity(), False)]
)
def test_scores_are_normalised_if_the_network_has_normalisation_layers(norm: Any, normalised: bool) -> None:
    model = nn.Sequential(nn.Linear(5, 5), norm, nn.Linear(5, 2))
    assert selection_for(model, "erk") == Selection("erk", 1, normalised)


@pytest.mark.parametrize(
    ("distribution", "sparsity", "floor"), [("global", 0.98, 1), ("global", 0.99, 0), ("erk", 0.99, 1)]
)
def test_global_selection_has_no_minimum_per_neuron_at_very_high_sparsity(
    distribution: str, sparsity: float, floor: int
) -> None:
    # The network has 410 neurons. 1004 weights stay nonzero at sparsity .98, and 502 at .99.
    shapes = [torch.Size((300, 64)), torch.Size((100, 300)), torch.Size((10, 100))]
    assert selection_for(nn.Identity(), distribution, shapes=shapes, sparsity=sparsity).a_neuron == floor


@given(st.integers(2, 120), st.integers(0, 2**31), st.integers(1, 9))
def test_fitted_masks_keep_the_largest_allowed_number_of_weights(most: int, seed: int, share: int) -> None:
    """The `excess` of this test tells `fitted` too small a number of surplus weights: a fraction of the true number.
    `fitted` must still find the right masks."""
    generator = Generator().manual_seed(seed)
    scores = [torch.rand(10, 8, generator=generator), torch.rand(5, 8, generator=generator)]

    def excess(masks: Sequence[Tensor]) -> int:
        over = sum(int(mask.sum()) for mask in masks) - most
        return max(0, math.ceil(over / share))

    masks = fitted(lambda sparsity: Selection()(scores, [True, True], sparsity), 0.2, excess)
    expected = keep_largest(scores, min(most, 96))
    assert all(torch.equal(found, one) for found, one in zip(masks, expected, strict=True))


def test_fitted_masks_keep_one_weight_per_layer_if_no_mask_is_sparse_enough() -> None:
    scores = [torch.rand(10, 8), torch.rand(5, 8)]
    masks = fitted(lambda sparsity: Selection()(scores, [True, True], sparsity), 0.2, lambda masks: 5)
    assert [int(mask.sum()) for mask in masks] == [1, 1]
