"""Test signs that are packed as bits."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tune_sparsity.sparsity.binary.bits import pack, signs, unpack


@given(rows=st.integers(1, 5), n=st.integers(1, 70), seed=st.integers(0, 2**32 - 1))
def test_unpack_reverses_pack(rows: int, n: int, seed: int) -> None:
    positive = torch.rand(rows, n, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack(positive)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, -(-n // 8))
    assert torch.equal(unpack(packed, n), positive.float() * 2 - 1)
    left_over = np.unpackbits(packed.numpy(), axis=1, bitorder="little")[:, n:]
    assert not left_over.any()


def test_the_first_sign_is_the_lowest_bit_of_a_byte() -> None:
    positive = torch.tensor([[True, False, False, True, False, False, False, False, True]])
    assert pack(positive).tolist() == [[0b1001, 1]]


def test_zero_is_positive() -> None:
    x = torch.tensor([0.0, -0.0, 1e-30, -1e-30])
    assert signs(x).tolist() == [1, 1, 1, -1]
    assert x.tolist() == [0.0, -0.0, 1.0000000031710769e-30, -1.0000000031710769e-30]
