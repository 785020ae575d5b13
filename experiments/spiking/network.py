"""Build networks of spiking neurons with self-recurrence, skip connections and trained intrinsic constants."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from tune_sparsity.experiments.spiking.neurons.scan import Constants, spiking_scan


class _Reading(nn.Module):
    """The weights of a layer, one matrix for each source, and the currents that they produce.

    Args:
        sources: the name of each source -> its size. The previous layer comes first.
        neurons: the number of neurons in this layer.
        gain: scales the initial weights, which are normal with the deviation gain / sqrt(fan-in).
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
        """Return the input currents of the layer, (examples * steps, neurons).

        Args:
            seen: the name of each source -> its values, (examples * steps, size).
        """
        total = reduce(torch.add, (linear(seen[name]) for name, linear in self.weights.items()))
        return total + self.bias if self.norm is None else self.norm(total)

    def constant(self, trained: Tensor | None, tau: float, ratio: float) -> Tensor:
        """Return the share of each neuron that leaks in a step, at first 1/tau.

        Args:
            trained: the trained change of its logit, at first 0. If None, the share is not trained.
            tau: the initial time constant in steps, > 1.
            ratio: how many times faster SGD changes the logit than a parameter with the same gradient.
        """
        moved = self.zeros if trained is None else math.sqrt(ratio) * trained
        return torch.sigmoid(moved - math.log(tau - 1))  # 1/tau where moved is 0


class SpikingLayer(_Reading):
    """A layer of spiking neurons with its weights.

    A call takes the values of each source by name, (examples * steps, size), and the number of steps. It returns traces
    and spikes, each of the shape (examples, steps, neurons).
    """

    def __init__(self, sources: Mapping[str, int], neurons: int, network: SpikingNetwork) -> None:
        super().__init__(sources, neurons, 1.0 if network.normalise else 3.0, normalise=network.normalise)
        self.tau = (network.tau_membrane, network.tau_synapse)
        self.slope, self.intrinsic_lr = network.slope, network.intrinsic_lr
        self.self_weight = nn.Parameter(torch.zeros(neurons)) if network.self_recurrent else None
        self.membrane = nn.Parameter(torch.zeros(neurons)) if network.learn_intrinsic else None
        self.synapse = nn.Parameter(torch.zeros(neurons)) if network.learn_intrinsic else None

    def constants(self) -> Constants:
        """Return the current constants of the neurons."""
        leaks = zip((self.membrane, self.synapse), self.tau, strict=True)
        membrane, synapse = (self.constant(trained, tau, self.intrinsic_lr) for trained, tau in leaks)
        return Constants(self.zeros if self.self_weight is None else self.self_weight, membrane, synapse)

    def forward(self, seen: Mapping[str, Tensor], steps: int) -> tuple[Tensor, Tensor]:
        return spiking_scan(self.currents(seen).unflatten(0, (-1, steps)), self.constants(), self.slope)


class ReadOut(_Reading):
    """Leaky integrators without spikes, r[t] = (1 - k) r[t-1] + current[t]. The output is their mean over time.

    k is the share that leaks in a step, and T is the number of steps. The mean is a weighted sum of the currents. The
    weight of current[t] is (1 - (1 - k)^(T - t)) / (k T), where t counts from 0 to T - 1.
    """

    def __init__(self, sources: Mapping[str, int], outputs: int, network: SpikingNetwork) -> None:
        super().__init__(sources, outputs, 1.0, normalise=False)
        self.tau, self.intrinsic_lr = network.tau_membrane, network.intrinsic_lr
        self.leak = nn.Parameter(torch.zeros(outputs)) if network.learn_intrinsic else None

    def forward(self, seen: Mapping[str, Tensor], steps: int) -> Tensor:
        """Return the outputs (examples, outputs)."""
        k = self.constant(self.leak, self.tau, self.intrinsic_lr).clamp(1e-6, 1 - 1e-6)
        left = torch.arange(steps, 0, -1, device=k.device).unsqueeze(1)
        shares = -torch.expm1(left * torch.log1p(-k)) / (k * steps)
        return (self.currents(seen).unflatten(0, (-1, steps)) * shares).sum(1)


class SpikingNetwork(nn.Module):
    """A network whose layers of spiking neurons read a sequence step by step. Leaky integrators read them out.

    Each neuron sends a trace of its spikes. A layer's current in a step is a sum of up to three parts: the traces of
    the previous layer in this step (weights W), the neuron's own trace of the step before (weight v), and, with `skip`,
    the traces of earlier layers and the input (weights S). All W and S are nn.Linear, and every method prunes them. No
    v or other constant is pruned. `spiking_scan` documents the equations. They come from Zhang, Li, arXiv:2010.12691.

    The network takes real currents (examples, steps, sizes[0]). All examples of a batch have the same number of steps.
    The network returns (examples, sizes[-1]). It draws no random numbers. Example::

        network = SpikingNetwork((28, 128, 128, 10))
        network(images)          # (n, 28 rows, 28 pixels) -> (n, 10)
        network.spikes(images)   # two tensors (n, 28, 128) of zeros and ones, which a loss may contain

    Args:
        sizes: the features of a step, the neurons of each spiking layer, and the outputs. At least three numbers >= 1.
        self_recurrent: whether each neuron has a weight v, at first 0.
        skip: whether each layer and the read-out also read all layers before the previous one.
        learn_intrinsic: whether the leaks of membranes, traces and read-out are trained. Each neuron has its own leaks,
            which are sigmoids of trained logits.
        normalise: whether the currents get batch normalisation over examples and steps. This normalisation can be
            folded into the weights. If False, each layer has a bias, and is harder to train.
        tau_membrane: initial time constant of the potentials and of the read-out, in steps, > 1.
        tau_synapse: initial time constant of the traces, in steps, > 1.
        slope: slope of a spike's surrogate gradient, > 0.
        intrinsic_lr: with SGD, the factor of the learning rate for the logits of the leaks, > 0. With AdamW, the factor
            is the square root of this number. Weight decay draws the leaks to their initial values.

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
            raise ValueError(f"sizes are input, one spiking layer or more, and outputs, got {tuple(sizes)}")
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
        """Return the spikes of each spiking layer, zeros and ones of the shape (examples, steps, neurons).

        Their gradient is the surrogate gradient. To train a network with fewer spikes, add a multiple of the square of
        their mean to the loss.
        """
        return self._run(x)[1]

    def readers(self) -> list[tuple[SpikingLayer, list[nn.Linear]]]:
        """Return each spiking layer with the weight matrices that read it."""
        matrices = [item for one in (*self._hidden(), self.readout) for item in one.weights.items()]
        return [
            (layer, [one for name, one in matrices if name == f"hidden_{i}" and isinstance(one, nn.Linear)])
            for i, layer in enumerate(self._hidden())
        ]

    def _hidden(self) -> list[SpikingLayer]:
        return [layer for layer in self.hidden if isinstance(layer, SpikingLayer)]

    def _run(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        if x.dim() != 3 or x.shape[1] < 1 or x.shape[2] != self.features:
            raise ValueError(f"the inputs must be (examples, steps, {self.features}), got {tuple(x.shape)}")
        steps, seen, sent = x.shape[1], {"input": x.flatten(0, 1)}, []
        for i, layer in enumerate(self._hidden()):
            traces, spikes = layer(seen, steps)
            seen[f"hidden_{i}"] = traces.flatten(0, 1)
            sent.append(spikes)
        return self.readout(seen, steps), sent


def _read(sources: Mapping[str, int], skip: bool) -> dict[str, int]:
    """Return the sources of the next layer: the previous layer first and, with `skip`, all others."""
    latest_first = list(sources.items())[::-1]
    return dict(latest_first if skip else latest_first[:1])
