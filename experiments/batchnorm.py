"""Compute the running statistics of batch normalisation again after weights were pruned or averaged.

The statistics of the former weights are wrong for the new weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tune_sparsity.experiments.examples import Loaded, Split, spread_over
from tune_sparsity.sparsity.output_layers import called, modes_kept, normalising
from tune_sparsity.sparsity.torch_internals import BatchNorm

_SAMPLE, _BATCH = 1024, 128  # examples


def sample(n: int) -> list[Tensor]:
    """Return the indices of up to 1,024 of n examples, in batches of up to 128. The indices depend only on n. Each
    batch has examples from all parts of the data set, because the data set may be sorted by class."""
    indices = spread_over(n, _SAMPLE)
    batches = -(-len(indices) // _BATCH)
    return [indices[k::batches] for k in range(batches)]


def sampled_inputs(model: nn.Module, train: Split | Loaded) -> Iterator[Any]:
    """Yield batches of training inputs for `remeasure`, on the network's device. Yield nothing if the network has no
    running statistics that change in training, or if there is only one example."""
    if train.examples >= 2 and normalises(model):
        device = next(model.parameters()).device
        yield from (train.at(batch).to(device).x for batch in sample(train.examples))


def normalises(model: nn.Module) -> bool:
    """Return whether the network has running statistics that change in training."""
    return bool(moving(model))


def remeasure(
    model: nn.Module,
    inputs: Iterable[Any],
    forward: Callable[[nn.Module, Any], object] = called,
    layers: Sequence[BatchNorm] | None = None,
) -> None:
    """Compute the running statistics of batch normalisation again, with the network's current weights. The statistics
    become the means over the given batches.

    The network computes each batch once. In these forward passes, all other layers, such as dropout, are in evaluation
    mode.

    Args:
        inputs: batches of at least two examples each. Without a batch, the statistics do not change.
        forward: (network, inputs) -> any result. The result is not used.
        layers: the layers with the statistics. If None, these are the result of `moving`.
    """
    layers = moving(model) if layers is None else layers
    momenta = [layer.momentum for layer in layers]
    try:
        with modes_kept(model), torch.no_grad():
            model.eval()
            for index, x in enumerate(inputs):
                for layer in layers if index == 0 else ():
                    layer.reset_running_stats()
                    layer.momentum = None  # None: the plain mean over batches
                    layer.train()
                forward(model, x)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


@contextmanager
def remeasured(
    model: nn.Module,
    inputs: Iterable[Any],
    forward: Callable[[nn.Module, Any], object] = called,
    layers: Sequence[BatchNorm] | None = None,
) -> Iterator[None]:
    """Return a context manager. Before its block, it calls `remeasure` and sets the network to evaluation mode. After
    the block, it restores the former statistics and modes."""
    kept = [(value, value.clone()) for layer in moving(model) for value in layer.buffers()]
    try:
        with modes_kept(model):
            remeasure(model, inputs, forward, layers)
            model.eval()
            yield
    finally:
        with torch.no_grad():
            for value, before in kept:
                value.copy_(before)


def moving(model: nn.Module) -> list[BatchNorm]:
    """Return the batch normalisation layers whose running statistics change in training. Layers with a momentum of 0
    are left out, because their statistics never change."""
    norms = [layer for layer in normalising(model) if isinstance(layer, BatchNorm)]
    return [layer for layer in norms if layer.track_running_stats and layer.momentum != 0.0]
