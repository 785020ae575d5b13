"""Batch normalisation's running statistics, measured anew for weights that were not trained as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tune_sparsity.experiments.examples import spread_over
from tune_sparsity.sparsity.output_layers import called
from tune_sparsity.sparsity.torch_internals import BatchNorm

_SAMPLE, _BATCH = 1024, 128  # examples


def sample(n: int) -> list[Tensor]:
    """Indices of up to 1,024 of n examples in batches of up to 128; always the same, each batch from all over the set,
    which may be sorted by class."""
    indices = spread_over(n, _SAMPLE)
    batches = -(-len(indices) // _BATCH)
    return [indices[k::batches] for k in range(batches)]


def normalises(model: nn.Module) -> bool:
    """Whether the network keeps running statistics of its activations."""
    return any(_tracks(layer) for layer in model.modules())


def remeasure(model: nn.Module, inputs: Iterable[Any], forward: Callable[[nn.Module, Any], object] = called) -> None:
    """Make the running statistics the means over the given batches, of two examples and more, for the weights that the
    network has now; without any batch they stay. Nothing but batch normalisation is in training mode meanwhile, so that
    nothing random is drawn."""
    layers = _tracking(model)
    momenta = [layer.momentum for layer in layers]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            for index, x in enumerate(inputs):
                for layer in layers if index == 0 else ():
                    layer.reset_running_stats()
                    layer.momentum = None  # PyTorch's sign for the plain mean over batches
                    layer.train()
                forward(model, x)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, training in modes:
            module.training = training


@contextmanager
def remeasured(
    model: nn.Module, inputs: Iterable[Any], forward: Callable[[nn.Module, Any], object] = called
) -> Iterator[None]:
    """Within it the network is in evaluation mode and its running statistics are those of `remeasure`; afterwards both
    are what they were."""
    kept = [(value, value.clone()) for layer in _tracking(model) for value in layer.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        remeasure(model, inputs, forward)
        model.eval()
        yield
    finally:
        with torch.no_grad():
            for value, before in kept:
                value.copy_(before)
        for module, training in modes:
            module.training = training


def _tracking(model: nn.Module) -> list[Any]:
    return [layer for layer in model.modules() if _tracks(layer)]


def _tracks(layer: nn.Module) -> bool:
    return isinstance(layer, BatchNorm) and layer.track_running_stats
