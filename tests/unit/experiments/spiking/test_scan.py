"""Test the scan of neurons over time. It is compared with autograd of single steps and with closed forms. The compiled
scan is compared with the scan in torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.neurons import step_by_step
from tune_sparsity.experiments.spiking.neurons import scan as module
from tune_sparsity.experiments.spiking.neurons.scan import Constants, spiking_scan

needs_compiler = pytest.mark.skipif(
    module.compiled is None, reason="no compiled scan: apt-get install gcc libc6-dev, then make compile"
)


@pytest.fixture(params=["compiled", "torch"])
def either_scan(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(module, "compiled", None)
    elif module.compiled is None:
        pytest.skip("no compiled scan: apt-get install gcc libc6-dev, then make compile")


def drawn(shape: tuple[int, int, int], seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Constants]:
    """Return random currents and neuron constants that need gradients. About a third of the neurons spike in a step."""
    generator = torch.Generator().manual_seed(seed)
    currents = torch.randn(shape, generator=generator, dtype=torch.float64).mul(1.2).to(dtype).requires_grad_()
    v = torch.randn(shape[2], generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    km, ks = (torch.rand(shape[2], generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for _ in "ms")
    return currents, Constants(v, km, ks)


def gradients(found: tuple[Tensor, Tensor], inputs: tuple[Tensor, ...], seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(one.shape, generator=generator, dtype=torch.float64).to(one.dtype) for one in found]
    loss = sum(((one * weight).sum() for one, weight in zip(found, weights, strict=True)), torch.zeros(()))
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize(("shape", "slope"), [((3, 7, 5), 5.0), ((2, 1, 4), 2.0), ((4, 40, 33), 8.0), ((1, 3, 1), 1.0)])
def test_the_scan_equals_autograd_of_the_steps(shape: tuple[int, int, int], slope: float) -> None:
    currents, constants = drawn(shape, seed=1)
    traces, spikes = spiking_scan(currents, constants, slope)
    _, s, a = step_by_step(currents, *constants, slope)
    assert torch.equal(spikes, s)
    assert torch.allclose(traces, a, rtol=0, atol=1e-12)
    assert 0.1 < s.mean() < 0.6 or s.numel() < 10
    inputs = (currents, *constants)
    for ours, exact in zip(gradients((traces, spikes), inputs, 2), gradients((a, s), inputs, 2), strict=True):
        scale = max(1.0, float(exact.abs().max()))
        assert torch.allclose(ours, exact, rtol=0, atol=1e-12 * scale)


def test_each_of_the_two_results_of_the_scan_has_a_correct_gradient() -> None:
    currents, constants = drawn((3, 9, 6), seed=3)
    traces, spikes = spiking_scan(currents, constants)
    _, s, a = step_by_step(currents, *constants)
    for ours, theirs in ((traces, a), (spikes, s)):
        pair = [torch.autograd.grad(one.square().sum(), currents, retain_graph=True)[0] for one in (ours, theirs)]
        assert torch.allclose(*pair, rtol=0, atol=1e-12)


@needs_compiler
@pytest.mark.parametrize("shape", [(3, 7, 5), (5, 28, 64), (2, 1, 3), (1, 60, 33)])
def test_the_compiled_scan_and_its_torch_version_give_the_same_results(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    currents, constants = drawn(shape, 4, torch.float32)
    inputs = (currents, *constants)
    compiled = spiking_scan(currents, constants)
    found = gradients(compiled, inputs, 5)
    monkeypatch.setattr(module, "compiled", None)
    plain = spiking_scan(currents, constants)
    assert all(torch.equal(one, other) for one, other in zip(compiled, plain, strict=True))
    for one, other in zip(found, gradients(plain, inputs, 5), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_the_compiled_float32_scan_is_near_the_scan_in_float64() -> None:
    currents, constants = drawn((8, 20, 16), 6, torch.float32)
    doubles = [one.detach().double().requires_grad_() for one in (currents, *constants)]
    exact = spiking_scan(doubles[0], Constants(*doubles[1:]))
    found = spiking_scan(currents, constants)
    assert torch.equal(found[1].double(), exact[1])
    pairs = zip(gradients(found, (currents, *constants), 7), gradients(exact, tuple(doubles), 7), strict=True)
    for ours, wanted in pairs:
        assert torch.allclose(ours.double(), wanted, rtol=1e-3, atol=1e-3)


def constant(value: float, neurons: int = 1) -> Tensor:
    return torch.full((neurons,), value)


@pytest.mark.usefixtures("either_scan")
def test_a_current_below_the_leak_never_spikes() -> None:
    currents = torch.full((1, 300, 1), 0.19)
    _, spikes = spiking_scan(currents, Constants(constant(0.0), constant(0.2), constant(0.3)))
    u, *_ = step_by_step(currents, constant(0.0), constant(0.2), constant(0.3))
    assert spikes.sum() == 0
    assert float(u[0, -1, 0]) == pytest.approx(0.19 / 0.2, abs=1e-5)
    _, above = spiking_scan(torch.full((1, 300, 1), 0.21), Constants(constant(0.0), constant(0.2), constant(0.3)))
    assert above.sum() > 0


@pytest.mark.usefixtures("either_scan")
def test_a_current_of_one_spikes_at_every_step() -> None:
    traces, spikes = spiking_scan(torch.ones(1, 6, 1), Constants(constant(0.0), constant(0.2), constant(0.25)))
    assert spikes.tolist() == [[[1.0]] * 6]
    assert traces[0, :, 0].tolist() == pytest.approx([1 - 0.75 ** (t + 1) for t in range(6)])


@pytest.mark.usefixtures("either_scan")
def test_neurons_without_memory_spike_at_exactly_the_currents_of_at_least_1() -> None:
    currents = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0))
    traces, spikes = spiking_scan(currents, Constants(constant(0.0, 4), constant(1.0, 4), constant(1.0, 4)))
    assert torch.equal(spikes, (currents >= 1).float())
    assert torch.equal(traces, spikes)


@pytest.mark.usefixtures("either_scan")
def test_results_do_not_depend_on_other_examples_or_later_steps() -> None:
    currents, constants = drawn((5, 12, 7), 8, torch.float32)
    whole = spiking_scan(currents, constants)
    order = torch.tensor([3, 1, 4, 0, 2])
    for turned, one in zip(spiking_scan(currents[order], constants), whole, strict=True):
        assert torch.equal(turned, one[order])
    for begun, one in zip(spiking_scan(currents[:, :5], constants), whole, strict=True):
        assert torch.equal(begun, one[:, :5])


@pytest.mark.usefixtures("either_scan")
def test_inputs_may_be_non_contiguous_or_bfloat16() -> None:
    currents, constants = drawn((4, 6, 5), 9, torch.float32)
    wanted, _ = spiking_scan(currents, constants)
    turned = currents.detach().permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not turned.is_contiguous()
    assert torch.equal(spiking_scan(turned, constants)[0], wanted)
    half = currents.detach().bfloat16().requires_grad_()
    traces, _ = spiking_scan(half, constants)
    traces.sum().backward()
    assert (traces.dtype, half.grad is not None and half.grad.dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.usefixtures("either_scan")
def test_an_empty_batch_gives_empty_results() -> None:
    _, constants = drawn((1, 1, 3), 10, torch.float32)
    traces, spikes = spiking_scan(torch.zeros(0, 4, 3), constants)
    assert traces.shape == spikes.shape == (0, 4, 3)
