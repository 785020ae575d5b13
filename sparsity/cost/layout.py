"""Compute the size of a network's packed file from the masks. Compute how sparse a network must be so that the size is
within a limit."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from tune_sparsity.sparsity.cost.forms import Form, as_matrix, best_form, flat_form, used_rows, varint_bytes, whole
from tune_sparsity.sparsity.cost.read_packed import MAGIC, MOST_DIMENSIONS, TYPES
from tune_sparsity.sparsity.few_bits import ALL_BITS, Precision

_CHECKSUM = 4  # bytes
_SCALE = _HALF = 16  # bits
_WHOLE, _A_ROW = Precision(), 4
_UNEVEN = 0.85  # the factor `uneven` of `Layout.estimate`, if some layers are much sparser than others


@dataclass(frozen=True)
class Prunable:
    """Describes a tensor that a packed file can store without its zeros.

    Attributes:
        n: the number of values.
        rows: the number of rows.
        bits: the number of bits of a value.
        scaled: whether each row has a scale.
    """

    n: int
    rows: int
    bits: int
    scaled: bool = False

    def size_in_bits(self, mask: np.ndarray[Any, Any]) -> int:
        """Return the number of bits that the tensor's nonzero values, their positions and their rows' scales take in
        the file.

        Args:
            mask: an array that is True exactly where the tensor has a nonzero value.
        """
        matrix = as_matrix(mask, self.rows)
        form = best_form(matrix, self.bits, dense=not self.scaled)
        return self._in_bits(form, int(used_rows(matrix).sum()))

    def least_in_bits(self) -> int:
        """Return an upper limit for the number of bits that the tensor takes in the file if exactly one of its weights
        is nonzero. The limit holds for every position of this weight. With the form COMPACT, the tensor may take fewer
        bits."""
        last = np.array([self.n - 1] if self.n else [], np.int64)
        return self._in_bits(flat_form(last, self.n, self.bits, dense=not self.scaled), len(last))

    def _in_bits(self, form: Form, used: int) -> int:
        """Return the number of bits of a tensor in this form. `used` is the number of rows that have values."""
        return form.bits + whole(len(form.places) * self.bits) + self.scaled * used * _SCALE


@dataclass(frozen=True)
class Layout:
    """Describes the packed file of a network.

    Attributes:
        fixed: the number of bytes of all parts of the file that do not depend on the masks. The parts that depend on
            the masks are the values, positions and scales of the tensors in `prunable` and `biases`.
        prunable: a dict from the names of the prunable tensors to their descriptions.
        biases: a dict from names of weights to the descriptions of the biases that belong to them. If a row of a weight
            has only zeros, the file does not store its bias.
    """

    fixed: int
    prunable: Mapping[str, Prunable]
    biases: Mapping[str, Prunable] = field(default_factory=dict)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], prunable: Collection[str], precision: Precision = _WHOLE) -> Layout:
        """Return the layout of a network.

        Args:
            tensors: the network's state_dict.
            prunable: the names of the prunable tensors.
            precision: how many bits the file uses for the values of the tensors.

        Raises:
            ValueError: if a packed file cannot contain the type of a tensor.
        """
        fixed, found, biases = len(MAGIC) + varint_bytes(len(tensors)) + _CHECKSUM, {}, {}
        known = {_memory(tensors[name]): place for place, name in enumerate(tensors) if name in prunable}
        for name, tensor in tensors.items():
            check(name, tensor)
            fixed += header_bytes(name, tensor.shape)
            rows = tensor.shape[0] if tensor.dim() else 1
            if name in prunable:
                value_bits = 8 * tensor.element_size() if precision.bits == ALL_BITS else precision.bits
                found[name] = Prunable(tensor.numel(), rows, value_bits, scaled=precision.scaled)
            elif name in precision.biases:
                biases[precision.biases[name]] = Prunable(tensor.numel(), rows, _HALF)
            elif (place := known.get(_memory(tensor))) is not None:
                fixed += varint_bytes(place)
            else:
                fixed += tensor.numel() * (2 if name in precision.halves else tensor.element_size())
        return cls(fixed, found, biases)

    @property
    def weights(self) -> int:
        """Return the number of prunable weights."""
        return sum(one.n for one in self.prunable.values())

    def part(self, kept: Mapping[str, tuple[int, int]]) -> Layout:
        """Return the approximate layout of the network after neurons are removed. The attribute `fixed` does not
        change.

        Args:
            kept: a dict from the names of the prunable tensors to pairs: the number of values and the number of rows of
                the tensor in the smaller network.
        """
        prunable = {name: replace(one, n=kept[name][0], rows=kept[name][1]) for name, one in self.prunable.items()}
        biases = {name: replace(one, n=min(one.n, kept[name][1])) for name, one in self.biases.items()}
        return Layout(self.fixed, prunable, biases)

    def size(self, masks: Mapping[str, Tensor]) -> int:
        """Return the size of the packed file in bytes.

        Args:
            masks: a dict from the names of the prunable tensors to their masks. A weight must be nonzero exactly where
                its mask is not 0.
        """
        used = {name: masks[name] != 0 for name in self.prunable}
        bits = [one.size_in_bits(used[name].cpu().numpy()) for name, one in self.prunable.items()]
        bits += [one.size_in_bits(used[name].flatten(1).any(1).cpu().numpy()) for name, one in self.biases.items()]
        return self.fixed + sum(bits) // 8

    def estimate(self, nonzero: int, uneven: float = 1.0, a_row: int = 1) -> float:
        """Return an estimate of the file's size in bytes if the nonzero weights lie at random positions. The size of
        the positions is estimated by their entropy.

        Args:
            nonzero: the number of nonzero weights.
            uneven: a factor by which the entropy is multiplied. It is 1 if all layers are equally sparse, and smaller
                if some layers are much sparser than others.
            a_row: the estimate assumes that each row has at least this many nonzero weights, or none.
        """
        weights = self.weights
        bits = nonzero * self._value_bits + uneven * weights * _entropy(nonzero / weights)
        dense = math.inf if self._scaled else weights * self._value_bits
        return self.fixed + min(bits, dense) / 8 + self.neuron_bytes(nonzero // a_row)

    def neuron_bytes(self, used: int) -> float:
        """Return the number of bytes of the neurons' scales and biases. Here, each row of a prunable tensor is a
        neuron.

        Args:
            used: the number of neurons that have a nonzero weight. If it is larger than the number of all neurons, all
                neurons are counted.
        """
        rows = min(used, sum(one.rows for one in self.prunable.values())) if self._scaled else 0
        biases = min(used, sum(one.n for one in self.biases.values()))
        return (_SCALE * rows + _HALF * biases) / 8

    def nonzero_within(self, most: int) -> int:
        """Return approximately the largest number of nonzero weights for which the file has at most `most` bytes.
        Return 0 if a file with one nonzero weight already has more bytes.

        The result is more often too large than too small. If it is too large, the training can prune more weights when
        it fixes the mask. If it is too small, weights are pruned that the file could contain.
        """
        low, high = 0, self.weights + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.estimate(middle, _UNEVEN, _A_ROW) <= most else (low, middle)
        return low

    def least(self) -> int:
        """Return a number of bytes in which the file can store one nonzero weight of each prunable tensor, at any
        position."""
        those = [*self.prunable.values(), *self.biases.values()]
        return self.fixed + sum(one.least_in_bits() for one in those) // 8

    @property
    def _value_bits(self) -> float:
        """Return the mean number of bits of a prunable weight. Tensors of different dtypes may have different numbers
        of bits."""
        return sum(one.n * one.bits for one in self.prunable.values()) / self.weights

    @property
    def _scaled(self) -> bool:
        return any(one.scaled for one in self.prunable.values())


class Budget:
    """Compares the size of a network's packed file with a limit.

    Args:
        layout: the layout of the file.
        most: the largest number of bytes.
    """

    def __init__(self, layout: Layout, most: int) -> None:
        self._layout, self._most = layout, most

    def excess(self, masks: Sequence[Tensor]) -> int:
        """Return an estimate of how many more weights must be pruned until the file is within the limit. The result is
        0 if the file is within the limit. Otherwise it is the number of bytes above the limit, divided by the mean
        number of bytes of a nonzero weight. It is too large if the pruned weights take more bytes than this mean.

        Args:
            masks: the masks of the prunable tensors, in the order of the attribute `prunable` of the layout.
        """
        size = self._layout.size(dict(zip(self._layout.prunable, masks, strict=True)))
        if size <= self._most:
            return 0
        nonzero = sum(int(mask.count_nonzero()) for mask in masks)
        # An estimate, because some weights take more bytes than others.
        each = (size - self._layout.fixed) / max(1, nonzero)
        return max(1, int((size - self._most) / each))


def check(name: str, tensor: Tensor) -> None:
    """Raise ValueError if a packed file cannot contain this tensor."""
    if type_of(tensor) not in TYPES or tensor.dim() > MOST_DIMENSIONS:
        raise ValueError(
            f"{name} cannot be packed: it has {tensor.dim()} dimensions (at most {MOST_DIMENSIONS} are possible) "
            f"and the type {type_of(tensor)}"
        )


def type_of(tensor: Tensor) -> str:
    """Return the name of a tensor's dtype, such as "float32"."""
    return str(tensor.dtype).removeprefix("torch.")


def header_bytes(name: str, shape: Sequence[int]) -> int:
    """Return the number of bytes of a tensor's name, type, form and dimensions."""
    length = len(name.encode())
    return varint_bytes(length) + length + 3 + sum(map(varint_bytes, shape))


def _memory(tensor: Tensor) -> tuple[object, ...]:
    """Return a value that is equal for two tensors if they are the same memory."""
    return tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _entropy(p: float) -> float:
    """Return the entropy, in bits, of a choice between two values with the probabilities p and 1 - p."""
    return 0.0 if p in (0.0, 1.0) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)
