"""Test spiking networks: their outputs against loops over time steps, their prunable weights, and trainings."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.neurons import step_by_step
from tune_sparsity.experiments.spiking import SpikingLayer, SpikingNetwork
from tune_sparsity.sparsity import METHODS, left_dense, prunable_layers

PLAIN: dict[str, Any] = {"self_recurrent": False, "skip": False, "learn_intrinsic": False}
KINDS = [{}, PLAIN, {"normalise": False}, {"self_recurrent": False}, {"skip": False}, {"learn_intrinsic": False}]


def network(*sizes: int, seed: int = 0, **options: Any) -> SpikingNetwork:
    torch.manual_seed(seed)
    return SpikingNetwork(sizes, **options)


def moved(net: SpikingNetwork) -> SpikingNetwork:
    """Return the network in evaluation mode, with changed one-dimensional parameters and new running statistics."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for param in net.parameters():
            if param.dim() == 1:
                param.add_(0.4 * torch.randn(param.shape, generator=generator))
    net.train()
    net(inputs(64, 9, net.features))
    return net.eval()


def inputs(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_steps(net: SpikingNetwork, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the outputs and the spikes of a network in evaluation mode, computed layer by layer and step by step."""
    seen, sent = {"input": x}, []
    for i, layer in enumerate(net.hidden):
        assert isinstance(layer, SpikingLayer)
        currents = torch.stack([layer.currents({k: v[:, t] for k, v in seen.items()}) for t in range(x.shape[1])], 1)
        _, spikes, seen[f"hidden_{i}"] = step_by_step(currents, *layer.constants())
        sent.append(spikes)
    out = net.readout
    k = out.constant(out.leak, net.tau_membrane, net.intrinsic_lr)
    r, rs = torch.zeros(()), []
    for t in range(x.shape[1]):
        r = (1 - k) * r + out.currents({name: v[:, t] for name, v in seen.items()})
        rs.append(r)
    return torch.stack(rs).mean(0), sent


@pytest.mark.parametrize("options", KINDS)
def test_the_network_equals_its_computation_step_by_step(options: dict[str, Any]) -> None:
    net = moved(network(6, 12, 9, 7, 4, **options)).double()
    x = inputs(5, 9, 6).double()
    outputs, spikes = by_steps(net, x)
    assert torch.allclose(net(x), outputs, rtol=0, atol=1e-12)
    for ours, exact in zip(net.spikes(x), spikes, strict=True):
        assert torch.equal(ours, exact)
        assert 0.02 < exact.mean() < 0.7


def test_a_plain_network_is_feed_forward() -> None:
    """Compare a network without self-recurrence and skip connections with its formula. Its neuron constants are the
    initial ones."""
    net = network(5, 8, 3, **PLAIN, normalise=False, tau_membrane=4.0, tau_synapse=2.0)
    x = inputs(3, 6, 5)
    w, out = net.hidden[0].weights["input"].weight, net.readout.weights["hidden_0"].weight
    u = s = a = torch.zeros(3, 8)
    r, total = torch.zeros(3, 3), torch.zeros(3, 3)
    for t in range(6):
        u = 0.75 * u * (1 - s) + x[:, t] @ w.T
        s = (u >= 1).float()
        a = 0.5 * a + 0.5 * s
        r = 0.75 * r + a @ out.T
        total = total + r / 6
    assert s.mean() > 0.05
    assert torch.allclose(net(x), total, atol=1e-5)


def test_the_readout_is_the_mean_of_its_leaky_integrator_over_time() -> None:
    net = network(2, 4, 3, normalise=False)
    currents, steps = inputs(1, 7, 3), 7
    net.readout.currents = lambda seen: currents[0]  # type: ignore[method-assign]
    k = 1 / net.tau_membrane
    wanted = sum(currents[0, t] * (1 - (1 - k) ** (steps - t)) / (k * steps) for t in range(steps))
    assert torch.allclose(net.readout({}, steps)[0], wanted, atol=1e-6)


def test_the_neuron_constants_start_at_the_given_time_constants() -> None:
    net = network(3, 5, 2, tau_membrane=7.0, tau_synapse=2.5)
    v, membrane, synapse = net.hidden[0].constants()
    assert v.tolist() == [0.0] * 5
    assert membrane.tolist() == pytest.approx([1 / 7] * 5)
    assert synapse.tolist() == pytest.approx([1 / 2.5] * 5)


@pytest.mark.parametrize("ratio", [0.5, 3.0])
def test_intrinsic_lr_scales_the_sgd_steps_of_the_leak_logits(ratio: float) -> None:
    net = network(3, 5, 2, normalise=False, intrinsic_lr=ratio)
    layer = net.hidden[0]
    before = layer.constants().membrane.logit()
    logits = before.detach().requires_grad_()
    loss = layer.constants().membrane.square().sum()
    loss.backward()
    wanted = torch.autograd.grad(logits.sigmoid().square().sum(), logits)[0]
    with torch.no_grad():
        layer.membrane -= 0.1 * layer.membrane.grad
    assert torch.allclose(before - layer.constants().membrane.logit(), 0.1 * ratio * wanted, atol=1e-6)


@pytest.mark.parametrize("options", KINDS)
def test_only_matrices_are_pruned_and_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    net = network(6, 12, 9, 7, 4, **options)
    pairs = {(12, 6), (9, 12), (7, 9), (4, 7)}
    if options.get("skip", True):
        pairs |= {(9, 6), (7, 12), (7, 6), (4, 9), (4, 12), (4, 6)}
    layers = prunable_layers(net, example=inputs(4, 5, 6))
    assert {tuple(layer.weight.shape) for layer in layers} == pairs
    assert left_dense(net) == []
    off = {layer.name for layer in layers if not layer.sphere}
    assert off == {name for name, _ in net.named_parameters() if name.startswith("readout.weights.")}
    names = {name.rpartition(".")[2] for name, param in net.named_parameters() if param.dim() == 1}
    wanted = {"bias"}
    wanted |= {"self_weight"} if options.get("self_recurrent", True) else set()
    wanted |= {"membrane", "synapse", "leak"} if options.get("learn_intrinsic", True) else set()
    assert names - {"weight"} == wanted
    assert ("weight" in names) == options.get("normalise", True)
    net(inputs(8, 10, 6)).logsumexp(1).sum().backward()
    for name, param in net.named_parameters():
        assert param.grad is not None, name
        assert param.grad.abs().sum() > 0, name


def test_examples_do_not_affect_each_other_and_spikes_ignore_later_inputs() -> None:
    net, x = moved(network(4, 10, 8, 3)), inputs(6, 11, 4)
    order = torch.tensor([5, 2, 0, 3, 1, 4])
    assert torch.allclose(net(x[order]), net(x)[order], atol=1e-6)
    assert torch.allclose(torch.cat([net(one) for one in x.split(1)]), net(x), atol=1e-5)
    for padded, alone in zip(net.spikes(F.pad(x, (0, 0, 0, 4))), net.spikes(x), strict=True):
        assert torch.equal(padded[:, :11], alone)


def test_batch_normalisation_can_be_folded_into_the_weights() -> None:
    net = moved(network(5, 12, 9, 4)).double()
    folded = network(5, 12, 9, 4, normalise=False).double().eval()
    folded.load_state_dict({k: v for k, v in net.state_dict().items() if ".norm." not in k}, strict=False)
    with torch.no_grad():
        for ours, theirs in zip(folded.hidden, net.hidden, strict=True):
            norm = theirs.norm
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            for linear in ours.weights.values():
                linear.weight.mul_(scale.unsqueeze(1))
            ours.bias.copy_(norm.bias - norm.running_mean * scale)
    x = inputs(6, 10, 5).double()
    assert torch.allclose(folded(x), net(x), atol=1e-10)


def test_the_method_readers_returns_the_matrices_that_take_a_layers_spikes() -> None:
    net = network(6, 12, 9, 4)
    assert [[m.weight.shape for m in found] for _, found in net.readers()] == [[(9, 12), (4, 12)], [(4, 9)]]
    assert [layer for layer, _ in net.readers()] == list(net.hidden)
    plain = network(6, 12, 9, 4, skip=False)
    assert [[m.weight.shape for m in found] for _, found in plain.readers()] == [[(9, 12)], [(4, 9)]]


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((4, 3), {}),
        ((4, 0, 3), {}),
        ((4, 5, 3), {"tau_membrane": 1.0}),
        ((4, 5, 3), {"tau_synapse": math.nan}),
        ((4, 5, 3), {"slope": 0.0}),
        ((4, 5, 3), {"intrinsic_lr": math.inf}),
    ],
)
def test_options_out_of_range_raise_value_error(sizes: tuple[int, ...], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options), "sizes")):
        SpikingNetwork(sizes, **options)


@pytest.mark.parametrize("shape", [(5, 4), (5, 3, 6), (5, 0, 4)])
def test_inputs_of_another_shape_raise_value_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must have the shape \(examples, steps, 4\)"):
        network(4, 5, 3)(torch.zeros(shape))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("dense", "binary")])
def test_every_method_prunes_a_spiking_network_to_the_exact_sparsity(method: str) -> None:
    net = network(8, 20, 16, 4)
    params = {"final_sparsity": 0.8} | ({"p": 1.7, "sphere_lr": 0.02, "lr": 0.05} if method == "lpss" else {})
    sparse = METHODS[method].build(net, params, total_steps=40, generator=torch.Generator().manual_seed(0))
    x, y = inputs(64, 6, 8), torch.arange(64) % 4
    first = None
    for _ in range(40):
        sparse.zero_grad()
        loss = F.cross_entropy(net(x), y)
        first = loss.item() if first is None else first
        loss.backward()
        sparse.step()
    zeros, weights = sparse.zeros()
    assert (zeros, weights) == (math.ceil(0.8 * weights), 8 * 20 + 20 * 16 + 8 * 16 + (16 + 20 + 8) * 4)
    assert loss.item() < first


def test_a_penalty_on_spikes_lowers_the_spike_rate() -> None:
    x, y = inputs(64, 8, 6), torch.arange(64) % 3
    rates = []
    for weight in (0.0, 20.0):
        net = network(6, 24, 3)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for _ in range(40):
            optimizer.zero_grad()
            rate = torch.cat([spikes.mean((0, 1)) for spikes in net.spikes(x)]).mean()
            (F.cross_entropy(net(x), y) + weight * rate.square()).backward()
            optimizer.step()
        rates.append(float(rate.detach()))
    assert rates[1] < 0.6 * rates[0]


def test_a_state_dict_and_a_deep_copy_keep_the_outputs_of_the_network() -> None:
    net = moved(network(4, 10, 8, 3))
    x = inputs(6, 7, 4)
    again = network(4, 10, 8, 3, seed=5).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x), net(x))
    assert torch.equal(copy.deepcopy(net)(x), net(x))


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14), reason="torch 2.9 cannot trace it; 2.14 can"
)
def test_torch_export_can_export_a_spiking_network() -> None:
    net = moved(network(4, 10, 8, 3))
    batch = {0: torch.export.Dim("batch", min=1)}
    program = torch.export.export(net, (inputs(2, 7, 4),), dynamic_shapes=(batch,))
    x = inputs(6, 7, 4, seed=3)
    assert torch.allclose(program.module()(x), net(x), atol=1e-6)
