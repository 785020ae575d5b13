"""Batch normalisation's running statistics, measured anew for weights that were not trained as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tune_sparsity.experiments.examples import spread_over
from tune_sparsity.sparsity.output_layers import called, modes_kept, normalising
from tune_sparsity.sparsity.torch_internals import BatchNorm

_SAMPLE, _BATCH = 1024, 128  # examples


def sample(n: int) -> list[Tensor]:
    """Indices of up to 1,024 of n examples in batches of up to 128; always the same, each batch from all over the set,
    which may be sorted by class."""
    indices = spread_over(n, _SAMPLE)
    batches = -(-len(indices) // _BATCH)
    return [indices[k::batches] for k in range(batches)]


def normalises(model: nn.Module) -> bool:
    """Return whether training moves running statistics of the network's activations."""
    return bool(_moving(model))


@contextmanager
def remeasured(
    model: nn.Module, inputs: Iterable[Any], forward: Callable[[nn.Module, Any], object] = called
) -> Iterator[None]:
    """Within it the running statistics are the means over the given batches, of two examples and more, for the weights
    that the network has now; afterwards they are what they were. Nothing but batch normalisation is in training mode
    meanwhile, so that nothing random is drawn."""
    layers = _moving(model)
    kept = [{name: value.clone() for name, value in layer.named_buffers()} for layer in layers]
    momenta = [layer.momentum for layer in layers]
    try:
        with modes_kept(model):
            model.eval()
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # PyTorch's sign for the plain mean over batches
                layer.train()
            with torch.no_grad():
                for x in inputs:
                    forward(model, x)
            model.eval()
            yield
    finally:
        with torch.no_grad():
            for layer, buffers, momentum in zip(layers, kept, momenta, strict=True):
                layer.momentum = momentum
                for name, value in layer.named_buffers():
                    value.copy_(buffers[name])


def _moving(model: nn.Module) -> list[BatchNorm]:
    """Return the batch normalisations whose running statistics training moves: a momentum of 0 keeps them."""
    norms = [layer for layer in normalising(model) if isinstance(layer, BatchNorm)]
    return [layer for layer in norms if layer.track_running_stats and layer.momentum != 0.0]
