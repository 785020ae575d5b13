"""Tensors with few rows and columns are written as small matrices, and are read back bit for bit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Generator, Tensor

from tests.unit.sparsity.cost.test_round_trip import codes, same_bits, sparse
from tune_sparsity.sparsity.cost.forms import best_form, flat_form
from tune_sparsity.sparsity.cost.layout import Layout
from tune_sparsity.sparsity.cost.read_packed import COMPACT, DENSE, RICE, decode
from tune_sparsity.sparsity.cost.writer import encode, load
from tune_sparsity.sparsity.few_bits import Codes, Precision

sizes = st.one_of(st.integers(1, 40), st.sampled_from([128, 129, 800]))
shapes = st.tuples(sizes, sizes) | st.tuples(sizes, sizes, st.just(3), st.just(2)) | st.tuples(sizes)


def few_rows_and_columns(shape: tuple[int, ...], seed: int, together: int = 1) -> Tensor:
    """Return a mask that is 0 in about half of its rows (first dimension) and half of its columns (second dimension).

    Args:
        together: rows and columns are chosen in groups of this many neighbours.
    """
    generator, mask = Generator().manual_seed(seed), torch.ones(shape, dtype=torch.bool)
    for dim, size in enumerate(shape[:2]):
        used = torch.rand(-(-size // together), generator=generator).repeat_interleave(together)[:size] < 0.5
        mask &= used.view(-1, *[1] * (len(shape) - 1 - dim))
    return mask


def as_rows(mask: Tensor) -> np.ndarray:
    return mask.reshape(len(mask), -1).numpy()


def scattered(count: int) -> list[int]:
    return torch.randperm(500, generator=Generator().manual_seed(0))[:count].tolist()


def entropy(count: int) -> float:
    """Return the entropy, in bytes, of a random choice of `count` rows out of 500."""
    return math.log2(math.comb(500, count)) / 8


@given(shapes, st.sampled_from([0.1, 0.5, 1.0]), st.sampled_from([1, 3, 20]), st.integers(0, 2**31))
@example((500, 800), 0.4, 16, 0)
def test_weights_with_few_rows_and_columns_round_trip_exactly(
    shape: tuple[int, ...], density: float, together: int, seed: int
) -> None:
    weight = sparse(shape, density, seed).masked_fill(~few_rows_and_columns(shape, seed, together), 0)
    data, mask = encode({"w": weight}, {"w"}), weight != 0
    assert same_bits(load(data)["w"], weight)
    assert len(data) == Layout.of({"w": weight}, {"w"}).size({"w": mask})
    assert best_form(as_rows(mask), 32).bits <= flat_form(np.flatnonzero(mask), mask.numel(), 32).bits


@given(shapes, st.sampled_from([0.1, 0.5, 1.0]), st.sampled_from([8, 4, 2, 1]), st.integers(0, 2**31))
@example((500, 800), 1.0, 4, 0)
@example((500, 800), 0.4, 4, 0)
def test_codes_with_few_rows_and_columns_round_trip_exactly(
    shape: tuple[int, ...], density: float, bits: int, seed: int
) -> None:
    one, mask = codes(shape, density, bits, seed), few_rows_and_columns(shape, seed, 3)
    kept = one.codes * mask
    one = Codes(kept, one.scales * kept.reshape(shape[0], -1).any(1), bits)
    data = encode({"w": one}, ())
    found = decode(data)["w"]
    assert np.array_equal(found.codes(), kept)
    assert found.scales is not None
    assert np.array_equal(found.scales, one.scales)
    assert len(data) == Layout.of({"w": one.weight()}, {"w"}, Precision(bits)).size({"w": kept})


def test_a_small_matrix_is_stored_dense_or_with_rice_codes_by_its_density() -> None:
    rows, columns = np.arange(500)[:, None], np.arange(800)
    small = (rows < 32) & (columns % 50 < 16)
    assert best_form(small, 32).form == COMPACT + DENSE
    assert best_form(small & ((rows + columns) % 5 == 0), 32).form == COMPACT + RICE


@pytest.mark.parametrize(
    ("used", "most"),
    [
        (range(500), 1),  # all 500 rows are used
        # A byte for the number of runs, a byte for the two Rice parameters k, then two quotients and two remainders.
        (range(32), 6),
        (range(100, 356), 6),
        (scattered(32), 1.15 * entropy(32) + 3),
        (scattered(160), 1.15 * entropy(160) + 3),
        (scattered(400), 1.15 * entropy(400) + 3),
    ],
)
def test_the_set_of_used_rows_takes_few_bytes(used: Sequence[int], most: float) -> None:
    form = best_form(np.isin(np.arange(500), used)[:, None] & (np.arange(4) < 3), 32)
    assert form.form == COMPACT + DENSE
    assert form.sets[0].bits // 8 <= most


def test_zero_rows_and_columns_hardly_enlarge_the_packed_file_of_a_network() -> None:
    large, small = {"a": (500, 800), "b": (10, 500)}, {"a": (32, 256), "b": (10, 32)}
    few = {name: codes(shape, 0.4, 4, 0) for name, shape in small.items()}
    wide = {}
    for name, (rows, columns) in small.items():
        found, scales = torch.zeros(large[name], dtype=torch.int8), torch.zeros(large[name][0]).half()
        found[:rows, :columns], scales[:rows] = few[name].codes, few[name].scales
        wide[name] = Codes(found, scales, 4)
    assert len(encode(wide, ())) - len(encode(few, ())) < 20
