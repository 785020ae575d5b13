"""Networks of spiking neurons with self-recurrence, skip connections and trained intrinsic constants."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from tune_sparsity.experiments.spiking.neurons.scan import Constants, spiking_scan


class _Reading(nn.Module):
    """A layer's weights, one matrix for each layer that it reads, and the currents that they make.

    Args:
        sources: the sizes of what it reads, by name; the layer before comes first.
        neurons: the layer's own size.
        gain: of its first weights, which are normal with the deviation gain / sqrt(fan-in).
        normalise: whether batch normalisation over examples and steps takes the place of a bias.
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
        """Return the currents (examples * steps, neurons) of what is read: each (examples * steps, size), by name."""
        total = reduce(torch.add, (linear(seen[name]) for name, linear in self.weights.items()))
        return total + self.bias if self.norm is None else self.norm(total)

    def constant(self, trained: Tensor | None, tau: float, ratio: float) -> Tensor:
        """Return the leak of each neuron in a step: 1/tau, moved by what is trained.

        Args:
            trained: zeros at first; or None.
            ratio: by which SGD moves the constant faster than it moves a parameter of the same gradient.
        """
        moved = self.zeros if trained is None else math.sqrt(ratio) * trained
        return torch.sigmoid(moved - math.log(tau - 1))  # at 0: the sigmoid of logit(1/tau)


class SpikingLayer(_Reading):
    """Spiking neurons behind their weights. It may be called with a mapping as `_Reading.currents` takes it, and the
    number of steps; it returns traces and spikes, each (examples, steps, neurons)."""

    def __init__(self, sources: Mapping[str, int], neurons: int, network: SpikingNetwork) -> None:
        super().__init__(sources, neurons, 1.0 if network.normalise else 3.0, normalise=network.normalise)
        self.tau = (network.tau_membrane, network.tau_synapse)
        self.slope, self.intrinsic_lr = network.slope, network.intrinsic_lr
        self.self_weight = nn.Parameter(torch.zeros(neurons)) if network.self_recurrent else None
        self.membrane = nn.Parameter(torch.zeros(neurons)) if network.learn_intrinsic else None
        self.synapse = nn.Parameter(torch.zeros(neurons)) if network.learn_intrinsic else None

    def constants(self) -> Constants:
        """Return the neurons' constants as they are now."""
        leaks = zip((self.membrane, self.synapse), self.tau, strict=True)
        membrane, synapse = (self.constant(trained, tau, self.intrinsic_lr) for trained, tau in leaks)
        return Constants(self.zeros if self.self_weight is None else self.self_weight, membrane, synapse)

    def forward(self, seen: Mapping[str, Tensor], steps: int) -> tuple[Tensor, Tensor]:
        return spiking_scan(self.currents(seen).unflatten(0, (-1, steps)), self.constants(), self.slope)


class ReadOut(_Reading):
    """Leaky integrators without spikes, r[t] = (1 - k) r[t-1] + current[t], and their mean over time.

    That mean is a weighted sum of the currents: current[t] counts (1 - (1 - k)^(T - t)) / (k T) for t = 0 ... T - 1.
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
    """Layers of spiking neurons that read a sequence step by step, and a leaky read-out.

    Each neuron sends a trace of its spikes. A layer's current at a step is the sum of what the layer before sends at
    that step (W), of what the neuron itself sent at the step before (v), and, with `skip`, of what the earlier layers
    and the input send (S). All W and S are nn.Linear, and every method prunes them; no v or other constant is pruned.
    `spiking_scan` has the equations. Zhang, Li, arXiv:2010.12691.

    It takes real currents (examples, steps, sizes[0]), of one number of steps for all examples of a batch, and returns
    (examples, sizes[-1]). Nothing is drawn: the same inputs give the same outputs. Example::

        network = SpikingNetwork((28, 128, 128, 10))
        network(images)          # (n, 28 rows, 28 pixels) -> (n, 10)
        network.spikes(images)   # two tensors (n, 28, 128) of zeros and ones, which a loss may contain

    Args:
        sizes: features of a step, neurons of each spiking layer, outputs; at least three numbers >= 1.
        self_recurrent: whether each neuron has v, 0 at first.
        skip: whether a layer, and the read-out, also reads all layers before the one before it.
        learn_intrinsic: whether the leaks of membranes, traces and read-out are trained with the weights, each neuron's
            own, through a sigmoid.
        normalise: whether batch normalisation over examples and steps makes the currents; it can be folded into the
            weights. Otherwise the layer has a bias, and trains less easily.
        tau_membrane: steps in which a potential leaks at first, > 1; also of the read-out.
        tau_synapse: steps in which a trace leaks at first, > 1.
        slope: of a spike's surrogate gradient, > 0.
        intrinsic_lr: how many times faster than other parameters SGD moves the logits of the leaks, > 0. (AdamW: the
            root of it.) Weight decay draws the leaks to their first values.

    Raises:
        ValueError: for what is out of range.
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
            raise ValueError(f"sizes are of the input, at least one spiking layer and the outputs, got {tuple(sizes)}")
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
        """Return the spikes of each spiking layer, (examples, steps, neurons), zeros and ones. Their gradient is the
        surrogate's: a loss may add a weight times the square of their mean, so that fewer are sent."""
        return self._run(x)[1]

    def readers(self) -> list[tuple[SpikingLayer, list[nn.Linear]]]:
        """Return each spiking layer with the matrices that read it."""
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
    """Return what a layer reads of all that comes before it: the last one first, and the others with `skip`."""
    latest_first = list(sources.items())[::-1]
    return dict(latest_first if skip else latest_first[:1])
