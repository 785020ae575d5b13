"""Tests which widths a study searches within a limit of bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from torch import nn

from tune_sparsity.search_spaces import load_space
from tune_sparsity.sparsity import LayerRules, prunable_layers
from tune_sparsity.sparsity.few_bits import ALL_BITS, BITS
from tune_sparsity.sparsity.neurons.finding import with_neurons
from tune_sparsity.sparsity.neurons.groups import NeuronGroups
from tune_sparsity.sparsity.neurons.removal import smaller
from tune_sparsity.tuner.search.byte_spaces import (
    Widths,
    roomiest,
    spaces_within,
    too_many_neurons,
    widths_for,
)
from tune_sparsity.tuner.study.trial import WIDTH
from tune_sparsity.tuner.worker.sizes import ByteLimit, layout_of


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def limit_of(most: int, bits: int = 2, *, known: bool = True) -> ByteLimit:
    model = network()
    layers = prunable_layers(model)
    rules = with_neurons(LayerRules(), model, torch.randn(2, 64), width=0.5)
    assert isinstance(rules.neurons, NeuronGroups)
    layouts = {bits: layout_of(model, layers, bits) for bits in (ALL_BITS, *BITS)}
    return ByteLimit(most, layouts, bits, rules.neurons if known else None)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("width", [0.3, 0.6, 1.0])
def test_the_predicted_file_layout_matches_that_of_the_narrower_network(width: float, bits: int) -> None:
    limit = limit_of(1500)
    groups = limit.neurons
    assert groups is not None
    model, alive = network(), groups.widest(width)
    masks = [layer.mask(alive, one.weight) for layer, one in zip(groups.layers, prunable_layers(model), strict=True)]
    small = smaller(model, groups, masks)
    part, whole = limit.part(bits, width), layout_of(small, prunable_layers(small), bits)
    assert part.weights == whole.weights
    # `part` keeps the header of the wide network, whose dimensions may take more bytes.
    assert part.nonzero_within(1500) == pytest.approx(whole.nonzero_within(1500), rel=0.01)
    assert part.neuron_bytes(10**6) == whole.neuron_bytes(10**6)


def test_neurons_are_too_many_if_scales_and_biases_exceed_a_third_of_the_limit() -> None:
    limit = limit_of(1500)
    assert limit.neuron_bytes() == 400 * 4 + 10 * 2  # the biases of the last layer are always there
    assert too_many_neurons(limit)
    assert limit.neuron_bytes(0.5) == (17 + 10) * 4 + 10 * 2
    assert not too_many_neurons(limit, 0.5)
    assert not too_many_neurons(limit_of(3 * 1620))


@given(most=st.integers(300, 20_000))
def test_widths_are_ordered_and_the_returned_layout_holds_the_most_weights(most: int) -> None:
    limit = limit_of(most)
    widths = widths_for(limit)
    assert 0 < widths.low <= widths.centre <= widths.high <= 1
    if widths.low < 1:  # with 8 bits a weight, a wider network meets the limit only if it has zeros
        wider = round(widths.low + 0.01, 2)
        assert limit.nonzero(8, wider) < limit.part(8, wider).weights
    if widths.high > widths.low:
        assert not too_many_neurons(limit, widths.high)
    best = roomiest(limit)
    assert best.nonzero_within(most) >= limit.part(limit.bits, widths.low).nonzero_within(most)
    assert best.nonzero_within(most) >= limit.part(limit.bits, widths.high).nonzero_within(most)


@pytest.mark.parametrize("width", [0.4, 0.6, 0.8, 1.0])
def test_a_trial_gets_the_sparsity_that_its_width_needs(width: float) -> None:
    limit = limit_of(1500)
    params = {"weight_bits": 4, "final_sparsity": 0.5, WIDTH: width}
    met = limit.met_by("gmp", params)
    kept = round((1 - met["final_sparsity"]) * 50_200)
    assert kept == pytest.approx(limit.part(4, width).nonzero_within(1500), abs=1)
    assert limit.met_by("gmp", {**params, "final_sparsity": 0.999})["final_sparsity"] == 0.999
    assert limit.met_by("dense", {"lr": 0.1}) == {"lr": 0.1}
    assert limit_of(1500, known=False).met_by("gmp", params) == limit.met_by("gmp", {**params, WIDTH: 1.0}) | params | {
        "final_sparsity": limit.met_by("gmp", {**params, WIDTH: 1.0})["final_sparsity"]
    }


def test_bits_that_cannot_fit_are_not_searched() -> None:
    space = load_space("lpss+bits", 0.95)
    for most, choices in ((1500, (4, 8, 2)), (5000, (4, 8, 2, 32))):  # 32-bit biases alone take 1,640 bytes
        (found,) = spaces_within(limit_of(most, known=False), [space])
        assert found.distributions["weight_bits"].choices == choices  # type: ignore[attr-defined]
        assert WIDTH not in found.distributions
    (narrow,) = spaces_within(limit_of(1500), [space])
    assert WIDTH in narrow.distributions
    dense = load_space("dense", 0.0)
    assert spaces_within(limit_of(1500, known=False), [dense]) == [dense]


def test_the_spaces_of_lpss_and_gmp_search_the_width_and_that_of_rigl_does_not() -> None:
    widths = Widths(0.4, 0.6, 0.8)
    lpss = widths.searched_in(load_space("lpss+bits", 0.95))
    assert lpss.distributions[WIDTH] == FloatDistribution(0.4, 0.8)
    assert lpss.priors[WIDTH].centre == 0.6
    assert lpss.fixed["drop"] == "ramp"
    assert not {"drop", "threshold.start", "feedback", "feedback_gain"} & {*lpss.distributions}
    assert "threshold.end" in lpss.distributions
    assert {*lpss.priors} <= {*lpss.distributions}
    assert len(lpss.first) == len(lpss.near) == 3  # without the published point
    assert all(point[WIDTH] == 0.6 and {*point} <= {*lpss.distributions} for point in lpss.first)
    gmp = widths.searched_in(load_space("gmp+bits", 0.95))
    assert WIDTH in gmp.distributions
    assert "drop" not in gmp.fixed
    rigl = load_space("rigl+bits", 0.95)
    assert widths.searched_in(rigl) is rigl
