"""Measure the largest number of bytes that are alive during one step of a training."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tune_sparsity.sparsity import SparseTraining
from tune_sparsity.sparsity.cost.live_bytes import LiveBytes
from tune_sparsity.sparsity.torch_internals import is_compiled, tree_leaves


class StepMemory:
    """Measures the memory of the second step of a training, because the first step creates state that all later steps
    have. If a training has only one step, that step is measured.

    On a CPU, the tensors of torch's operations are tracked. Memory within an operation or within compiled code is not
    counted. On a GPU, the figures come from torch's memory statistics. Of the data set, only the batch is counted.

    Args:
        model: the network. Nothing is measured if it is compiled.
        sparse: the training.
        alone: whether one process trains. With several processes nothing is measured, because their communication needs
            memory, too.

    Attributes:
        peak: the bytes, or None before the measurement.
    """

    def __init__(self, model: nn.Module, sparse: SparseTraining, *, alone: bool = True) -> None:
        self._model, self._sparse, self._alone = model, sparse, alone
        self._step = min(1, sparse.total_steps - 1)
        self._live: LiveBytes | None = None
        self._left_out = 0  # on a GPU: bytes that are alive before the step and do not belong to the training
        self.peak: int | None = None

    @contextmanager
    def within(self, batch: Any = ()) -> Iterator[None]:
        """Measure the memory within this block if it is part of the step to be measured. A step may consist of several
        blocks.

        Args:
            batch: a nest with the tensors of the examples.
        """
        if not self._alone or self._sparse.steps != self._step or is_compiled(self._model):
            yield
        elif next(self._model.parameters()).is_cuda:
            if self.peak is None:
                torch.cuda.reset_peak_memory_stats()
                self._left_out = torch.cuda.memory_allocated() - _bytes(self._there(batch))
            yield
            self.peak = torch.cuda.max_memory_allocated() - self._left_out
        else:
            self._live = self._live or LiveBytes(self._there(batch))
            with self._live, _no_garbage_collection():
                yield
            self.peak = self._live.peak
            if self._sparse.steps != self._step:
                self._live = None

    def _there(self, batch: Any) -> list[Tensor]:
        """Return the tensors of the training that exist before the step."""
        sparse, params = self._sparse, list(self._model.parameters())
        states = [*sparse.optimizer.state.values(), sparse.masks, sparse.averages]
        gradients = [param.grad for param in params]
        nest = [params, gradients, list(self._model.buffers()), states, batch]
        return [one for one in tree_leaves(nest) if isinstance(one, Tensor)]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disable Python's garbage collection within this block, because it would reduce the number of bytes at a random
    moment."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _bytes(tensors: Iterable[Tensor]) -> int:
    memories = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    return sum(memories.values())
