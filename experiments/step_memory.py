"""Measure the peak memory of one training step, in bytes."""

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
    """Measures the peak memory of one training step: tensors of the network, of the optimizer and of one batch.

    The second step is measured, because the optimizer creates its state during the first step. If a training has only
    one step, this step is measured.

    On a CPU, the tensors of torch's operations are counted. Memory that an operation uses internally, and memory of
    compiled code, are not counted. On a GPU, the number comes from torch's memory statistics.

    Args:
        model: the network. If it is compiled with torch.compile, nothing is measured.
        sparse: the optimizer that trains the network.
        alone: whether one process trains the network. If not, nothing is measured, because the communication of the
            processes also needs memory.

    Attributes:
        peak: the peak in bytes, or None if it is not measured or not measured yet.
    """

    def __init__(self, model: nn.Module, sparse: SparseTraining, *, alone: bool = True) -> None:
        self._model, self._sparse, self._alone = model, sparse, alone
        self._step = min(1, sparse.total_steps - 1)
        self._live: LiveBytes | None = None
        self._left_out = 0  # on a GPU: bytes that are alive before the step and do not belong to the training
        self.peak: int | None = None

    @contextmanager
    def within(self, batch: Any = ()) -> Iterator[None]:
        """Return a context manager. If its block runs during the measured step (see the class), it measures the memory
        in the block. A step may have several blocks, for example one for the gradients and one for the optimizer.

        Args:
            batch: the tensors of the examples, as a tensor or a nested structure of tensors.
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
        """Return the training's tensors that already exist before the step."""
        sparse, params = self._sparse, list(self._model.parameters())
        states = [*sparse.optimizer.state.values(), sparse.masks, sparse.averages]
        gradients = [param.grad for param in params]
        nest = [params, gradients, list(self._model.buffers()), states, batch]
        return [one for one in tree_leaves(nest) if isinstance(one, Tensor)]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Return a context manager that disables Python's garbage collection in its block. The garbage collection would
    free memory at a random time, and the measured number would vary."""
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
