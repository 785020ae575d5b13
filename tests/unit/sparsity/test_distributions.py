"""Distributions of a sparsity over layers: totals are exact, Erdos-Renyi-Kernel agrees with its definition, and
saturated layers stay dense."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.examples import examples
from tune_sparsity.sparsity.distributions import layer_counts, random_masks
from tune_sparsity.sparsity.masks import zeros_for

shapes = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 60), st.integers(1, 60)),
        st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 3), st.integers(1, 3)),
    ),
    min_size=1,
    max_size=6,
)


@examples(300)
@given(shapes, st.floats(0, 0.999), st.sampled_from(["uniform", "erk"]))
def test_weight_counts_are_exact_in_total_and_fit_into_each_layer(
    shapes: list[tuple], sparsity: float, distribution: str
) -> None:
    sizes = [math.prod(shape) for shape in shapes]
    counts = layer_counts([torch.Size(shape) for shape in shapes], sparsity, distribution)
    assert sum(counts) == sum(sizes) - zeros_for(sparsity, sum(sizes))
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))


@examples(300)
@given(shapes, st.floats(0, 0.999), st.sampled_from(["uniform", "erk"]), st.integers(1, 3))
def test_every_layer_has_its_minimum_per_neuron_if_the_total_allows_it(
    shapes: list[tuple], sparsity: float, distribution: str, floor: int
) -> None:
    sizes = [torch.Size(shape) for shape in shapes]
    least = [shape[0] * min(floor, math.prod(shape[1:])) for shape in shapes]
    plain = layer_counts(sizes, sparsity, distribution)
    counts = layer_counts(sizes, sparsity, distribution, a_neuron=floor)
    assert sum(counts) == sum(plain)
    assert all(0 <= count <= size.numel() for count, size in zip(counts, sizes, strict=True))
    if sum(least) <= sum(plain):
        assert all(count >= needed for count, needed in zip(counts, least, strict=True))
    if all(count >= needed for count, needed in zip(plain, least, strict=True)):
        assert counts == pytest.approx(plain, abs=1)


def test_a_layer_below_its_minimum_gets_weights_from_the_surplus_of_other_layers() -> None:
    layers = [torch.Size((128, 1, 3, 3)), torch.Size((128, 128)), torch.Size((64, 256))]
    assert layer_counts(layers, 0.95, "uniform") == [58, 819, 819]
    # The second and third layer have a surplus of 691 and 755 weights. They give 70 of these to the first layer.
    assert layer_counts(layers, 0.95, "uniform", a_neuron=1) == [128, 786, 782]
    # No minimum applies, because the number of weights is below the number of neurons, which is 320.
    assert sum(layer_counts(layers, 0.995, "uniform", a_neuron=1)) == 169


def test_erk_densities_are_proportional_to_sum_over_product_of_dimensions() -> None:
    layers = [torch.Size((300, 784)), torch.Size((100, 300)), torch.Size((64, 32, 3, 3))]
    counts = layer_counts(layers, 0.9, "erk")
    ratios = [count / math.prod(s) / (sum(s) / math.prod(s)) for count, s in zip(counts, layers, strict=True)]
    assert max(ratios) == pytest.approx(min(ratios), rel=1e-3)


def test_erk_keeps_saturated_layers_dense_and_gives_the_rest_to_the_others() -> None:
    layers = [torch.Size((300, 784)), torch.Size((100, 300)), torch.Size((10, 100))]
    counts = layer_counts(layers, 0.5, "erk")
    assert counts[2] == 1000
    assert counts[1] == 30000
    assert sum(counts) == 266200 - 133100


def test_uniform_gives_every_layer_the_same_density() -> None:
    layers = [torch.Size((300, 784)), torch.Size((100, 300)), torch.Size((10, 100))]
    assert layer_counts(layers, 0.9, "uniform") == [23520, 3000, 100]


@pytest.mark.parametrize("distribution", ["uniform", "erk", "global"])
def test_random_masks_have_the_exact_count_and_depend_on_the_seed(distribution: str) -> None:
    weights = [torch.zeros(30, 50), torch.zeros(8, 30, dtype=torch.float64)]
    one, again, other = (
        random_masks(weights, 0.8, distribution, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert sum(int(mask.sum()) for mask in one) == 1740 - zeros_for(0.8, 1740)
    assert all(torch.equal(a, b) and a.dtype == w.dtype for a, b, w in zip(one, again, weights, strict=True))
    assert not torch.equal(one[0], other[0])


def test_an_unknown_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match="erk"):
        layer_counts([torch.Size((2, 2))], 0.5, "ekr")
