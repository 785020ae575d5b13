"""Count the spikes of a spiking network, and the synaptic operations that the network needs for an example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tune_sparsity.experiments.base import Experiment, outputs_of
from tune_sparsity.experiments.examples import Loaded, Split
from tune_sparsity.experiments.spiking.network import SpikingLayer, SpikingNetwork


@dataclass(frozen=True)
class Activity:
    """Holds the activity of the spiking layers of a network, averaged over examples.

    Attributes:
        rates: a dict from the name of each spiking layer to the mean number of spikes of a neuron in a step, in [0, 1].
        spared: for one example, the number of multiply-adds that multiply a nonzero weight by a trace. Hardware for
            spikes needs the additions of `caused` instead.
        caused: for one example, the number of additions. Each spike of a neuron causes one addition for each nonzero
            weight from this neuron to another.
    """

    rates: Mapping[str, float]
    spared: float
    caused: float

    def synaptic_operations(self, macs: int) -> int:
        """Return the number of synaptic operations of an example: additions that spikes cause, and multiply-adds whose
        inputs are not traces, as in the first layer.

        Args:
            macs: the multiply-adds with nonzero weights, for one example, in all layers of the network.
        """
        return round(macs - self.spared + self.caused)


class _Spikes:
    """Sums the spikes of a layer. This class is a forward hook for the layer.

    Attributes:
        sums: the spikes of each neuron, over examples and steps.
        steps: the number of steps in all examples.
    """

    def __init__(self) -> None:
        self.sums, self.steps = torch.zeros(()), 0

    def __call__(self, layer: nn.Module, inputs: Any, result: tuple[Tensor, Tensor]) -> None:
        spikes = result[1]
        self.sums = self.sums.to(spikes.device) + spikes.sum((0, 1), dtype=torch.float64)
        self.steps += spikes.shape[0] * spikes.shape[1]


@torch.no_grad()
def activity(experiment: Experiment, model: nn.Module, split: Split | Loaded) -> Activity | None:
    """Return the activity of all spiking layers in a network over a split, in evaluation mode. Return None if the
    network contains no SpikingNetwork."""
    networks = (module for module in model.modules() if isinstance(module, SpikingNetwork))
    readers = {layer: found for network in networks for layer, found in network.readers()}
    if not readers:
        return None
    names = {module: name for name, module in model.named_modules()}
    with _counted(readers) as counted:
        for _ in outputs_of(experiment, model, split):
            pass
    rates, spared, caused = dict[str, float](), 0.0, 0.0
    for layer, spikes in counted.items():
        if not spikes.steps:  # the outputs do not use this layer
            continue
        rates[names[layer]] = float(spikes.sums.mean()) / spikes.steps
        for weight in (linear.weight for linear in readers[layer]):
            nonzero = (weight != 0).sum(0).double()
            spared += spikes.steps * float(nonzero.sum())
            caused += float(spikes.sums @ nonzero)
    return Activity(rates, spared / split.examples, caused / split.examples)


@contextmanager
def _counted(layers: Mapping[SpikingLayer, Any]) -> Iterator[dict[SpikingLayer, _Spikes]]:
    """Return a context manager that counts the spikes of these layers in its block. It yields a dict from layers to
    counts."""
    counted = {layer: _Spikes() for layer in layers}
    with ExitStack() as hooks:
        for layer, spikes in counted.items():
            hooks.callback(layer.register_forward_hook(spikes).remove)
        yield counted
