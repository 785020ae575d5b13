"""LpSGD: stochastic gradient descent on the unit Lp sphere, with ordinary SGD groups beside it.

The optimizer keeps the dual image v of every sphere weight as its state; the parameter itself holds what the network
multiplies with, gain x w. Masks are not its business: whoever prunes multiplies the parameter after the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from sparsity.sphere import check_p, dual_exponent, from_dual, project, row_norm, to_dual

LR_MAX = 0.25
"""Largest learning rate on the sphere: v keeps at least 1 - 2 x 0.25 = 1/2 of its norm in a step, so that the sum of
|v|^q stays far above float32's smallest number for every supported p and no second rescaling is needed."""
_NUMPY_LOG2 = torch.backends.cpu.get_cpu_capability() == "AVX512"
_TINY = 1e-38  # keeps 1/largest finite in float32; smaller gradients are as good as none
_NO_NORM = 1e-30  # a smaller sum of |v|^q is that of a row that came onto the sphere as zeros: it has no norm yet
_GAIN_MIN = 1e-6  # a gain at zero would silence its neuron for good, and the sign belongs to w


class LpSGD(torch.optim.Optimizer):
    """SGD with (Nesterov) momentum on the unit Lp sphere (arXiv 2103.16013).

    Groups with an exponent `p` are sphere groups: the rows of each parameter (first dimension = output neurons, the
    rest flattened = fan-in) satisfy ||w||_p = 1 over all their entries, pruned ones included, because a semi-pruned
    weight lives on in v. With d the gradient after momentum and q = p/(p-1) one step is::

        v <- (1 - lr) v - lr d/||d||_q;   v <- v/||v||_q;   w <- sign(v)|v|^(1/(p-1));   parameter <- gain * w

    Only the direction of d counts, so gradients may have any scale; a row with no gradient stays as it is.
    Groups with p = None take ordinary SGD.

    Args:
        params: parameters or groups, as for any torch optimizer.
        lr: learning rate; on the sphere in [0, 0.25]. The published peak is 2/256.
        p: exponent in [1.02, 2], or None for an ordinary group.
        momentum: in [0, 1).
        nesterov: Nesterov's look-ahead; needs momentum > 0 to have an effect.
        weight_decay: L2 coefficient of ordinary groups and, in sphere groups, of the gains. On the sphere itself it
            has no meaning: without gains it is refused there.
        gain: sphere groups only: scale every row by a learnable gain, for networks without normalisation layers.
            It starts at sqrt(2)/||w||_2 (He's variance for ReLU) and takes ordinary SGD with rate `gain_lr`.
        gain_lr: learning rate of the gains.

    Raises:
        ValueError: for a value outside its range, or a sphere parameter with fewer than 2 dimensions.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2 / 256,
        *,
        p: float | None = None,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        gain: bool = False,
        gain_lr: float = 0.1,
    ) -> None:
        defaults = {
            "lr": lr,
            "p": p,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "gain": gain,
            "gain_lr": gain_lr,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group as torch does, checked, and puts the rows of a sphere group onto the sphere at once."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_group(group)
        except ValueError:
            self.param_groups.pop()
            raise
        if group["p"] is not None:
            for param in group["params"]:
                self._enter_sphere(param, group)

    @torch.no_grad()
    def _enter_sphere(self, param: Tensor, group: dict[str, Any]) -> None:
        rows = param.detach().float().flatten(1) if param.dtype != torch.float64 else param.detach().flatten(1)
        w = project(rows, group["p"])
        state = self.state[param]
        state["v"] = to_dual(w, group["p"])
        if group["gain"]:
            norm = row_norm(w, 2.0)
            state["gain"] = 2**0.5 / torch.where(norm > 0, norm, torch.ones_like(norm))
            w = w * state["gain"]
        param.copy_(w.view_as(param))

    def sphere_weights(self, param: Tensor) -> Tensor:
        """w of a sphere parameter, shape (rows, fan-in): without gain, and before any mask."""
        p = self._group_of(param)["p"]
        return from_dual(self.state[param]["v"], p)

    def gain(self, param: Tensor) -> Tensor | None:
        """The gains of a sphere parameter, shape (rows, 1); None where it has none."""
        return self.state[param].get("gain")

    def saliency(self, param: Tensor) -> Tensor:
        """log2(gain |w|) of a sphere parameter, in its shape: comparable across rows and layers, and free of the
        underflow of |v|^(1/(p-1))."""
        p, state = self._group_of(param)["p"], self.state[param]
        log_w = state["v"].abs().log2() / (p - 1)
        if "gain" in state:
            log_w = log_w + state["gain"].log2()
        return log_w.view_as(param)

    def _scratch(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Two work tensors of the shape of `like`, shared by all parameters of that shape; never part of the state."""
        buffers: dict[Any, tuple[Tensor, Tensor]] = self.__dict__.setdefault("_buffers", {})
        key = (like.shape, like.dtype, like.device)
        if key not in buffers:
            buffers[key] = (torch.empty_like(like), torch.empty_like(like))
        return buffers[key]

    def _group_of(self, param: Tensor) -> dict[str, Any]:
        for group in self.param_groups:
            if group["p"] is not None and any(param is other for other in group["params"]):
                return group
        raise ValueError("this parameter lies on no sphere of this optimizer")

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of every parameter that has a gradient.

        Raises:
            FloatingPointError: if the gradient of a sphere parameter is NaN or infinite; the parameter is named, and
                has not been changed. On a GPU the question would stall the device, and is not asked.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for index, param in enumerate(group["params"]):
                if param.grad is None:
                    continue
                if group["p"] is None:
                    _sgd(param, self.state[param], group)
                elif not _sphere(param, self.state[param], group, self._scratch(self.state[param]["v"])):
                    raise FloatingPointError(f"the gradient of {_name(group, index)} is NaN or infinite")
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but state keeps its own dtype, where torch would cast v to that of a half-precision parameter,
        and is copied, where torch would go on in the very tensors of `state_dict`."""
        super().load_state_dict(state_dict)
        params = [param for group in self.param_groups for param in group["params"]]
        for index, saved in state_dict["state"].items():
            state = self.state[params[index]]
            for key, value in saved.items():
                if isinstance(value, Tensor):
                    state[key] = value.to(state[key].device, copy=True)


def _check_group(group: dict[str, Any]) -> None:
    """Raises ValueError for settings outside their ranges."""
    sphere = group["p"] is not None
    if sphere:
        check_p(group["p"])
    limit = LR_MAX if sphere else float("inf")
    if not 0.0 <= group["lr"] <= limit:
        raise ValueError(f"lr of {'a sphere' if sphere else 'an ordinary'} group must lie in [0, {limit}]")
    if not 0.0 <= group["momentum"] < 1.0:
        raise ValueError(f"momentum must lie in [0, 1), got {group['momentum']}")
    if group["gain_lr"] < 0.0 or group["weight_decay"] < 0.0:
        raise ValueError("gain_lr and weight_decay must not be negative")
    if sphere and group["weight_decay"] != 0.0 and not group["gain"]:
        raise ValueError("weight_decay has no meaning on a sphere without gains, every row having norm 1: set it to 0")
    if sphere and any(param.dim() < 2 for param in group["params"]):
        raise ValueError("a sphere parameter needs at least 2 dimensions: its rows are the neurons' fan-in weights")


def _momentum(
    grad: Tensor, state: dict[str, Tensor], key: str, group: dict[str, Any], out: Tensor | None = None
) -> Tensor:
    """The gradient after heavy-ball or Nesterov momentum, in torch.optim.SGD's form (no dampening)."""
    momentum = group["momentum"]
    if momentum == 0.0:
        return grad
    if key not in state:
        state[key] = grad.clone()
    else:
        state[key].mul_(momentum).add_(grad)
    return torch.add(grad, state[key], alpha=momentum, out=out) if group["nesterov"] else state[key]


def _sgd(param: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    assert param.grad is not None
    grad = param.grad
    if group["weight_decay"]:
        grad = grad.add(param, alpha=group["weight_decay"])
    param.add_(_momentum(grad, state, "momentum_buffer", group), alpha=-group["lr"])


def _name(group: dict[str, Any], index: int) -> str:
    """The parameter's name where the group was made of named parameters, else its shape."""
    names = group.get("param_names")
    return str(names[index]) if names else f"a parameter of shape {tuple(group['params'][index].shape)}"


def _sphere(param: Tensor, state: dict[str, Tensor], group: dict[str, Any], scratch: tuple[Tensor, Tensor]) -> bool:
    """One step on the sphere; False, and no step, if the gradient is NaN or infinite.

    Everything of the parameter's size is computed in the two scratch tensors (rows, fan-in): on a CPU, fresh memory
    costs more than the arithmetic.
    """
    assert param.grad is not None
    v, lr, q = state["v"], group["lr"], float(dual_exponent(group["p"]))
    a, b = scratch
    grad = param.grad.flatten(1).to(v.dtype)
    # The gain's gradient is <dL/dparameter, w>, and the parameter holds gain * w (masked where it is masked).
    gain_grad = torch.mul(grad, param.flatten(1), out=a).sum(1, keepdim=True) / state["gain"] if group["gain"] else None
    d = _momentum(grad, state, "momentum_buffer", group, out=a)

    largest = torch.abs(d, out=b).amax(1, keepdim=True).clamp_min_(_TINY)
    power = _log2_(b.div_(largest)).mul_(q).exp2_().sum(1, keepdim=True)  # ||d/largest||_q^q in [1, n]; 0 if d = 0
    rate = power.clamp_min_(1.0).pow_(-1 / q).mul_(-lr / (1 - lr)).div_(largest)
    # amin, since it passes NaN on; a sum would overflow where many rows are dead and their rate is huge.
    if not rate.is_cuda and not math.isfinite(rate.amin().item()):
        return False
    v.addcmul_(d, rate)  # ((1 - lr) v - lr d/||d||_q)/(1 - lr): the factor goes with the norm

    # With r = |v|^(q-2): v r is w before it is scaled, and |v|^q = v (v r), so one power serves norm and weights.
    torch.abs(v, out=b)
    unscaled = v if q == 2.0 else torch.mul(v, _log2_(b).mul_(q - 2).exp2_(), out=b)
    norm = torch.mul(v, unscaled, out=a).sum(1, keepdim=True)
    norm.clamp_min_(_NO_NORM).pow_(1 / q)
    scale = norm.pow(1 - q)
    if gain_grad is not None:
        gain = state["gain"]
        if group["weight_decay"]:
            gain_grad = gain_grad.add(gain, alpha=group["weight_decay"])
        gain.sub_(_momentum(gain_grad, state, "gain_momentum", group), alpha=group["gain_lr"]).clamp_min_(_GAIN_MIN)
        scale.mul_(gain)
    torch.mul(unscaled.view_as(param), scale.view(-1, *[1] * (param.dim() - 1)), out=param)
    v.div_(norm)
    return True


def _log2_(x: Tensor) -> Tensor:
    """log2 in place; that of 0 is -inf. With AVX-512 NumPy's is four times as fast as torch's on a CPU."""
    if _NUMPY_LOG2 and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
        array = x.numpy()
        with np.errstate(divide="ignore"):
            np.log2(array, out=array)
        return x
    return x.log2_()
