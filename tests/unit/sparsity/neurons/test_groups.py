"""Checks which groups of neurons are removed first, how many groups are removed, and their masks."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.helpers.examples import needs_gpu
from tests.helpers.problems import normal
from tests.unit.sparsity.neurons import networks
from tune_sparsity.sparsity import prunable_layers
from tune_sparsity.sparsity.cost.multiply_adds import count_uses
from tune_sparsity.sparsity.neurons.finding import neuron_groups
from tune_sparsity.sparsity.neurons.groups import NeuronGroups
from tune_sparsity.sparsity.neurons.importance import mean_squares
from tune_sparsity.sparsity.neurons.selection import NeuronSelection, sparsity_of_macs

pytest.importorskip("torch_pruning")

INPUTS, FIRST, SECOND, OUTPUTS = 12, 20, 10, 4  # neurons of networks.mlp, with two hidden layers


def found(model: nn.Module, example: Tensor) -> tuple[NeuronGroups, list[Tensor]]:
    layers = prunable_layers(model, sphere=False)
    return neuron_groups(model, layers, example), [layer.weight.detach().abs().log2() for layer in layers]


MLP = networks.mlp()
GROUPS, LOGS = found(MLP, torch.randn(3, INPUTS))


def neurons_left(masks: Sequence[Tensor]) -> tuple[int, int]:
    """Return, for each of the two hidden layers, how many neurons have an active weight. Check that exactly these
    neurons have active weights in the next layer."""
    first, second, third = masks
    assert torch.equal(first.any(1), second.any(0))
    assert torch.equal(second.any(1), third.any(0))
    return int(first.any(1).sum()), int(second.any(1).sum())


def kept(first: int, second: int) -> int:
    return INPUTS * first + first * second + second * OUTPUTS


@given(seed=st.integers(0, 2**32 - 1), sparsity=st.floats(0, 0.96))
def test_no_more_neurons_are_removed_than_the_sparsity_needs(seed: int, sparsity: float) -> None:
    logs = [normal(seed + at, *log.shape).float() for at, log in enumerate(LOGS)]
    masks = GROUPS.masks(logs, sparsity)
    first, second = neurons_left(masks)
    total = kept(FIRST, SECOND)
    assert [int(mask.sum()) for mask in masks] == [INPUTS * first, first * second, second * OUTPUTS]
    assert total - kept(first, second) >= Fraction(repr(sparsity)) * total
    # If the last removed neuron had stayed, the sparsity would be too low.
    values = values_of(logs)
    gone = ~GROUPS.alive(masks)[:-1]
    if gone.any():
        last = int(values.masked_fill(~gone, -1).argmax())
        more = (first + 1, second) if last < FIRST else (first, second + 1)
        assert total - kept(*more) < Fraction(repr(sparsity)) * total
        stays = values[~gone].sort().values
        # The best neuron of each of the two layers stays, also if it is less important than a removed neuron.
        assert values[gone].max() <= stays[min(2, len(stays) - 1)]


def values_of(logs: Sequence[Tensor]) -> Tensor:
    """Return the importance of each neuron of the two hidden layers: the mean square of its row times the mean square
    of its column in the next layer, each divided by the mean square of its layer."""
    squares = [(2 * log.double()).exp2() for log in logs]
    rows = [square.mean(1) / square.mean() for square in squares]
    columns = [square.mean(0) / square.mean() for square in squares]
    return torch.cat([rows[0] * columns[1], rows[1] * columns[2]])


def test_importance_multiplies_the_mean_squares_of_the_row_and_the_column() -> None:
    torch.testing.assert_close(GROUPS.importance(LOGS), values_of(LOGS), rtol=1e-5, atol=0)


def test_importance_uses_a_following_normalisations_factor_and_not_the_row() -> None:
    model = nn.Sequential(nn.Linear(INPUTS, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, OUTPUTS))
    groups, logs = found(model, torch.randn(3, INPUTS))
    factors = normal(5, 8)
    columns = (2 * logs[1].double()).exp2().mean(0)
    expected = factors**2 / (factors**2).mean() * columns / columns.mean()
    assert [scale.name for scale in groups.scales] == ["1"]
    torch.testing.assert_close(groups.importance(logs, [factors]), expected, rtol=1e-5, atol=0)
    scaled = [logs[0] + normal(6, 8).float()[:, None], logs[1]]
    torch.testing.assert_close(groups.importance(scaled, [factors]), expected, rtol=1e-5, atol=0)


def test_importance_does_not_underflow() -> None:
    log = normal(0, 6, 5)
    assert all(map(torch.equal, mean_squares(log - 1024), mean_squares(log)))
    rows, columns = mean_squares(torch.full((6, 5, 2), -torch.inf))
    assert not rows.any()
    assert not columns.any()


def test_scaling_rows_and_inversely_the_next_columns_keeps_the_importance() -> None:
    scale = 4 * normal(1, FIRST).float()
    scaled = [LOGS[0] + scale[:, None], LOGS[1] - scale, LOGS[2]]
    before, after = values_of(LOGS)[:FIRST], values_of(scaled)[:FIRST]
    torch.testing.assert_close(after / after.sum(), before / before.sum())


def test_every_layer_keeps_a_neuron() -> None:
    masks = GROUPS.masks(LOGS, GROUPS.highest_sparsity)
    assert neurons_left(masks) == (1, 1)
    assert GROUPS.highest_sparsity == 1 - kept(1, 1) / kept(FIRST, SECOND)
    with pytest.raises(ValueError, match=r"with the fewest neurons in each layer 96\.5% of the weights are zero"):
        GROUPS.masks(LOGS, 0.99)


@given(seed=st.integers(0, 2**32 - 1), sparsity=st.floats(0, 0.7))
def test_layers_with_bundles_of_four_keep_a_multiple_of_four_neurons_or_all(seed: int, sparsity: float) -> None:
    logs = [normal(seed + at, *log.shape).float() for at, log in enumerate(LOGS)]
    groups = GROUPS.bundled(4)
    first, second = neurons_left(groups.masks(logs, sparsity))
    assert first in range(4, FIRST + 1, 4)
    assert second in (4, 8, SECOND)
    total = kept(FIRST, SECOND)
    assert total - kept(first, second) >= Fraction(repr(sparsity)) * total
    # The most important neurons of each layer stay. With one more bundle of four neurons in at least one of the layers,
    # the sparsity would be too low.
    alive, values = groups.alive(groups.masks(logs, sparsity))[:-1], values_of(logs)
    for part, count in ((slice(None, FIRST), first), (slice(FIRST, None), second)):
        assert values[part][alive[part]].sort().values.equal(values[part].sort().values[-count:])
    more = [(first + 4, second)] * (first < FIRST) + [(first, min(SECOND, second + 4))] * (second < SECOND)
    assert not more or any(total - kept(*one) < Fraction(repr(sparsity)) * total for one in more)


def test_a_layer_with_fewer_neurons_than_one_bundle_keeps_all_neurons() -> None:
    groups = GROUPS.bundled(16)
    assert groups.whole == (
        *GROUPS.whole,
        (GROUPS.layers[1].name, f"its {SECOND} neurons form only one bundle of up to 16"),
    )
    assert GROUPS.bundled(4).whole == GROUPS.whole
    assert neurons_left(groups.masks(LOGS, groups.highest_sparsity)) == (16, SECOND)
    assert groups.fewest == [INPUTS * 16, 16 * SECOND, SECOND * OUTPUTS]


def test_channels_of_a_residual_sum_keep_a_multiple_of_four() -> None:
    model = networks.resnet()
    groups, logs = found(model, torch.randn(2, 3, 8, 8))
    masks = groups.bundled(4).masks(logs, 0.5)
    outputs = [int(mask.flatten(1).any(1).sum()) for mask in masks[:-1]]
    assert all(count % 4 == 0 for count in outputs)
    assert min(outputs) < max(len(mask) for mask in masks)


def test_no_neuron_is_removed_for_a_sparsity_of_zero() -> None:
    assert all(mask.all() for mask in GROUPS.masks(LOGS, 0.0))


def test_neurons_that_are_already_masked_are_removed_first() -> None:
    few = GROUPS.masks(LOGS, 0.3)
    others = [-log for log in LOGS]
    more = GROUPS.masks(others, 0.5, active=few)
    assert not (GROUPS.alive(more) & ~GROUPS.alive(few)).any()
    assert (GROUPS.alive(GROUPS.masks(others, 0.5)) & ~GROUPS.alive(few)).any()


def test_equal_importances_do_not_remove_more_neurons_than_needed() -> None:
    equal = [torch.zeros_like(log) for log in LOGS]
    masks = GROUPS.masks(equal, 0.5)
    first, second = neurons_left(masks)
    assert kept(FIRST, SECOND) - kept(first, second) >= kept(FIRST, SECOND) / 2
    assert kept(FIRST, SECOND) - kept(first + 1, second) < kept(FIRST, SECOND) / 2


def test_masks_have_the_dtype_of_the_magnitudes() -> None:
    assert {mask.dtype for mask in GROUPS.masks([log.bfloat16() for log in LOGS], 0.5)} == {torch.bfloat16}


@pytest.mark.gpu
@needs_gpu
def test_masks_are_the_same_on_a_gpu() -> None:
    masks = GROUPS.masks([log.cuda() for log in LOGS], 0.5)
    assert all(mask.is_cuda for mask in masks)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(masks, GROUPS.masks(LOGS, 0.5), strict=True))


def test_a_channel_before_a_flattening_masks_all_its_columns() -> None:
    groups, logs = found(networks.lenet(), torch.randn(2, 1, 28, 28))
    masks = groups.masks(logs, 0.8)
    channels, more = (int(mask.flatten(1).any(1).sum()) for mask in masks[:2])
    hidden = int(masks[2].any(1).sum())
    assert [int(mask.sum()) for mask in masks] == [25 * channels, 25 * channels * more, 16 * more * hidden, 10 * hidden]
    assert torch.equal(masks[1].flatten(1).any(1).repeat_interleave(16), masks[2].any(0))


def test_a_selection_by_multiply_adds_ends_within_one_channel_below_the_limit() -> None:
    model, example = networks.lenet(), torch.randn(2, 1, 28, 28)
    layers = prunable_layers(model, sphere=False)
    groups, logs = found(model, example)
    uses = count_uses(model, layers, example)
    assert uses is not None
    dense = uses.macs({layer.name: layer.weight.numel() for layer in layers})
    # The multiply-adds of a channel of the first layer: those that compute it, and those that read it.
    largest = 24 * 24 * 25 + 8 * 8 * 25 * 16
    for macs in (dense, dense // 2, dense // 4):
        selection = NeuronSelection(groups=groups, layers=layers, scales=(), uses=uses)
        masks = selection(logs, [False] * len(layers), sparsity_of_macs(uses, layers, macs))
        counts = {layer.name: int(mask.sum()) for layer, mask in zip(layers, masks, strict=True)}
        assert macs - largest < uses.macs(counts) <= macs


def test_a_multiply_add_limit_below_all_networks_selects_the_smallest_network() -> None:
    model, example = networks.lenet(), torch.randn(2, 1, 28, 28)
    layers = prunable_layers(model, sphere=False)
    groups, logs = found(model, example)
    selection = NeuronSelection(groups=groups, layers=layers, scales=(), uses=count_uses(model, layers, example))
    masks = selection(logs, [False] * len(layers), 1.0)
    assert [int(mask.sum()) for mask in masks] == groups.fewest


def test_a_selection_takes_and_returns_tensors_with_neurons_as_rows() -> None:
    model = networks.transposed()
    layers = prunable_layers(model, sphere=False)
    groups, logs = found(model, torch.randn(2, 3, 8, 8))
    rows = [layer.turned(log) for layer, log in zip(layers, logs, strict=True)]
    masks = NeuronSelection(groups=groups, layers=layers, scales=[torch.ones(12)])(rows, [False] * len(layers), 0.5)
    assert [mask.shape for mask in masks] == [row.shape for row in rows]
    turned = [layer.turned(mask) for layer, mask in zip(layers, groups.masks(logs, 0.5), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(masks, turned, strict=True))
