"""Convert networks into packed files and back. The docstring of `read_packed` describes the format."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tune_sparsity.sparsity.cost.forms import Form, Runs, as_matrix, best_form, gaps_of, used_rows
from tune_sparsity.sparsity.cost.layout import check, type_of
from tune_sparsity.sparsity.cost.read_packed import BITS, COMPACT, DENSE, MAGIC, RICE, SAME, TYPES, Packed, decode
from tune_sparsity.sparsity.few_bits import Codes, Signs

_NUMBERS = {name: number for number, name in enumerate(TYPES)}


def encode(tensors: Mapping[str, Tensor | Codes | Signs], prunable: Collection[str]) -> bytes:
    """Return the bytes of a packed file.

    The function `load` restores the tensors from these bytes. In prunable tensors, two things are lost: the sign of a
    zero, and, with few bits, the scale of a row that has only zeros.

    Args:
        tensors: the network's state_dict. Weights with few bits may be given as instances of `Codes` or `Signs` (see
            tune_sparsity.sparsity.few_bits).
        prunable: the names of the tensors whose zeros are not stored.

    Raises:
        ValueError: if a packed file cannot contain the type of a tensor, or if codes are out of range.
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
    """Return the network's state_dict from the bytes of a packed file. Codes are multiplied by their scales and become
    float32.

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
    """Return the name of a prunable tensor that equals this tensor, such as a shared weight. Return None if there is no
    such tensor."""
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
    mask = _numbers(tensor != 0)
    form = best_form(as_matrix(mask, tensor.shape[0] if tensor.dim() else 1), 8 * numbers.itemsize)
    head = _header(name, type_of(tensor), tensor.shape, form.form, form.k)
    if form.form == DENSE:
        numbers = _numbers(tensor + torch.zeros((), dtype=tensor.dtype, device=tensor.device))  # -0 becomes 0
        return head + numbers.tobytes()
    return head + _places(form) + numbers[mask].tobytes()


def _codes(name: str, one: Codes) -> bytes:
    codes, kind = one.codes.detach().cpu().contiguous().numpy(), _codes_type(one)
    if kind not in BITS or codes.dtype != np.int8 or one.scales.dtype != torch.float16:
        raise ValueError(f"{name} cannot be packed: codes must be int8 with 8, 4, 2 or 1 bits, and scales float16")
    rows = codes.shape[0] if codes.ndim else 1
    half, mask = 1 << (one.bits - 1), codes != 0
    stored = codes[mask].astype(np.int16)
    if one.scales.numel() != rows or (np.abs(stored) > min(half, 127)).any():
        raise ValueError(f"{name} cannot be packed: it must have {rows} scales, and codes up to {min(half, 127)}")
    matrix = as_matrix(mask, rows)
    form = best_form(matrix, one.bits, dense=False)
    head = _header(name, kind, codes.shape, form.form, form.k) + _places(form)
    scales = one.scales.detach().cpu().reshape(-1).numpy().astype("<f2")[used_rows(matrix)[:rows]]
    numbers = np.abs(stored) - 1 + half * (stored < 0)
    return head + scales.tobytes() + _packed(_low_bits(numbers, one.bits))


def _signs(name: str, values: Tensor) -> bytes:
    numbers = _numbers(values)
    if values.dtype != torch.int8 or not np.array_equal(np.abs(numbers), np.ones_like(numbers)):
        raise ValueError(f"{name} cannot be packed: signs must be int8 with the values -1 and +1")
    return _header(name, "signs", values.shape, DENSE) + _packed((numbers > 0).astype(np.uint8))


def _codes_type(one: Codes) -> str:
    return f"codes{one.bits}"


def _header(name: str, kind: str, shape: tuple[int, ...], form: int, k: int = 0) -> bytes:
    text = name.encode()
    head = bytes([_NUMBERS[kind], form + 16 * k, len(shape)])
    return _varint(len(text)) + text + head + b"".join(map(_varint, shape))


def _places(form: Form) -> bytes:
    """Return the bytes that describe the positions of the stored values."""
    sets, inner = b"".join(map(_runs, form.sets)), form.form % COMPACT
    if inner == DENSE:
        return sets
    z = _varint(len(form.places))
    if inner == RICE:
        gaps = gaps_of(form.places)
        return sets + z + _unary(gaps >> form.k) + _packed(_low_bits(gaps, form.k))
    bits = np.zeros(form.n, np.uint8)
    bits[form.places] = 1
    return sets + z + _packed(bits)


def _runs(runs: Runs) -> bytes:
    """Return the bytes of a set of rows or columns."""
    z = len(runs.numbers) // 2
    if not z:
        return _varint(0)
    pairs, ks = runs.numbers.reshape(z, 2), (runs.gap_k, runs.length_k)
    remainders = [_low_bits(pairs[:, at], k).reshape(z, k) for at, k in enumerate(ks)]
    head = _varint(z) + bytes([runs.gap_k + 16 * runs.length_k])
    return head + _unary((pairs >> ks).reshape(-1)) + _packed(np.concatenate(remainders, 1))


def _unary(quotients: np.ndarray[Any, Any]) -> bytes:
    """Return the bytes of quotients. A quotient q is written as q bits 0, then a bit 1."""
    ends = np.cumsum(quotients + 1)
    bits = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    bits[ends - 1] = 1
    return _packed(bits)


def _low_bits(numbers: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """Return an array with the lowest `count` bits of the first number, then of the second number, and so on."""
    return ((numbers[:, None] >> np.arange(count)) & 1).astype(np.uint8).reshape(-1)


def _packed(bits: np.ndarray[Any, Any]) -> bytes:
    return np.packbits(bits, bitorder="little").tobytes()


def _varint(number: int) -> bytes:
    parts = []
    while number >= 128:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])
