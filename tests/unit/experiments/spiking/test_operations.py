"""Test the number of synaptic operations against a count of each spike and each weight, and against closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.neurons import step_by_step
from tune_sparsity.experiments import Data, Experiment, Recipe, Split, Training
from tune_sparsity.experiments.spiking import SpikingNetwork
from tune_sparsity.experiments.spiking.operations import activity
from tune_sparsity.sparsity import prunable_layers
from tune_sparsity.sparsity.cost.multiply_adds import count_uses
from tune_sparsity.tuner.worker.sizes import network_cost, spiking_cost

STEPS = 7


def sequences(examples: int) -> Split:
    generator = torch.Generator().manual_seed(examples)
    x = 1.5 * torch.randn(examples, STEPS, 5, generator=generator)
    return Split(x, torch.arange(examples) % 3)


def sparse_network(**options: Any) -> SpikingNetwork:
    torch.manual_seed(0)
    network = SpikingNetwork((5, 9, 8, 3), normalise=False, **options)
    with torch.no_grad():
        for layer in prunable_layers(network):
            layer.weight.mul_(torch.rand(layer.weight.shape) < 0.4)
    return network


def experiment_of(network: nn.Module) -> Experiment:
    part = sequences(40)
    return Experiment("own", lambda _: Data(part, part, part), lambda: network, Recipe(epochs=3, batch_size=16))


def macs_of(network: nn.Module, x: Tensor) -> int:
    layers = prunable_layers(network)
    uses = count_uses(network, layers, x)
    assert uses is not None
    return uses.macs({layer.name: int(layer.weight.count_nonzero()) for layer in layers})


def brute_force(network: SpikingNetwork, x: Tensor) -> int:
    """Return the number of operations on all examples, counted spike by spike."""
    network.eval()
    seen, spiked, count = {"input": x}, dict[str, Tensor](), 0
    layers = [*network.hidden, network.readout]
    for i, layer in enumerate(layers):
        for name, linear in layer.weights.items():
            for example in range(len(x)):
                for t in range(STEPS):
                    for column in range(linear.in_features):
                        at_work = name == "input" or spiked[name][example, t, column] == 1
                        count += int((linear.weight[:, column] != 0).sum()) if at_work else 0
        if layer is not network.readout:
            flat = {name: one.flatten(0, 1) for name, one in seen.items()}
            _, spikes, traces = step_by_step(layer.currents(flat).unflatten(0, (-1, STEPS)), *layer.constants())
            seen[f"hidden_{i}"], spiked[f"hidden_{i}"] = traces, spikes
    return count


@pytest.mark.parametrize("options", [{}, {"skip": False}, {"self_recurrent": False, "learn_intrinsic": False}])
def test_each_spike_counts_as_one_operation_per_weight_that_it_reaches(options: dict[str, Any]) -> None:
    network, split = sparse_network(**options), sequences(6)
    found = activity(experiment_of(network), network, split)
    assert found is not None
    operations = found.synaptic_operations(macs_of(network, split.x))
    assert operations == round(brute_force(network, split.x) / 6)
    spikes = network.spikes(split.x)
    assert found.rates == pytest.approx({f"hidden.{i}": float(one.detach().mean()) for i, one in enumerate(spikes)})
    assert min(found.rates.values()) > 0.05


def test_silent_neurons_add_no_operations_and_constant_spikes_add_all_macs() -> None:
    network, split = sparse_network(skip=False), sequences(6)
    macs = macs_of(network, split.x)
    first = STEPS * int(network.hidden[0].weights["input"].weight.count_nonzero())
    for bias, rate, wanted in ((-1e6, 0.0, first), (1e6, 1.0, macs)):
        for layer in network.hidden:
            nn.init.constant_(layer.bias, bias)
        found = activity(experiment_of(network), network, split)
        assert found is not None
        assert found.rates == {"hidden.0": rate, "hidden.1": rate}
        assert found.synaptic_operations(macs) == wanted


def test_all_multiply_adds_of_layers_around_a_spiking_network_are_counted() -> None:
    inner, split = sparse_network(), sequences(6)
    alone = activity(experiment_of(inner), inner, split)
    around = nn.Sequential(nn.Identity(), inner, nn.Linear(3, 4))
    found = activity(experiment_of(around), around, split)
    assert alone is not None
    assert found is not None
    assert found.rates == {f"1.{name}": rate for name, rate in alone.rates.items()}
    more = found.synaptic_operations(macs_of(around, split.x)) - alone.synaptic_operations(macs_of(inner, split.x))
    assert more == 12


def test_no_operations_are_counted_for_an_unused_spiking_network() -> None:
    network = nn.ModuleDict({"used": sparse_network(), "left": sparse_network()})
    network.forward = network["used"].forward  # type: ignore[method-assign]
    found, alone = (activity(experiment_of(one), one, sequences(4)) for one in (network, network["used"]))
    assert found is not None
    assert alone is not None
    assert (found.spared, found.caused) == (alone.spared, alone.caused)
    assert found.rates.keys() == {"used.hidden.0", "used.hidden.1"}


def test_operations_do_not_depend_on_the_batch_size_and_training_mode_is_kept() -> None:
    network = sparse_network()
    network.train()
    split = sequences(41)
    whole = activity(experiment_of(network), network, split)
    assert network.training
    parts = [
        activity(experiment_of(network), network, Split(split.x[a:b], split.y[a:b])) for a, b in ((0, 20), (20, 41))
    ]
    assert whole is not None
    caused = sum(one.caused * n for one, n in zip(parts, (20, 21), strict=True) if one is not None) / 41
    assert whole.caused == pytest.approx(caused)
    assert not any(module._forward_hooks for module in network.modules())


def test_networks_without_spiking_layers_have_no_synaptic_operations() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(5 * STEPS, 3))
    assert activity(experiment_of(network), network, sequences(4)) is None


def test_spiking_cost_returns_the_operations_of_the_trained_network() -> None:
    torch.manual_seed(1)
    experiment = experiment_of(SpikingNetwork((5, 9, 8, 3)))
    data = experiment.load(None)
    training = Training(experiment, data.train, data.val, "gmp", {"final_sparsity": 0.7}, epochs=2, seed=0)
    while not training.finished:
        training.epoch()
    uses = count_uses(training.model, training.sparse.layers, data.val.x)
    macs = network_cost(training, uses)["macs"]
    cost = spiking_cost(training, macs)
    found = activity(experiment, training.model, data.val)
    assert found is not None
    assert cost["syn_ops"] == found.synaptic_operations(int(macs)) < macs
    assert {name: cost[f"spike_rate_{name}"] for name in found.rates} == found.rates
    assert set(spiking_cost(training, None)) == {"spike_rate_hidden.0", "spike_rate_hidden.1"}
