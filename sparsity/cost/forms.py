"""Choose the form in which a packed file stores a tensor. The docstring of `read_packed` describes the forms."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from tune_sparsity.sparsity.cost.read_packed import BITMAP, COMPACT, DENSE, LARGEST_K, RICE

_Array = np.ndarray[Any, Any]


class Form(NamedTuple):
    """Describes how a file stores a tensor: the form, and the positions of the nonzero values.

    Attributes:
        form: one of the numbers DENSE, BITMAP and RICE, or one of these numbers plus COMPACT. With COMPACT, the file
            stores only a small matrix: the rows and columns that have nonzero values.
        k: the parameter of RICE.
        bits: the number of bits that the positions of the nonzero values take. With the form DENSE, which stores zeros
            like other values, it is the number of bits of the zeros. Values, bitmaps and other parts are each rounded
            up to whole bytes.
        places: the positions of the nonzero values in the flat tensor, in ascending order. With COMPACT these are
            positions in the small matrix.
        n: the number of all positions, with and without nonzero values.
        sets: with COMPACT, the rows and the columns of the small matrix, each as Runs. Otherwise an empty tuple.
    """

    form: int
    k: int
    bits: int
    places: _Array
    n: int
    sets: tuple[Runs, ...] = ()


class Runs(NamedTuple):
    """Describes the rows (or the columns) that have nonzero values, as runs of consecutive indices.

    Attributes:
        numbers: for each run its gap, then its length minus 1. The gap of the first run is the number of rows before
            it. The gap of a later run is the number of rows between this run and the previous run, minus 1. For runs of
            columns, columns are counted instead of rows. The array is empty if all rows have nonzero values.
        gap_k: the Rice parameter of the gaps.
        length_k: the Rice parameter of the lengths.
        bits: the number of bits that these runs take in the file.
    """

    numbers: _Array
    gap_k: int
    length_k: int
    bits: int


def varint_bytes(number: int) -> int:
    """Return the number of bytes that a number takes as a varint (see `read_packed`)."""
    return max(1, -(-number.bit_length() // 7))


def whole(bits: int) -> int:
    """Round a number of bits up to a multiple of 8."""
    return -(-bits // 8) * 8


def gaps_of(places: _Array) -> _Array:
    """Return, for each stored value, the number of zeros between the previous stored value and this one. For the first
    stored value, it is the number of all zeros before it.

    Args:
        places: the positions of the stored values, in ascending order.
    """
    return np.diff(places, prepend=-1) - 1


def as_matrix(values: _Array, rows: int) -> _Array:
    """Return the values of a tensor as a matrix with `rows` rows. If there are no values, the matrix is empty."""
    return values.reshape(max(1, rows), values.size // max(1, rows))


def flat_form(places: _Array, n: int, value_bits: int, *, dense: bool = True) -> Form:
    """Return the form in which a tensor takes the fewest bytes. COMPACT is not considered.

    Args:
        places: the positions of the stored values, in ascending order.
        n: the number of all positions.
        value_bits: the bits of a value.
        dense: whether zeros can be stored like other values, with the form DENSE. It is False for codes (see
            `few_bits`), which are never 0.
    """
    z = len(places)
    head = 8 * varint_bytes(z)
    k, quotients = _best_k(gaps_of(places))
    forms = [
        Form(BITMAP, 0, head + whole(n), places, n),
        Form(RICE, k, head + whole(quotients) + whole(z * k), places, n),
    ]
    if dense or z == n:
        forms.insert(0, Form(DENSE, 0, whole(n * value_bits) - whole(z * value_bits), places, n))
    return min(forms, key=lambda one: one.bits)


def used_rows(matrix: _Array) -> _Array:
    """Return a Boolean array with one entry for each row of a matrix: True if the row has a value other than 0."""
    used: _Array = np.logical_or.reduce(matrix, axis=1)
    return used


def best_form(mask: _Array, value_bits: int, *, dense: bool = True) -> Form:
    """Return the form in which a tensor takes the fewest bytes. If several forms take equally many, return the first of
    them in the order DENSE, BITMAP, RICE, COMPACT.

    Args:
        mask: a matrix that is True where the tensor has a stored value.
        value_bits: the bits of a value.
        dense: whether zeros can be stored like other values, with the form DENSE. It is False for codes (see
            `few_bits`), which are never 0.
    """
    places = np.flatnonzero(mask)
    plain = flat_form(places, mask.size, value_bits, dense=dense)
    used = used_rows(mask), used_rows(mask.T)
    if not len(places) or all(one.all() for one in used):
        return plain
    sets, (rows, columns) = tuple(map(_runs, used)), (np.cumsum(one) for one in used)
    row = places // mask.shape[1]
    column = places - row * mask.shape[1]
    small = (rows[row] - 1) * columns[-1] + columns[column] - 1
    inner = flat_form(small, int(rows[-1] * columns[-1]), value_bits, dense=False)
    bits = inner.bits + sum(one.bits for one in sets)
    compact = inner._replace(form=inner.form + COMPACT, bits=bits, sets=sets)
    return min(plain, compact, key=lambda one: one.bits)


def _runs(used: _Array) -> Runs:
    """Return the runs of True values in a Boolean array."""
    if used.all():
        return Runs(np.zeros(0, np.int64), 0, 0, 8)
    edges = np.flatnonzero(np.concatenate(([used[0]], used[1:] != used[:-1], [used[-1]])))
    numbers = np.concatenate((edges[:1], edges[1:] - edges[:-1] - 1))
    (gap_k, gap_bits), (length_k, length_bits) = _best_k(numbers[::2]), _best_k(numbers[1::2])
    z = len(numbers) // 2
    bits = 8 * varint_bytes(z) + 8 + whole(gap_bits + length_bits) + whole(z * (gap_k + length_k))
    return Runs(numbers, gap_k, length_k, bits)


def _best_k(numbers: _Array) -> tuple[int, int]:
    """Return the Rice parameter k for which the numbers take the fewest bytes, and the number of bits of their
    quotients."""
    z = len(numbers)
    middle = min((int(numbers.sum()) // max(1, z)).bit_length(), LARGEST_K)
    best: tuple[float, int, int] = (math.inf, 0, 0)
    # The bits before rounding to bytes rise in both directions from their minimum. Once they exceed `best`, no later k
    # can be better.
    for ks in (range(middle, -1, -1), range(middle + 1, LARGEST_K + 1)):
        for k in ks:
            quotients = int((numbers >> k).sum()) + z
            if quotients + z * k > best[0]:
                break
            best = min(best, (whole(quotients) + whole(z * k), k, quotients))
    return best[1:]
