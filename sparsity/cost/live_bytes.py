"""Measure how many bytes of tensors exist at the same time during a computation."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tune_sparsity.sparsity.torch_internals import EagerMode, tree_leaves


class LiveBytes(EagerMode):
    """Counts the bytes of the tensors that are arguments or results of torch operations within a `with` block.

    A tensor is counted from its first use until its memory is released. Memory that an operation or compiled code uses
    only internally is not counted. The object may be used for several `with` blocks, and the count continues.

    Args:
        there: tensors that already exist before the block. They are counted from its beginning.

    Attributes:
        now: the number of bytes that exist now.
        peak: the largest number of bytes that existed at the same time.
    """

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()
        self._known: dict[int, int] = {}  # address of live memory -> its bytes
        self.now = self.peak = 0
        self._see(list(there))

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._see((args, kwargs))
        result = function(*args, **(kwargs or {}))
        self._see(result)
        return result

    def _see(self, nest: Any) -> None:
        for one in tree_leaves(nest):
            if isinstance(one, Tensor) and one.layout == torch.strided and not one.is_meta:
                memory = one.untyped_storage()
                place, size = memory.data_ptr(), memory.nbytes()
                if size and place not in self._known:
                    self._known[place] = size
                    self.now += size
                    weakref.finalize(memory, self._gone, place).atexit = False
        self.peak = max(self.peak, self.now)

    def _gone(self, place: int) -> None:
        self.now -= self._known.pop(place, 0)
