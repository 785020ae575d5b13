"""Convert networks into packed files and back. `read_packed` describes the format."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tune_sparsity.sparsity.cost.layout import best_form, check, gaps_of, type_of
from tune_sparsity.sparsity.cost.read_packed import BITS, DENSE, MAGIC, RICE, SAME, TYPES, Packed, decode
from tune_sparsity.sparsity.few_bits import Codes, Signs

_NUMBERS = {name: number for number, name in enumerate(TYPES)}


def encode(tensors: Mapping[str, Tensor | Codes | Signs], prunable: Collection[str]) -> bytes:
    """Return the bytes of a packed file.

    `load` returns the same tensors, with two exceptions in prunable tensors: the sign of a zero and the scale of a row
    without weights are lost.

    Args:
        tensors: the network's state_dict. Codes or Signs may replace tensors.
        prunable: the names of the tensors whose zeros are left out.

    Raises:
        ValueError: if the file cannot hold the type of a tensor, or if codes are out of range.
    """
    parts = [MAGIC, _varint(len(tensors))]
    for name, tensor in tensors.items():
        if isinstance(tensor, Codes):
            parts.append(_codes(name, tensor))
            continue
        if isinstance(tensor, Signs):
            parts.append(_signs(name, tensor.values))
            continue
        check(name, tensor)
        if name in prunable:
            parts.append(_sparse(name, tensor))
        elif (other := _equal(tensors, prunable, tensor)) is not None:
            place, found = list(tensors).index(other), tensors[other]
            kind = _codes_type(found) if isinstance(found, Codes) else type_of(tensor)
            parts += [_header(name, kind, tensor.shape, SAME), _varint(place)]
        else:
            parts += [_header(name, type_of(tensor), tensor.shape, DENSE), _numbers(tensor).tobytes()]
    content = b"".join(parts)
    return content + zlib.crc32(content).to_bytes(4, "little")


def load(data: bytes) -> dict[str, Tensor]:
    """Return the network's state_dict from the bytes of a packed file. Codes times their scales become float32.

    Raises:
        ValueError: if the file is damaged.
    """
    return {name: _tensor(one) for name, one in decode(data).items()}


def _tensor(one: Packed) -> Tensor:
    if one.scales is not None:
        return torch.from_numpy(one.array())
    raw = torch.from_numpy(np.array(one.codes()))  # a copy, since the file's bytes cannot be written to
    return raw.view(torch.bfloat16) if one.type == "bfloat16" else raw


def _equal(tensors: Mapping[str, Tensor | Codes | Signs], prunable: Collection[str], tensor: Tensor) -> str | None:
    """Return the name of a prunable tensor that equals this tensor, as with a shared weight. Return None if there is
    none."""
    for name in prunable:
        found = tensors[name]
        if isinstance(found, Signs):
            continue
        other = found.weight() if isinstance(found, Codes) else found
        if (other.dtype, other.shape) == (tensor.dtype, tensor.shape) and torch.equal(other, tensor):
            return name
    return None


def _numbers(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return the tensor's values as a flat array. bfloat16 values become the upper halves of float32."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    array = flat.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else flat.numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _sparse(name: str, tensor: Tensor) -> bytes:
    numbers = _numbers(tensor)
    index = np.flatnonzero(_numbers(tensor != 0))
    form, k, _ = best_form(index, len(numbers), 8 * numbers.itemsize)
    if form == DENSE:
        numbers = _numbers(tensor + torch.zeros((), dtype=tensor.dtype, device=tensor.device))  # -0 becomes 0
        return _header(name, type_of(tensor), tensor.shape, DENSE) + numbers.tobytes()
    head = _header(name, type_of(tensor), tensor.shape, form, k)
    return head + _index(index, len(numbers), form, k) + numbers[index].tobytes()


def _codes(name: str, one: Codes) -> bytes:
    codes, kind = one.codes.detach().cpu().contiguous().numpy(), _codes_type(one)
    if kind not in BITS or codes.dtype != np.int8 or one.scales.dtype != torch.float16:
        raise ValueError(f"{name} cannot be packed: codes are int8 of 8, 4, 2 or 1 bits, and their scales float16")
    rows = codes.shape[0] if codes.ndim else 1
    half, flat = 1 << (one.bits - 1), codes.reshape(-1)
    index = np.flatnonzero(flat)
    stored = flat[index].astype(np.int16)
    if one.scales.numel() != rows or (np.abs(stored) > min(half, 127)).any():
        raise ValueError(f"{name} cannot be packed: it has {rows} rows, and codes of at most {min(half, 127)}")
    form, k, _ = best_form(index, flat.size, one.bits, dense=False)
    head = _header(name, kind, codes.shape, form, k)
    start = b"" if form == DENSE else _index(index, flat.size, form, k)
    used = np.unique(index // (flat.size // rows)) if len(index) else index
    scales = one.scales.detach().cpu().reshape(-1).numpy().astype("<f2")[used]
    numbers = np.abs(stored) - 1 + half * (stored < 0)
    return head + start + scales.tobytes() + _packed(_low_bits(numbers, one.bits))


def _signs(name: str, values: Tensor) -> bytes:
    numbers = _numbers(values)
    if values.dtype != torch.int8 or not np.array_equal(np.abs(numbers), np.ones_like(numbers)):
        raise ValueError(f"{name} cannot be packed: signs are int8 of -1 and +1")
    return _header(name, "signs", values.shape, DENSE) + _packed((numbers > 0).astype(np.uint8))


def _codes_type(one: Codes) -> str:
    return f"codes{one.bits}"


def _header(name: str, kind: str, shape: tuple[int, ...], form: int, k: int = 0) -> bytes:
    text = name.encode()
    head = bytes([_NUMBERS[kind], form + 16 * k, len(shape)])
    return _varint(len(text)) + text + head + b"".join(map(_varint, shape))


def _index(index: np.ndarray[Any, Any], n: int, form: int, k: int) -> bytes:
    """Return the bytes of an index: the number of stored values, and their places."""
    z = len(index)
    if form != RICE:
        bits = np.zeros(n, np.uint8)
        bits[index] = 1
        return _varint(z) + _packed(bits)
    gaps = gaps_of(index)
    ends = np.cumsum((gaps >> k) + 1)
    unary = np.zeros(int(ends[-1]) if z else 0, np.uint8)
    unary[ends - 1] = 1
    return _varint(z) + _packed(unary) + _packed(_low_bits(gaps, k))


def _low_bits(numbers: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """Return the lowest `count` bits of all numbers in one array, number by number."""
    return ((numbers[:, None] >> np.arange(count)) & 1).astype(np.uint8).reshape(-1)


def _packed(bits: np.ndarray[Any, Any]) -> bytes:
    return np.packbits(bits, bitorder="little").tobytes()


def _varint(number: int) -> bytes:
    parts = []
    while number >= 128:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])
