"""Test the scan against a neuron of another library: snntorch's Leaky, which sets its potential to 0 after a spike."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tune_sparsity.experiments.spiking import Constants, spiking_scan

snntorch: Any = pytest.importorskip("snntorch", reason="no snntorch: pip install snntorch")


@pytest.mark.parametrize("km", [0.1, 0.35, 0.9])
def test_potentials_and_spikes_are_those_of_leaky(km: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(6, 40, 5, generator=generator, dtype=torch.float64).mul(1.1).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    leak = torch.full((5,), km, dtype=torch.float64, requires_grad=True)
    constants = Constants(torch.zeros(5, dtype=torch.float64), leak, torch.ones(5, dtype=torch.float64))
    traces, spikes = spiking_scan(ours, constants, slope=5.0)

    leaky = snntorch.Leaky(
        beta=torch.full((5,), 1 - km, dtype=torch.float64),
        learn_beta=True,
        reset_mechanism="zero",
        reset_delay=False,
        spike_grad=snntorch.surrogate.sigmoid(slope=5),
    )
    potential, sent = torch.zeros(6, 5, dtype=torch.float64), []
    for now in theirs.unbind(1):
        spike, potential = leaky(now, potential)
        sent.append(spike)
    wanted = torch.stack(sent, 1)
    assert 0.1 < wanted.mean() < 0.6
    assert torch.equal(spikes, wanted)
    assert torch.equal(traces, wanted)  # synapse is 1: a trace is wholly new in each step
    weights = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    (spikes * weights).sum().backward()
    (wanted * weights).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    # The spikes of snntorch are float32, and so are their gradients.
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)
    assert leak.grad is not None
    assert torch.allclose(leak.grad, -leaky.beta.grad, rtol=1e-5, atol=1e-5)
