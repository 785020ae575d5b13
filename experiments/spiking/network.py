"""Build networks of spiking neurons with self-recurrence, skip connections and trained time constants."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from tune_sparsity.experiments.spiking.neurons.scan import Constants, spiking_scan


class _Reading(nn.Module):
    """Holds a layer's weights: one matrix for each source, an earlier layer or the network's input. Computes the input
    currents of the layer.

    Args:
        sources: a dict from the name of each source to its number of values. The previous layer comes first.
        neurons: the number of neurons in this layer.
        gain: the initial weights are normal, with the standard deviation gain / sqrt(fan-in).
        normalise: whether batch normalisation over examples and steps replaces the bias.
    """

    zeros: Tensor

    def __init__(self, sources: Mapping[str, int], neurons: int, gain: float, *, normalise: bool) -> None:
        super().__init__()
        weights = {name: nn.Linear(size, neurons, bias=False) for name, size in sources.items()}
        for linear in weights.values():
            nn.init.normal_(linear.weight, std=gain / math.sqrt(linear.in_features))
        self.weights = nn.ModuleDict(weights)
        self.norm = nn.BatchNorm1d(neurons) if normalise else None
        self.bias = None if normalise else nn.Parameter(torch.zeros(neurons))
        self.register_buffer("zeros", torch.zeros(neurons), persistent=False)

    def currents(self, seen: Mapping[str, Tensor]) -> Tensor:
        """Return the input currents of the layer, shape (examples * steps, neurons).

        Args:
            seen: a dict from the name of each source to its values, shape (examples * steps, number of values).
        """
        total = reduce(torch.add, (linear(seen[name]) for name, linear in self.weights.items()))
        return total + self.bias if self.norm is None else self.norm(total)

    def constant(self, trained: Tensor | None, tau: float, ratio: float) -> Tensor:
        """Return the share of each neuron's state that leaks in a step, in (0, 1). At first, it is 1/tau.

        Args:
            trained: the parameter, at first 0. The share is sigmoid(sqrt(ratio) x trained - log(tau - 1)). If None, the
                share is always 1/tau.
            tau: the initial time constant in steps, > 1.
            ratio: with SGD, the factor of the learning rate for the argument of the sigmoid.
        """
        moved = self.zeros if trained is None else math.sqrt(ratio) * trained
        return torch.sigmoid(moved - math.log(tau - 1))  # 1/tau where moved is 0


class SpikingLayer(_Reading):
    """Computes a layer of spiking neurons with its weights.

    A call takes two arguments: a dict from the name of each source to its values, and the number of steps. A source is
    an earlier layer or the network's input. Its values have the shape (examples * steps, number of values). A call
    returns the traces (see `spiking_scan`) and the spikes of the neurons, each of the shape (examples, steps, neurons).
    """

    def __init__(self, sources: Mapping[str, int], neurons: int, network: SpikingNetwork) -> None:
        super().__init__(sources, neurons, 1.0 if network.normalise else 3.0, normalise=network.normalise)
        self.tau = (network.tau_membrane, network.tau_synapse)
        self.slope, self.intrinsic_lr = network.slope, network.intrinsic_lr
        self.self_weight = nn.Parameter(torch.zeros(neurons)) if network.self_recurrent else None
        self.membrane = nn.Parameter(torch.zeros(neurons)) if network.learn_intrinsic else None
        self.synapse = nn.Parameter(torch.zeros(neurons)) if network.learn_intrinsic else None

    def constants(self) -> Constants:
        """Return the neurons' self-weights and leaks (see Constants), computed from the current parameters."""
        leaks = zip((self.membrane, self.synapse), self.tau, strict=True)
        membrane, synapse = (self.constant(trained, tau, self.intrinsic_lr) for trained, tau in leaks)
        return Constants(self.zeros if self.self_weight is None else self.self_weight, membrane, synapse)

    def forward(self, seen: Mapping[str, Tensor], steps: int) -> tuple[Tensor, Tensor]:
        return spiking_scan(self.currents(seen).unflatten(0, (-1, steps)), self.constants(), self.slope)


class ReadOut(_Reading):
    """Computes the network's outputs with leaky integrators r[t] = (1 - k) r[t-1] + current[t], which do not spike. An
    output is the mean of r over time.

    k is the share of r that leaks in a step, and T is the number of steps. The mean is computed as a weighted sum of
    the currents. The weight of current[t] is (1 - (1 - k)^(T - t)) / (k T), where t counts from 0 to T - 1.
    """

    def __init__(self, sources: Mapping[str, int], outputs: int, network: SpikingNetwork) -> None:
        super().__init__(sources, outputs, 1.0, normalise=False)
        self.tau, self.intrinsic_lr = network.tau_membrane, network.intrinsic_lr
        self.leak = nn.Parameter(torch.zeros(outputs)) if network.learn_intrinsic else None

    def forward(self, seen: Mapping[str, Tensor], steps: int) -> Tensor:
        """Return the outputs of the network, (examples, outputs)."""
        k = self.constant(self.leak, self.tau, self.intrinsic_lr).clamp(1e-6, 1 - 1e-6)
        left = torch.arange(steps, 0, -1, device=k.device).unsqueeze(1)
        shares = -torch.expm1(left * torch.log1p(-k)) / (k * steps)
        return (self.currents(seen).unflatten(0, (-1, steps)) * shares).sum(1)


class SpikingNetwork(nn.Module):
    """Processes a sequence step by step with layers of spiking neurons. Leaky integrators compute the outputs.

    The output of a neuron is its trace, a moving average of its spikes. The input current of a neuron in a step is a
    sum of up to three parts: the traces of the previous layer in this step (weights W), the neuron's own trace of the
    step before (weight v), and, with `skip`, the traces of all layers before the previous one and the network's input
    (weights S). The first layer has no previous layer: there, W multiplies the network's input. W and S are nn.Linear,
    so the methods can prune them. v is not pruned. `spiking_scan` documents the equations, which come from Zhang, Li,
    arXiv:2010.12691.

    The inputs are real numbers of the shape (examples, steps, sizes[0]). All examples of a batch have the same number
    of steps. The outputs have the shape (examples, sizes[-1]). A forward pass draws no random numbers. Example::

        network = SpikingNetwork((28, 128, 128, 10))
        network(images)          # (n, 28 rows, 28 pixels) -> (n, 10)
        network.spikes(images)   # two tensors (n, 28, 128) of zeros and ones, which a loss may contain

    Args:
        sizes: the features of a step, the neurons of each spiking layer, and the outputs. At least three numbers >= 1.
        self_recurrent: whether each neuron has a weight v, which is 0 at first.
        skip: whether each layer and the output layer also read all earlier layers and the network's input, and not only
            the previous layer.
        learn_intrinsic: whether the leaks of potentials, traces and output integrators are trained. A leak is the share
            of a state that is lost in a step. Each neuron has its own leaks, which are sigmoids of trained numbers.
        normalise: whether batch normalisation over examples and steps is applied to the currents. It can be folded into
            the weights after the training. If False, each layer has a bias instead. The network is then harder to
            train.
        tau_membrane: initial time constant of the potentials and of the output integrators, in steps, > 1.
        tau_synapse: initial time constant of the traces, in steps, > 1.
        slope: slope of the surrogate gradient of a spike, > 0; see `spiking_scan`.
        intrinsic_lr: with SGD, the factor of the learning rate for the trained numbers of the leaks, > 0. With AdamW,
            the factor is the square root of this number. Weight decay moves the leaks towards their initial values.

    Raises:
        ValueError: if an argument is out of range, or if the inputs have another shape.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        self_recurrent: bool = True,
        skip: bool = True,
        learn_intrinsic: bool = True,
        normalise: bool = True,
        *,
        tau_membrane: float = 5.0,
        tau_synapse: float = 3.0,
        slope: float = 5.0,
        intrinsic_lr: float = 3.0,
    ) -> None:
        super().__init__()
        if len(sizes) < 3 or min(sizes) < 1:
            raise ValueError(f"sizes must be at least three numbers >= 1: input, layers, outputs; got {tuple(sizes)}")
        for name, value, least in (
            *(("tau_membrane", tau_membrane, 1), ("tau_synapse", tau_synapse, 1)),
            *(("slope", slope, 0), ("intrinsic_lr", intrinsic_lr, 0)),
        ):
            if not least < value < math.inf:
                raise ValueError(f"{name} must lie in ({least}, inf), got {value}")
        self.self_recurrent, self.learn_intrinsic, self.normalise = self_recurrent, learn_intrinsic, normalise
        self.tau_membrane, self.tau_synapse = tau_membrane, tau_synapse
        self.slope, self.intrinsic_lr = slope, intrinsic_lr
        self.features = sizes[0]
        sources = {"input": sizes[0]}
        self.hidden = nn.ModuleList()
        for i, neurons in enumerate(sizes[1:-1]):
            self.hidden.append(SpikingLayer(_read(sources, skip), neurons, self))
            sources[f"hidden_{i}"] = neurons
        self.readout = ReadOut(_read(sources, skip), sizes[-1], self)

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x)[0]

    def spikes(self, x: Tensor) -> list[Tensor]:
        """Return the spikes of each spiking layer: tensors of zeros and ones of the shape (examples, steps, neurons).

        The spikes have the surrogate gradient. A loss may therefore contain them. For a network with fewer spikes, add
        a multiple of (mean of the spikes)^2 to the loss.
        """
        return self._run(x)[1]

    def readers(self) -> list[tuple[SpikingLayer, list[nn.Linear]]]:
        """Return a pair for each spiking layer: the layer, and the list of all nn.Linear modules whose inputs are the
        traces of this layer. The modules belong to later layers."""
        matrices = [item for one in (*self._hidden(), self.readout) for item in one.weights.items()]
        return [
            (layer, [one for name, one in matrices if name == f"hidden_{i}" and isinstance(one, nn.Linear)])
            for i, layer in enumerate(self._hidden())
        ]

    def _hidden(self) -> list[SpikingLayer]:
        return [layer for layer in self.hidden if isinstance(layer, SpikingLayer)]

    def _run(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        if x.dim() != 3 or x.shape[1] < 1 or x.shape[2] != self.features:
            raise ValueError(f"the inputs must have the shape (examples, steps, {self.features}), got {tuple(x.shape)}")
        steps, seen, sent = x.shape[1], {"input": x.flatten(0, 1)}, []
        for i, layer in enumerate(self._hidden()):
            traces, spikes = layer(seen, steps)
            seen[f"hidden_{i}"] = traces.flatten(0, 1)
            sent.append(spikes)
        return self.readout(seen, steps), sent


def _read(sources: Mapping[str, int], skip: bool) -> dict[str, int]:
    """Return the sources that the next layer reads: the previous layer and then, with `skip`, all others."""
    latest_first = list(sources.items())[::-1]
    return dict(latest_first if skip else latest_first[:1])
