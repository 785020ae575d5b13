"""Masks keep exact numbers of weights, also for decimal sparsities and for weights with equal scores."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Generator, Tensor

from tune_sparsity.sparsity.masks import keep_largest, random_mask, row_floors, zeros_for

scores_lists = st.lists(
    st.lists(st.sampled_from([-math.inf, -2.0, 0.0, 0.0, 0.5, 1.0, 1.0, 7.0]), min_size=1, max_size=12),
    min_size=1,
    max_size=4,
)


def tensors(scores: list[list[float]]) -> list[Tensor]:
    return [torch.tensor(values) for values in scores]


@pytest.mark.parametrize(
    ("sparsity", "weights", "zeros"),
    [
        (0.9, 1000, 900),
        (0.7, 10, 7),
        (0.1, 30, 3),
        (0.55, 100, 55),  # in floating point, 0.55 * 100 is 55.00000000000001
        (0.98, 266200, 260876),
        (0.95, 266200, 252890),
        (0.99, 101, 100),  # the sparsity needs 0.99 * 101 = 99.99 zeros, so 99 are too few
        (0.5, 3, 2),
        (0.0, 17, 0),
        (1.0, 17, 17),
        (1e-05, 100000, 1),
    ],
)
def test_the_number_of_zeros_is_exact_for_known_sparsities(sparsity: float, weights: int, zeros: int) -> None:
    assert zeros_for(sparsity, weights) == zeros


@given(st.integers(0, 10**6), st.integers(0, 6), st.integers(1, 10**8))
@example(9, 1, 1000)
@example(55, 2, 100)
def test_number_of_zeros_is_the_least_that_reaches_a_decimal_sparsity(numerator: int, digits: int, n: int) -> None:
    share = Fraction(numerator % (10**digits + 1), 10**digits)
    z = zeros_for(float(share), n)
    assert Fraction(z, n) >= share
    assert z == 0 or Fraction(z - 1, n) < share


@given(scores_lists, st.floats(0, 1), st.integers(0, 3))
def test_keep_largest_keeps_exactly_the_given_number_of_the_largest_scores(
    scores: list[list[float]], share: float, at_least: int
) -> None:
    layers = tensors(scores)
    total = sum(layer.numel() for layer in layers)
    keep = round(share * total)
    masks = keep_largest(layers, keep, at_least=at_least)
    assert [mask.shape for mask in masks] == [layer.shape for layer in layers]
    assert all(mask.dtype == layer.dtype for mask, layer in zip(masks, layers, strict=True))
    assert {float(value) for mask in masks for value in mask} <= {0.0, 1.0}
    assert sum(int(mask.sum()) for mask in masks) == keep

    floors = [min(at_least, layer.numel()) for layer in layers]
    if sum(floors) > keep:
        floors = [0] * len(layers)
    assert all(int(mask.sum()) >= floor for mask, floor in zip(masks, floors, strict=True))
    for mask, layer in zip(masks, layers, strict=True):  # in a layer, kept scores are the largest
        kept, left = layer[mask == 1], layer[mask == 0]
        assert not len(kept) or not len(left) or kept.min() >= left.max()
    # Across layers: the kept scores beyond the minimum of a layer are at least as large as all scores left out.
    beyond = [
        layer[mask == 1].sort().values[: int(mask.sum()) - floor]
        for mask, layer, floor in zip(masks, layers, floors, strict=True)
    ]
    left_out = torch.cat([layer[mask == 0] for mask, layer in zip(masks, layers, strict=True)])
    if len(left_out) and len(torch.cat(beyond)):
        assert torch.cat(beyond).min() >= left_out.max()


matrices = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=4)


@given(matrices, st.integers(0, 2**32 - 1), st.floats(0, 1), st.integers(0, 4))
def test_every_row_keeps_its_minimum_and_the_largest_scores_share_the_rest(
    shapes: list[tuple[int, int]], seed: int, share: float, a_row: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    layers = [torch.randn(shape, generator=generator) for shape in shapes]
    keep = round(share * sum(layer.numel() for layer in layers))
    floors = row_floors([layer.shape for layer in layers], keep, a_row)
    least = [min(a_row, shape[1]) for shape in shapes]
    if sum(shape[0] * number for shape, number in zip(shapes, least, strict=True)) <= keep:
        assert floors == least
    masks = keep_largest(layers, keep, at_least=0, a_row=a_row)
    assert sum(int(mask.sum()) for mask in masks) == keep
    beyond = []
    for mask, layer, floor in zip(masks, layers, floors, strict=True):
        first = layer.argsort(1, descending=True).argsort(1) < floor
        assert (mask[first] == 1).all()
        beyond.append(layer[(mask == 1) & ~first])
    left_out = torch.cat([layer[mask == 0] for mask, layer in zip(masks, layers, strict=True)])
    if len(left_out) and len(torch.cat(beyond)):
        assert torch.cat(beyond).min() >= left_out.max()


def test_every_layer_keeps_a_weight_if_enough_weights_are_kept() -> None:
    large, small = torch.full((5,), 9.0), torch.tensor([[1.0, 3.0], [2.0, 0.0]])
    masks = keep_largest([large, small], 5)
    assert masks[0].sum() == 4
    assert masks[1].tolist() == [[0.0, 1.0], [0.0, 0.0]]
    masks = keep_largest([large, small], 5, at_least=0)
    assert masks[1].sum() == 0
    masks = keep_largest([large, small], 1)  # too few weights for a minimum in each layer
    assert masks[0].sum() == 1


def test_equal_scores_still_give_the_exact_count() -> None:
    for keep in range(21):
        masks = keep_largest([torch.zeros(4, 3), torch.zeros(8)], keep, at_least=1)
        assert sum(int(mask.sum()) for mask in masks) == keep


def test_scores_of_minus_infinity_rank_below_all_finite_scores() -> None:
    scores = torch.tensor([-math.inf, 1.0, -math.inf, -5.0])
    assert keep_largest([scores], 2)[0].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert keep_largest([scores], 3)[0].sum() == 3


def test_scores_are_not_changed() -> None:
    for count in (1, 2):
        scores = [torch.tensor([3.0, 1.0, 2.0]) for _ in range(count)]
        keep_largest(scores, 2)
        assert all(score.tolist() == [3.0, 1.0, 2.0] for score in scores)


@pytest.mark.parametrize("keep", [-1, 4])
def test_impossible_counts_are_refused(keep: int) -> None:
    with pytest.raises(ValueError, match="of 3 weights"):
        keep_largest([torch.zeros(3)], keep)


@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 99), st.integers(0, 2**32))
def test_a_random_mask_has_the_exact_count_and_its_seed_determines_it(
    rows: int, columns: int, percent: int, seed: int
) -> None:
    shape = torch.Size([rows, columns])
    mask, again = (random_mask(shape, percent / 100, Generator().manual_seed(seed), torch.float32) for _ in range(2))
    assert mask.shape == shape
    assert int((mask == 0).sum()) == -(-percent * rows * columns // 100)
    assert int((mask == 1).sum()) == rows * columns - int((mask == 0).sum())
    assert torch.equal(mask, again)


def test_random_masks_differ_between_seeds_and_spread_over_the_weight() -> None:
    shape = torch.Size([50, 40])
    masks = torch.stack([random_mask(shape, 0.5, Generator().manual_seed(seed), torch.float64) for seed in range(40)])
    assert not torch.equal(masks[0], masks[1])
    assert masks.dtype == torch.float64
    # Every weight is active in half of the 40 masks: a binomial count with mean 20 and deviation 3.2.
    counts = masks.sum(0)
    assert counts.min() >= 3
    assert counts.max() <= 37
    assert masks.mean(dim=(0, 2)).sub(0.5).abs().max() < 0.06
