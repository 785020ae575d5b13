"""Compute spiking neurons step by step, with gradients by autograd. Tests compare `spiking_scan` with this."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Spike(torch.autograd.Function):
    """Computes 1 where u >= 1, and otherwise 0. The backward pass uses the derivative of sigmoid(slope * (u - 1))."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(u)
        ctx.slope = slope
        return (u >= 1).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        sigmoid = torch.sigmoid(ctx.slope * (ctx.saved_tensors[0] - 1))
        return grad * ctx.slope * sigmoid * (1 - sigmoid), None


def step_by_step(
    currents: Tensor, v: Tensor, km: Tensor, ks: Tensor, slope: float = 5.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return potentials, spikes and traces, each (examples, steps, neurons)."""
    found = []
    u = s = a = torch.zeros_like(currents[:, 0])
    for t in range(currents.shape[1]):
        u = (1 - km) * u * (1 - s) + currents[:, t] + v * a
        s = Spike.apply(u, slope)
        a = (1 - ks) * a + ks * s
        found.append((u, s, a))
    us, ss, as_ = (torch.stack(list(one), 1) for one in zip(*found, strict=True))
    return us, ss, as_
