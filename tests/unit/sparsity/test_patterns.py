"""Patterns of zeros: plain loops check that masks have the pattern and that the sparsity is exact."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.helpers.examples import examples
from tests.helpers.problems import normal
from tune_sparsity.sparsity import METHODS, LayerRules, LpssSettings, lpss, prunable_layers
from tune_sparsity.sparsity.distributions import DISTRIBUTIONS
from tune_sparsity.sparsity.layers import left_dense
from tune_sparsity.sparsity.masks import zeros_for
from tune_sparsity.sparsity.patterns import UNSTRUCTURED, Block, Neurons, NofM, Pattern, pattern_from
from tune_sparsity.sparsity.selection import Selection

kernels = st.sampled_from([(), (2,), (3, 2)])
distributions = st.sampled_from(DISTRIBUTIONS)
seeds = st.integers(0, 2**32 - 1)
some_of = st.tuples(st.integers(1, 3), st.integers(2, 6)).filter(lambda pair: pair[0] < pair[1])
blocks = st.tuples(st.integers(1, 4), st.integers(1, 4)).filter(lambda pair: pair != (1, 1))


def groups_of(mask: Tensor, m: int) -> list[Tensor]:
    """Divide the inputs of each neuron into groups of M consecutive inputs. Return the entries of each group,
    separately for each place of the kernel."""
    rows = mask.flatten(2) if mask.dim() > 2 else mask.unsqueeze(-1)
    starts = range(0, rows.shape[1], m)
    return [
        rows[row, start : start + m, k] for row, start, k in product(range(len(rows)), starts, range(rows.shape[2]))
    ]


def blocks_of(mask: Tensor, block: Block) -> list[Tensor]:
    rows = mask.flatten(2) if mask.dim() > 2 else mask.unsqueeze(-1)
    tops, lefts = range(0, rows.shape[0], block.rows), range(0, rows.shape[1], block.inputs)
    return [
        rows[top : top + block.rows, left : left + block.inputs, k]
        for top, left, k in product(tops, lefts, range(rows.shape[2]))
    ]


@examples(150)
@given(some_of, st.lists(st.tuples(st.integers(1, 8), st.integers(1, 6), kernels), min_size=1, max_size=4), seeds,
       st.floats(0, 1), distributions, st.booleans(), st.lists(st.booleans(), min_size=4, max_size=4))  # fmt: skip
def test_n_of_m_masks_are_exact_if_sparsity_is_at_least_1_minus_n_over_m(
    pair: tuple[int, int],
    sizes: list[tuple[int, int, tuple[int, ...]]],
    seed: int,
    above: float,
    distribution: str,
    masked: bool,
    sphere: list[bool],
) -> None:
    pattern = NofM(*pair)
    logs = [normal(seed + i, rows, groups * pattern.m, *kernel) for i, (rows, groups, kernel) in enumerate(sizes)]
    sparsity = min(0.999, pattern.least + above * (1 - pattern.least))
    selection = Selection(distribution, a_neuron=1, pattern=pattern)
    active = selection(logs[::1], sphere[: len(logs)], pattern.least) if masked else None
    masks = selection(logs, sphere[: len(logs)], sparsity, active)
    total = sum(log.numel() for log in logs)
    assert sum(int(mask.sum()) for mask in masks) == total - zeros_for(sparsity, total)
    assert all(group.sum() <= pattern.n for mask in masks for group in groups_of(mask, pattern.m))


def test_n_of_m_keeps_the_n_largest_of_each_group_at_sparsity_1_minus_n_over_m() -> None:
    weight = torch.tensor([[4.0, 1.0, 3.0, 2.0, 8.0, 7.0, 6.0, 5.0], [1.0, 2.0, 3.0, 4.0, 0.0, 9.0, 0.5, 0.1]])
    (mask,) = Selection(pattern=NofM(2, 4))([weight.log2()], [False], 0.5)
    assert mask.tolist() == [[1, 0, 1, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 1, 1, 0]]


def test_n_of_m_prunes_small_surplus_weights_below_sparsity_1_minus_n_over_m() -> None:
    weight = torch.tensor([[4.0, 1.0, 3.0, 2.0, 8.0, 7.0, 6.0, 5.0]])  # not allowed: 1, 2, 6, 5
    selection = Selection(pattern=NofM(2, 4))
    zeros = [selection([weight.log2()], [False], k / 8)[0] for k in range(5)]
    assert [sorted(weight[mask == 0].tolist()) for mask in zeros] == [[], [1], [1, 2], [1, 2, 5], [1, 2, 5, 6]]


@examples(150)
@given(blocks, st.lists(st.tuples(st.integers(4, 11), st.integers(4, 11), kernels), min_size=1, max_size=4), seeds,
       st.floats(0, 0.99), distributions, st.lists(st.booleans(), min_size=4, max_size=4))  # fmt: skip
def test_blocks_are_pruned_whole_and_a_global_total_is_exact_to_one_block(
    pair: tuple[int, int],
    sizes: list[tuple[int, int, tuple[int, ...]]],
    seed: int,
    sparsity: float,
    distribution: str,
    sphere: list[bool],
) -> None:
    pattern = Block(*pair)
    logs = [normal(seed + i, rows, inputs, *kernel) for i, (rows, inputs, kernel) in enumerate(sizes)]
    masks = Selection(distribution, a_neuron=1, pattern=pattern)(logs, sphere[: len(logs)], sparsity)
    assert all(block.unique().numel() == 1 for mask in masks for block in blocks_of(mask, pattern))
    total = sum(log.numel() for log in logs)
    beyond = total - zeros_for(sparsity, total) - sum(int(mask.sum()) for mask in masks)
    assert 0 <= beyond < pattern.rows * pattern.inputs or (distribution != "global" and beyond >= 0)


@given(blocks, st.integers(2, 9), st.integers(2, 9), kernels, seeds)
def test_the_rank_of_a_block_is_the_root_mean_square_of_its_weights(
    pair: tuple[int, int], rows: int, inputs: int, kernel: tuple[int, ...], seed: int
) -> None:
    pattern, weight = Block(*pair), normal(seed, rows, inputs, *kernel).double()
    ranks, sizes = pattern.pooled(weight.abs().log2())
    found = ranks.flatten(2).permute(0, 1, 2).flatten() if kernel else ranks.flatten()
    expected = blocks_of(weight, pattern)
    assert sizes.flatten().tolist() == [block.numel() for block in expected]
    means = torch.stack([block.square().mean().sqrt() for block in expected])
    assert torch.allclose(found.exp2(), means, rtol=1e-9, atol=0)


def test_every_row_of_blocks_keeps_a_block_if_enough_weights_are_kept() -> None:
    log = torch.zeros(6, 6)
    log[:2] = 10.0
    selection = Selection(a_neuron=1, pattern=Block(2, 2))
    (mask,) = selection([log], [False], 0.6)
    assert mask.sum() == 12
    assert mask.sum(1).tolist() == [2, 2, 2, 2, 2, 2]
    (mask,) = selection([log], [False], 0.77)  # too few weights for one block in each row of blocks
    assert mask.sum(1).tolist() == [4, 4, 0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("text", ["2:4", "block:2x3"])
def test_patterns_work_with_all_float_dtypes_and_with_zero_weights(text: str, dtype: torch.dtype) -> None:
    weight = torch.zeros(6, 12, dtype=dtype)
    weight[0, :2] = 1.0
    (mask,) = Selection(a_neuron=1, pattern=pattern_from(text))([weight.log2()], [True], 0.5)
    assert mask.sum() == 36
    assert mask[0, :2].tolist() == [1, 1]


patterns = [some_of.map(lambda pair: NofM(*pair)), blocks.map(lambda pair: Block(*pair)), st.just(UNSTRUCTURED)]


@given(st.one_of(*patterns, st.integers(1, 64).map(Neurons)))
def test_the_text_of_a_pattern_is_parsed_to_the_same_pattern(pattern: Pattern) -> None:
    assert pattern_from(str(pattern)) == pattern


@pytest.mark.parametrize(
    "text", ["4:2", "2:2", "0:4", "block:0x4", "block:1x1", "block:4", "block", "neuron", "neurons:0", "", "2:4 "]
)
def test_a_text_that_is_no_pattern_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"pattern|it takes") as found:
        pattern_from(text)
    assert "\n" not in str(found.value)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(6 * 16, 12))


@pytest.mark.parametrize(
    ("pattern", "dense"),
    [
        ("2:4", {"0.weight": "its 1 inputs are no multiple of 4"}),
        ("block:4x2", {"0.weight": "its 8 neurons x 1 inputs are less than a block"}),
    ],
)
def test_layers_that_do_not_fit_stay_dense_and_are_named(pattern: str, dense: dict[str, str]) -> None:
    rules = LayerRules(pattern=pattern)  # type: ignore[arg-type]
    assert [layer.name for layer in prunable_layers(network(), rules)] == ["2.weight", "4.weight"]
    assert {one.name: one.reason for one in left_dense(network(), rules)} == dense


def test_a_network_without_a_layer_that_fits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nothing to prune: .*its 8 neurons x 1 inputs are less than a block"):
        prunable_layers(network(), LayerRules(pattern=Block(32, 2)))


@pytest.mark.parametrize("method", ["lpss", "gmp"])
@pytest.mark.parametrize("text", ["2:4", "1:4", "block:2x4"])
def test_the_weights_have_the_pattern_after_a_training(method: str, text: str) -> None:
    model, pattern = network(), pattern_from(text)
    params = {"final_sparsity": 0.8, **({"p": 1.5} if method == "lpss" else {})}
    rules = LayerRules(pattern=pattern)
    generator = torch.Generator().manual_seed(0)
    sparse = METHODS[method].build(model, params, total_steps=30, generator=generator, rules=rules)
    for _ in range(30):
        sparse.zero_grad()
        model(torch.randn(4, 1, 8, 8)).square().mean().backward()
        sparse.step()
    weights = [model[2].weight.detach(), model[4].weight.detach()]
    zeros, total = sparse.zeros()
    assert zeros == sum(int((weight == 0).sum()) for weight in weights)
    assert 0 <= zeros - zeros_for(0.8, total) < (1 if isinstance(pattern, NofM) else 8)
    for weight in weights:
        if isinstance(pattern, NofM):
            assert all((group != 0).sum() <= pattern.n for group in groups_of(weight, pattern.m))
        elif isinstance(pattern, Block):
            assert all((block != 0).unique().numel() == 1 for block in blocks_of(weight, pattern))
    assert (model[0].weight != 0).all()


def test_a_sparsity_that_the_pattern_does_not_reach_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the pattern 2:4 does not allow a sparsity of 0.3: the lowest is 0.5"):
        lpss(network(), LpssSettings(0.3, 1.5), total_steps=10, rules=LayerRules(pattern=NofM(2, 4)))


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if not one.patterned])
def test_methods_without_patterns_refuse_them(method: str) -> None:
    with pytest.raises(ValueError, match=f"the zeros of {method} cannot have the pattern 2:4"):
        METHODS[method].build(
            network(), {}, total_steps=10, generator=torch.Generator(), rules=LayerRules(pattern=NofM(2, 4))
        )


def test_small_layers_keep_a_block_and_the_total_stays_exact_to_one_block() -> None:
    torch.manual_seed(0)
    logs = [torch.randn(300, 64), torch.randn(100, 300), torch.randn(10, 100)]
    for sparsity in (0.99, 0.996):
        masks = Selection(a_neuron=1, pattern=Block(8, 8))(logs, [True, True, False], sparsity)
        kept = [int(mask.sum()) for mask in masks]
        assert min(kept) > 0
        assert 0 <= 50_200 - zeros_for(sparsity, 50_200) - sum(kept) < 64
    masks = Selection(a_neuron=1, pattern=Block(8, 8))(logs, [True, True, False], 0.999)  # no block fits
    assert sum(int(mask.sum()) for mask in masks) <= 51


def test_a_layer_pruned_in_blocks_needs_at_least_one_block_of_weights() -> None:
    assert math.prod((4, 2)) == Block(4, 2).least_weights(torch.Size((10, 10)))
    assert NofM(2, 4).least_weights(torch.Size((10, 8))) == UNSTRUCTURED.least_weights(torch.Size((10, 8))) == 0
