"""Compute a layer of spiking neurons over time as one autograd function. Compiled code computes float32 on a CPU, torch
computes everything else.

The caller computes the input currents of all steps at once, with matrix products. In this module, only elementwise
operations remain.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

try:
    from tune_sparsity.experiments.spiking.neurons import _scan as compiled
except ImportError:  # installed without a C compiler, or on another kind of processor
    compiled = None  # type: ignore[assignment]


class Constants(NamedTuple):
    """Holds the constants of a layer's neurons, each of the shape (neurons).

    Attributes:
        self_weight: v, the weight from a neuron's own trace to its input current.
        membrane: km, the share of the potential that leaks in a step, in (0, 1].
        synapse: ks, the share of a trace that is new in a step, in (0, 1].
    """

    self_weight: Tensor
    membrane: Tensor
    synapse: Tensor


def spiking_scan(currents: Tensor, constants: Constants, slope: float = 5.0) -> tuple[Tensor, Tensor]:
    """Return the traces a and the spikes s of a layer of neurons. Both have the shape of `currents`.

    A spike is 0 or 1. A trace is a moving average of a neuron's spikes. All states are zero before the first step. For
    the steps t = 0, 1, ...::

        u[t] = (1 - km) u[t-1] (1 - s[t-1]) + currents[t] + v a[t-1]      potential; a spike sets it to zero
        s[t] = 1 if u[t] >= 1 else 0
        a[t] = (1 - ks) a[t-1] + ks s[t]

    In the backward pass, the derivative of a spike is replaced by that of sigmoid(slope (u - 1)), the surrogate. The
    equations come from Zhang, Li, "Skip-Connected Self-Recurrent Spiking Neural Networks with Joint Intrinsic Parameter
    and Synaptic Weight Training", arXiv:2010.12691.

    Args:
        currents: the input currents, (examples, steps, neurons), of any floating-point type. The results have the
            constants' type.
        constants: v, km and ks of the neurons.
        slope: the slope of the surrogate, > 0.
    """
    traces, spikes = _Scan.apply(currents.to(constants.membrane.dtype), *constants, slope)
    return traces, spikes


def _fits(*tensors: Tensor) -> bool:
    """Return whether the compiled code can work on these tensors."""
    if compiled is None or torch.compiler.is_compiling():  # torch.compile traces with tensors that have no memory
        return False
    return all(one.dtype == torch.float32 and one.device.type == "cpu" for one in tensors)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, currents: Tensor, v: Tensor, km: Tensor, ks: Tensor, slope: float) -> tuple[Tensor, Tensor]:
        run = _compiled_forward if _fits(currents, v, km, ks) else _torch_forward
        u, s, a = run(currents.contiguous(), v.contiguous(), km.contiguous(), ks.contiguous())
        ctx.save_for_backward(u, s, a, v, km, ks)
        ctx.slope = slope
        ctx.set_materialize_grads(False)
        return a, s

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_a: Tensor | None, grad_s: Tensor | None) -> tuple[Tensor | None, ...]:
        u, s, a, v, km, ks = ctx.saved_tensors
        given = [None if one is None else one.contiguous() for one in (grad_a, grad_s)]
        surrogate = torch.sigmoid((u - 1).mul_(ctx.slope))
        surrogate = surrogate.addcmul_(surrogate, surrogate, value=-1).mul_(ctx.slope)
        run = _compiled_backward if _fits(u) else _torch_backward
        return *run(given, (u, s, a, surrogate), (v.contiguous(), km.contiguous(), ks.contiguous())), None


def _torch_forward(currents: Tensor, v: Tensor, km: Tensor, ks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    found = []
    u = s = a = torch.zeros_like(currents[:, 0])
    for now in currents.unbind(1):
        u = (1 - km) * (u * (1 - s)) + (now + v * a)
        s = (u >= 1).to(u.dtype)
        a = (1 - ks) * a + ks * s
        found.append((u, s, a))
    us, ss, as_ = (torch.stack(one, 1) for one in zip(*found, strict=True))
    return us, ss, as_


def _torch_backward(
    grads: list[Tensor | None], saved: tuple[Tensor, ...], constants: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Compute the gradients from the last step to the first.

    Args:
        grads: the gradients of the loss with respect to the traces and the spikes. None stands for a zero gradient.
        saved: potentials, spikes, traces, and the surrogate derivative of each spike with respect to its potential.
        constants: v, km and ks of the neurons.

    Returns:
        The gradients with respect to the currents, v, km and ks.
    """
    (grad_a, grad_s), (u, s, a, surrogate), (v, km, ks) = grads, saved, constants
    grad_currents = torch.empty_like(u)
    # The parts of three gradients that come from step t + 1: with respect to the trace, to the potential, and (because
    # of the reset) to the spike.
    ga = gu = gr = zero = torch.zeros_like(u[:, 0])
    sums = [zero, zero, zero]  # gradients of v, km and ks, for each example
    for t in reversed(range(u.shape[1])):
        a_before = a[:, t - 1] if t else zero
        s_before, u_before = (s[:, t - 1], u[:, t - 1]) if t else (zero, zero)
        if grad_a is not None:
            ga = ga + grad_a[:, t]
        gs = ga * ks + gr
        if grad_s is not None:
            gs = gs + grad_s[:, t]
        g = gs * surrogate[:, t] + gu
        grad_currents[:, t] = g
        kept = u_before * (1 - s_before)
        sums = [sums[0] + g * a_before, sums[1] - g * kept, sums[2] + ga * (s[:, t] - a_before)]
        gu = g * (1 - km) * (1 - s_before)
        gr = -g * (1 - km) * u_before
        ga = ga * (1 - ks) + g * v
    return grad_currents, *(one.sum(0) for one in sums)


def _compiled_forward(currents: Tensor, *constants: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, s, a = (torch.empty_like(currents) for _ in range(3))
    compiled.forward(*currents.shape, *_addresses(currents, *constants, u, s, a))
    return u, s, a


def _compiled_backward(
    grads: list[Tensor | None], saved: tuple[Tensor, ...], constants: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Compute the gradients with compiled code. The arguments and results are those of `_torch_backward`."""
    grad_currents = torch.empty_like(saved[0])
    sums = [torch.zeros_like(one) for one in constants]
    memory = torch.empty(3 * len(constants[0]))
    found = (grad_currents, *sums)
    compiled.backward(*grad_currents.shape, *_addresses(*grads, *saved, *constants, *found, memory))
    return found


def _addresses(*tensors: Tensor | None) -> list[int]:
    return [0 if one is None else one.data_ptr() for one in tensors]
