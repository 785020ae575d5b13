"""Read a network from a file that `tune-sparsity export --format packed` writes.

This module needs only Python and NumPy. Copy it into the program that uses the network::

    arrays = read("best.packed")  # {"0.weight": array, "0.bias": array, ...}

This is the format of a file. All numbers are little-endian. The first bit of a byte is its lowest bit. A varint is a
number with seven bits in each byte, the lowest bits first. The eighth bit is set in all bytes except the last. A file
consists of

    "TSP1", varint: the number of tensors, the tensors, CRC-32 of all bytes before it (4 bytes)

A tensor is

    varint: the length of its name, its name in UTF-8, a byte: its type as an index in `TYPES`, a byte: its form + 16 k
    (k is explained below), a byte: the number of its dimensions, varints: the dimensions, then by its form:
    0  DENSE    its n values
    1  BITMAP   varint: z, n bits: which values are stored, its z values
    2  RICE     varint: z, z quotients, z remainders, its z values
    3  SAME     varint: the index, in this file, of an equal tensor
    4  COMPACT  the set of its rows, the set of its columns, then a small matrix in the form DENSE
    5  COMPACT  the same two sets, then a small matrix in the form BITMAP
    6  COMPACT  the same two sets, then a small matrix in the form RICE

Here n is the number of the tensor's values, and z the number of its stored values. The number k, from 0 to 15, is the
parameter of the form RICE, and 0 for all other forms.

Values that are not stored are 0. Stored values are not 0, except in the form 0 (DENSE). With the form RICE, the number
of zeros before a stored value is quotient * 2^k + remainder. A quotient q is written as q bits 0, then a bit 1. Each
remainder has k bits. The quotients, the remainders, a bitmap and the values each begin at a new byte, and unused bits
are 0.

The rows of a tensor are its first dimension, and its columns are all others together. With the form COMPACT, all stored
values are in a set of rows and a set of columns. The small matrix consists of these rows and columns, and n is the
number of its values. A set consists of runs of consecutive indices. It is written as

    varint: z, the number of its runs. If z is 0, the set contains all rows (or all columns), and ends here
    a byte: the k of the gaps + 16 times the k of the lengths, then 2 z quotients and 2 z remainders

Each run has two numbers: first the gap before it, then its length minus 1. The numbers of all runs follow each other,
and are coded as in the form RICE. All gaps have one k, and all lengths have another k. The first gap is the number of
indices before the first run. Any other gap is the number of indices between two runs, minus 1.

Values of the types "codes8", "codes4", "codes2" and "codes1" have 8, 4, 2 and 1 bits. The highest bit is the sign (1
means minus), and the others are the magnitude minus 1. Before codes, the file contains scales in float16: one for each
row that has a stored value. A weight is the scale of its row times its code. Values of the type "signs" are bits: 1
stands for +1, and 0 for -1.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = b"TSP1"
DENSE, BITMAP, RICE, SAME, COMPACT = range(5)
TYPES = {
    **{name: np.dtype(name).newbyteorder("<") for name in ("float32", "float16")},
    "bfloat16": np.dtype("<u2"),  # NumPy has no bfloat16: the bits are the upper half of a float32
    **{name: np.dtype(name).newbyteorder("<") for name in ("float64", "int64", "int32", "int16", "int8", "uint8")},
    **{name: np.dtype(name).newbyteorder("<") for name in ("bool", "uint16", "uint32", "uint64")},
    **{name: np.dtype(name).newbyteorder("<") for name in ("complex64", "complex128")},
    **{f"codes{bits}": np.dtype(np.int8) for bits in (8, 4, 2, 1)},
    "signs": np.dtype(np.int8),
}
"""A dict from the names of the types to the NumPy dtypes of their values. The index of a type in this dict is its
number in a file."""
BITS = {"codes8": 8, "codes4": 4, "codes2": 2, "codes1": 1}
MOST_DIMENSIONS, MOST_VALUES, LARGEST_K = 16, 2**48, 15
_NAMES = tuple(TYPES)
_Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Packed:
    """Contains a tensor as the file stores it.

    Attributes:
        type: a name in `TYPES`.
        shape: the dimensions.
        index: the positions of the stored values in the flat tensor, in ascending order. If None, all values are
            stored.
        values: the stored values. Codes and signs are int8. bfloat16 values are uint16, the upper 16 bits of a float32.
        scales: for codes, a float16 scale for each row: 0 if the row has no stored value. The attribute is None for
            other types.
    """

    type: str
    shape: tuple[int, ...]
    index: _Array | None
    values: _Array
    scales: _Array | None = None

    def codes(self) -> _Array:
        """Return the stored values in the tensor's shape, with zeros at all other positions."""
        if self.index is None:
            return self.values.reshape(self.shape)
        try:
            dense = np.zeros(self.shape, self.values.dtype)
        except MemoryError:
            raise ValueError(f"a tensor of the shape {self.shape} does not fit into memory") from None
        dense.reshape(-1)[self.index] = self.values
        return dense

    def array(self) -> _Array:
        """Return the tensor. Codes are multiplied by the scales of their rows and become float32. bfloat16 also becomes
        float32. Other types do not change."""
        dense = self.codes()
        if self.type == "bfloat16":
            return (dense.astype("<u4") << 16).view("<f4")
        if self.scales is None:
            return dense
        scales = self.scales.astype(np.float32).reshape(-1, *[1] * (len(self.shape) - 1))
        weights: _Array = dense.astype(np.float32) * scales.reshape(scales.shape if self.shape else ())
        return weights


def read(path: str | PathLike[str]) -> dict[str, _Array]:
    """Read a packed file. Return a dict from the names of its tensors to NumPy arrays.

    Raises:
        ValueError: if the file is damaged.
        OSError: if the file cannot be read.
    """
    return {name: one.array() for name, one in decode(Path(path).read_bytes()).items()}


def decode(data: bytes) -> dict[str, Packed]:
    """Decode the bytes of a packed file. Return a dict from the names of its tensors to instances of Packed, in the
    order of the file. Raise ValueError if the file is damaged."""
    if len(data) < len(MAGIC) + 5 or data[: len(MAGIC)] != MAGIC:
        raise ValueError("not a packed file: its first bytes are not TSP1, or it is too short")
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise ValueError("the packed file is damaged: its checksum is wrong")
    reader = _Reader(data[:-4], len(MAGIC))
    tensors: dict[str, Packed] = {}
    same: dict[str, int] = {}
    for _ in range(reader.varint()):
        name, one, other = reader.tensor()
        if name in tensors:
            raise ValueError(f"the packed file is malformed: it has two tensors {name!r}")
        tensors[name] = one
        if other is not None:
            same[name] = other
    reader.end()
    names = list(tensors)
    for name, place in same.items():
        if place >= len(names) or names[place] in same:
            raise ValueError(f"the packed file is malformed: {name!r} refers to a tensor that is not in the file")
        other_one = tensors[names[place]]
        if (other_one.type, other_one.shape) != (tensors[name].type, tensors[name].shape):
            raise ValueError(f"the packed file is malformed: {name!r} refers to a tensor of another type or shape")
        tensors[name] = other_one
    return tensors


@dataclass(frozen=True)
class _Set:
    """A set of rows or columns, as runs of neighbours.

    Attributes:
        starts: the first index of each run.
        ends: the number of members up to the end of each run.
    """

    starts: _Array
    ends: _Array

    @property
    def count(self) -> int:
        """Return the number of members."""
        return int(self.ends[-1])

    def places(self, members: _Array) -> _Array:
        """Return the rows or columns that these members are. The members of a set are numbered from 0."""
        run = np.searchsorted(self.ends, members, "right")
        before = np.concatenate(([0], self.ends))[run]
        return self.starts[run] + members - before


class _Reader:
    """Reads the bytes of a file from a given position on."""

    def __init__(self, data: bytes, place: int) -> None:
        self._data, self._place = data, place

    def tensor(self) -> tuple[str, Packed, int | None]:
        """Read a tensor. Return its name, the tensor, and the index of an equal tensor or None."""
        name = self._name()
        kind, form = self._byte(), self._byte()
        form, k = form & 15, form >> 4
        if kind >= len(_NAMES) or form > COMPACT + RICE or (k and form % COMPACT != RICE):
            raise ValueError(f"the packed file is malformed: {name!r} has an unknown type or form")
        shape, n = self._shape()
        if form == SAME:
            return name, Packed(_NAMES[kind], shape, None, np.zeros(0)), self.varint()
        if form == DENSE:
            index = None
        elif form < COMPACT:
            index = self._index(form, k, n)
        else:
            index = self._compact_index(form - COMPACT, k, n, shape[0] if shape else 1)
        return name, self._values(_NAMES[kind], shape, index, n), None

    def end(self) -> None:
        if self._place != len(self._data):
            raise ValueError("the packed file is malformed: bytes are left over")

    def varint(self) -> int:
        value, shift = 0, 0
        while (byte := self._byte()) >= 128:
            value, shift = value | (byte & 127) << shift, shift + 7
            if shift > 42:
                raise ValueError("the packed file is malformed: a number is too large")
        if not byte and shift:
            raise ValueError("the packed file is malformed: a number has more bytes than necessary")
        return min(value | byte << shift, MOST_VALUES)

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _bytes(self, count: int) -> bytes:
        if count > len(self._data) - self._place:
            raise ValueError("the packed file is malformed: it ends too early")
        self._place += count
        return self._data[self._place - count : self._place]

    def _bits(self, count: int) -> _Array:
        """Read `count` bits, and skip the rest of the last byte."""
        bits = np.unpackbits(np.frombuffer(self._bytes((count + 7) // 8), np.uint8), bitorder="little")
        if bits[count:].any():
            raise ValueError("the packed file is malformed: unused bits are not 0")
        return bits[:count]

    def _name(self) -> str:
        try:
            return self._bytes(self.varint()).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError("the packed file is malformed: a name is not valid UTF-8") from None

    def _shape(self) -> tuple[tuple[int, ...], int]:
        """Read the dimensions of a tensor. Return them and their product."""
        count = self._byte()
        if count > MOST_DIMENSIONS:
            raise ValueError("the packed file is malformed: a tensor has too many dimensions")
        shape, n = tuple(self.varint() for _ in range(count)), 1
        for size in shape:
            n *= size or 1
        if n >= MOST_VALUES:
            raise ValueError("the packed file is malformed: a tensor is too large")
        return shape, n if all(shape) else 0

    def _index(self, form: int, k: int, n: int) -> _Array:
        """Read the positions of the stored values among n values."""
        z = self.varint()
        if z > n:
            raise ValueError("the packed file is malformed: a tensor has more stored values than entries")
        if form == BITMAP:
            index = np.flatnonzero(self._bits(n))
            if len(index) != z:
                raise ValueError("the packed file is malformed: a bitmap has too few or too many bits 1")
            return index
        (gaps,) = self._numbers(z, ((n - z) >> k) + z, (k,))
        index = np.cumsum(gaps + 1) - 1
        if z and index[-1] >= n:
            raise ValueError("the packed file is malformed: a position lies beyond the end of the tensor")
        return index

    def _compact_index(self, form: int, k: int, n: int, rows: int) -> _Array:
        """Read the positions of the stored values among n values, with the form COMPACT + `form`."""
        if not n:
            raise ValueError("the packed file is malformed: an empty tensor has sets of rows and columns")
        row_set, column_set = self._set(rows), self._set(n // rows)
        columns = column_set.count
        small = row_set.count * columns
        if form == DENSE and small > 8 * (len(self._data) - self._place):  # a value has at least a bit
            raise ValueError("the packed file is malformed: it ends too early")
        index = np.arange(small) if form == DENSE else self._index(form, k, small)
        return row_set.places(index // columns) * (n // rows) + column_set.places(index % columns)

    def _set(self, size: int) -> _Set:
        """Read a set of rows or columns of a tensor that has `size` rows or columns."""
        z = self.varint()
        if not z:
            return _Set(np.array([0]), np.array([size]))
        if z > size:
            raise ValueError("the packed file is malformed: a set has more runs than there are rows or columns")
        ks = self._byte()
        gaps, lengths = self._numbers(z, size + 1, (ks & 15, ks >> 4))
        gaps[1:] += 1
        ends = np.cumsum(gaps + lengths + 1)
        if ends[-1] > size:
            raise ValueError("the packed file is malformed: a run lies beyond the last row or column")
        return _Set(ends - lengths - 1, np.cumsum(lengths + 1))

    def _numbers(self, z: int, most: int, ks: tuple[int, ...]) -> list[_Array]:
        """Read z numbers for each k in `ks`. In the file, the numbers for the different k alternate. All quotients have
        at most `most` bits together."""
        quotients = self._quotients(z * len(ks), most).reshape(z, len(ks))
        remainders, at, found = self._bits(z * sum(ks)).reshape(z, sum(ks)), 0, []
        for turn, k in enumerate(ks):
            found.append((quotients[:, turn] << k) + remainders[:, at : at + k] @ (1 << np.arange(k)))
            at += k
        return found

    def _quotients(self, z: int, most: int) -> _Array:
        """Read z quotients. A quotient q is written as q bits 0, then a bit 1. All quotients have at most `most` bits
        together."""
        start, left = self._place, len(self._data) - self._place
        some = np.frombuffer(self._data, np.uint8, min((most + 7) // 8, left), start) if z else np.zeros(0, np.uint8)
        ones = np.flatnonzero(np.unpackbits(some, bitorder="little"))[:z]
        if len(ones) < z:
            raise ValueError("the packed file is malformed: it ends within an index")
        self._bits(int(ones[-1]) + 1 if z else 0)
        return np.diff(ones, prepend=-1) - 1

    def _values(self, kind: str, shape: tuple[int, ...], index: _Array | None, n: int) -> Packed:
        z = n if index is None else len(index)
        if kind == "signs":
            return Packed(kind, shape, index, self._bits(z).astype(np.int8) * 2 - 1)
        if kind not in BITS:
            dtype = TYPES[kind]
            values = np.frombuffer(self._bytes(z * dtype.itemsize), np.uint8 if kind == "bool" else dtype)
            if kind == "bool":
                if (values > 1).any():
                    raise ValueError("the packed file is malformed: a bool is neither 0 nor 1")
                values = values.view(bool)
            if index is not None and not np.all((values & 0x7FFF if kind == "bfloat16" else values) != 0):
                raise ValueError("the packed file is malformed: a stored weight is 0")
            return Packed(kind, shape, index, values)
        rows = shape[0] if shape else 1
        used = np.unique(index // (n // rows)) if index is not None and z else None
        count = len(used) if used is not None else rows if z else 0
        own = np.frombuffer(self._bytes(2 * count), "<f2")
        try:
            scales = np.zeros(rows, "<f2")
        except MemoryError:
            raise ValueError(f"a tensor of the shape {shape} does not fit into memory") from None
        scales[slice(count) if used is None else used] = own
        return Packed(kind, shape, index, self._codes(z, BITS[kind]), scales)

    def _codes(self, z: int, bits: int) -> _Array:
        places = 1 << np.arange(bits)
        found = self._bits(z * bits).reshape(z, bits) @ places
        half = 1 << (bits - 1)
        magnitudes = (found & (half - 1)) + 1
        if (magnitudes > 127).any():
            raise ValueError("the packed file is malformed: a code is out of range")
        codes: _Array = np.where(found >= half, -magnitudes, magnitudes).astype(np.int8)
        return codes
