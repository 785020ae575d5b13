"""Update several parameters on the Lp sphere together. The rows of all these parameters (one row for each neuron) lie
in one flat tensor, so that one operation updates all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tune_sparsity.sparsity.optim.row_ops import Layout, Rows, descend, inverse_norms, row_dot, times_own_power
from tune_sparsity.sparsity.orientation import STANDARD, Orientation
from tune_sparsity.sparsity.sphere import dual_exponent

_NO_NORM = 1e-30  # a smaller sum of |v|^q belongs to a row that was zero at the start, and has no norm yet
_GAIN_MIN = 1e-6  # the smallest gain: a step divides by the gain, and a negative gain would reverse the sign of w

_ONE_A_ROW = ("gain", "gain_momentum")  # states with one number for each row; others have one for each weight

State = dict[str, Tensor]


class ForeachStep:
    """Makes the steps of LpSGD for several parameters on the sphere. The states of these parameters must have the same
    device and dtype.

    The states become views of flat tensors that this object owns. In a flat tensor, the parameters are sorted by
    fan-in. One call of an elementwise operation then processes all parameters. One call of an operation on rows
    processes all parameters with the same fan-in.

    Args:
        params: the parameters. Each has a gradient at every `step`.
        states: the optimizer's state of each parameter. It contains "v", shape (rows, fan-in), and "gain", shape (rows,
            1). "v" is the dual image sign(w)|w|^(p-1) of the weights w on the sphere (see LpSGD). If other code puts
            other tensors into a state, the next step uses them.
        masks: for each parameter a mask in its shape, or None. Masked weights are zero, and their gradients count as
            zero.
        foreach: whether one operation copies all gradients into a flat tensor, and one operation copies all new values
            into the parameters. These copies reduce the number of kernels. If None, this is done only on a GPU, where
            the start of a kernel takes longer than the copies.
        owned: a dict from keys of the states, such as "v", to flat tensors. It comes from an earlier object for the
            same parameters, and this object continues to use it. If None, this object makes new flat tensors.
        orientation: tells which dimensions of the parameters form the rows.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        states: Sequence[State],
        masks: Sequence[Tensor] | None = None,
        foreach: bool | None = None,
        owned: dict[str, Rows] | None = None,
        orientation: Orientation = STANDARD,
    ) -> None:
        self._orientation = orientation
        order = sorted(range(len(params)), key=lambda i: states[i]["v"].shape[1])
        self._params, self._states = [params[i] for i in order], [states[i] for i in order]
        self._masks = None if masks is None else [masks[i] for i in order]
        self._layout = Layout([(len(state["v"]), state["v"].shape[1]) for state in self._states])
        self._owned = {} if owned is None else owned
        v = self._rows("v").flat
        self._gathers = foreach if foreach is not None else v.device.type != "cpu"
        # Reused memory for results of the parameters' size: on a CPU, new memory costs more than arithmetic.
        self._a, self._b = (self._layout.entries(torch.empty_like(v)) for _ in range(2))
        rows = sum(rows for rows, _ in self._layout.shapes)
        self._rates, self._powers, self._gain_grads = (self._layout.one_a_row(v.new_empty(rows)) for _ in range(3))

    def step(self, group: dict[str, Any]) -> Tensor | None:
        """Make one step with the settings of `group`. The values lr, gain_lr and p may be tensors on the device.

        Returns:
            On a CPU: a parameter whose gradient is NaN or infinite, or None if all gradients are finite. If a parameter
            is returned, no parameter and no dual state v has changed. On other devices, the gradients are not checked,
            and the result is None.
        """
        lr, q = group["lr"], dual_exponent(group["p"])
        for state in self._states:
            state.pop("latent", None)  # a state of the compiled step, which would be wrong after this step
        v, grads = self._rows("v"), self._gradients()
        if group["gain"]:
            self._gain_gradients(grads, group["weight_decay"])
        d = self._momentum(grads, "momentum_buffer", group, self._a)
        rates = inverse_norms(d, q, self._b, self._rates).mul_(-lr / (1 - lr))
        # amin propagates NaN. A sum could overflow, because dead rows have huge rates.
        if rates.device.type == "cpu" and not math.isfinite(rates.amin().item()):
            parts = zip(self._params, self._rates.parts, strict=True)
            return next(param for param, rate in parts if not rate.isfinite().all())
        v.add_(d, self._rates)  # ((1 - lr) v - lr d/||d||_q)/(1 - lr): the normalisation removes the factor

        # w is `unscaled` = v |v|^(q-2), scaled to norm 1. The norm needs the sum of |v|^q, which is the inner
        # product of v and `unscaled`. So each weight needs only one power.
        unscaled = times_own_power(v, q - 2.0, self._b)
        v.products(unscaled, self._powers)
        powers = self._powers.flat.clamp_min_(_NO_NORM)
        scales = torch.pow(powers, 1 / q - 1, out=self._rates.flat)
        gains = self._rows("gain").flat
        if group["gain"]:
            gain_d = self._momentum(self._pieces(self._gain_grads), "gain_momentum", group, self._gain_grads)
            descend([gains], [gain_d.flat], group["gain_lr"])
            gains.clamp_min_(_GAIN_MIN)
        scales.mul_(gains)
        self._scatter(unscaled)
        powers.pow_(-1 / q)
        v.scale_(self._powers)
        return None

    def _rows(self, key: str) -> Rows:
        """Return the state `key` of all parameters in one flat tensor. The states of the parameters are views of it."""
        rows = self._owned.get(key)
        if rows is None or any(state[key] is not part for state, part in zip(self._states, rows.parts, strict=True)):
            flat = torch.cat([state[key].flatten() for state in self._states])
            layout = self._layout.one_a_row if key in _ONE_A_ROW else self._layout.entries
            rows = self._owned[key] = layout(flat)
            for state, part in zip(self._states, rows.parts, strict=True):
                state[key] = part
        return rows

    def _gradients(self) -> list[Tensor]:
        grads = [param.grad for param in self._params if param.grad is not None]
        if self._masks is not None:
            torch._foreach_mul_(grads, self._masks)
        return self._gathered(grads)

    def _pieces(self, rows: Rows) -> list[Tensor]:
        """Return the pieces of `rows` that correspond to the matrices of `_gathered`."""
        return rows.runs if self._gathers else rows.parts

    def _gathered(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return gradients or parameters as matrices."""
        if self._gathers:
            dtype = self._states[0]["v"].dtype
            flat = [self._orientation.turned(one.detach()).flatten().to(dtype) for one in tensors]
            return self._layout.entries(torch.cat(flat)).runs
        return [self._orientation.rows(one.detach()) for one in tensors]

    def _gain_gradients(self, grads: Sequence[Tensor], weight_decay: float) -> None:
        """Compute the gradients of the gains. The gradient of a gain is <dL/dparameter, w>, and the parameter is gain *
        w, with zeros for masked weights."""
        gains = self._rows("gain").flat
        for grad, weight, out in zip(grads, self._gathered(self._params), self._pieces(self._gain_grads), strict=True):
            row_dot(grad, weight, out)
        self._gain_grads.flat.div_(gains)
        if weight_decay:
            self._gain_grads.flat.add_(gains, alpha=weight_decay)

    def _momentum(self, grads: Sequence[Tensor], key: str, group: dict[str, Any], out: Rows) -> Rows:
        """Return the gradients after momentum or Nesterov momentum, as in torch.optim.SGD without dampening."""
        momentum = group["momentum"]
        if momentum == 0.0:
            for grad, d in zip(grads, self._pieces(out), strict=True):
                d.copy_(grad)
            return out
        buffers = self._kept(key)
        for grad, buffer, d in zip(grads, self._pieces(buffers), self._pieces(out), strict=True):
            torch.add(grad, buffer, alpha=momentum, out=buffer)
            if group["nesterov"]:
                torch.add(grad, buffer, alpha=momentum, out=d)
        return out if group["nesterov"] else buffers

    def _kept(self, key: str) -> Rows:
        """Return the state `key`, which is a momentum. It begins with zeros."""
        for state in self._states:
            if key not in state:
                state[key] = torch.zeros_like(state["gain" if key in _ONE_A_ROW else "v"])
        return self._rows(key)

    def _scatter(self, unscaled: Rows) -> None:
        """Set the parameters to `unscaled` times the scales of their rows. The scales are in `_rates`."""
        self._fill(unscaled)
        if self._masks is not None:
            torch._foreach_mul_([param.detach() for param in self._params], self._masks)

    def _fill(self, unscaled: Rows) -> None:
        if self._gathers:
            for rows, scale, out in zip(unscaled.runs, self._rates.runs, self._a.runs, strict=True):
                torch.mul(rows, scale, out=out)
            pairs = zip(self._a.parts, self._params, strict=True)
            ends = [self._orientation.turned_back(end, param.shape) for end, param in pairs]
            torch._foreach_copy_([param.detach() for param in self._params], ends)
            return
        for param, rows, scale, spare in zip(
            self._params, unscaled.parts, self._rates.parts, self._a.parts, strict=True
        ):
            if param.is_contiguous() and self._orientation == STANDARD:
                torch.mul(rows, scale, out=param.detach().flatten(1))
            else:
                param.copy_(self._orientation.turned_back(torch.mul(rows, scale, out=spare), param.shape))
