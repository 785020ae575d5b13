"""Parameters on the sphere that are stepped together: their rows in one memory, one operation for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tune_sparsity.sparsity.optim.row_ops import Layout, Rows, descend, inverse_norms, row_dot, times_own_power
from tune_sparsity.sparsity.orientation import STANDARD, Orientation
from tune_sparsity.sparsity.sphere import dual_exponent

_NO_NORM = 1e-30  # a smaller sum of |v|^q is that of a row that came onto the sphere as zeros: it has no norm yet
_GAIN_MIN = 1e-6  # a gain at zero would silence its neuron for good, and the sign belongs to w

_ONE_A_ROW = ("gain", "gain_momentum")  # the other states have an entry for every weight

State = dict[str, Tensor]


class ForeachStep:
    """Some parameters of a sphere group, of one device and one dtype of their state.

    Their states become views of memory that the block owns, in order of fan-in, so that what is done to every entry is
    one operation for all parameters, and what is done row by row is one for all parameters of equal fan-in.

    Args:
        params: the parameters; each has a gradient at every `step`.
        states: the optimizer's state of each: "v" (rows, fan-in) and "gain" (rows, 1). Where something else puts new
            tensors there, they are taken over at the next step.
        masks: of the parameters, in their shapes, or None: the gradients of masked weights count as zero, and the
            parameters hold zeros there.
        foreach: whether gradients and parameters too are gathered and scattered as one. None: on a GPU, where
            a kernel's start costs more than the copy; on a CPU it is the other way round.
        owned: what an earlier block of the same parameters made of the states, by key, to go on in.
        orientation: how the parameters are seen as rows.
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
        # Memory for all that has the parameters' size: on a CPU, fresh memory costs more than arithmetic.
        self._a, self._b = (self._layout.entries(torch.empty_like(v)) for _ in range(2))
        rows = sum(rows for rows, _ in self._layout.shapes)
        self._rates, self._powers, self._gain_grads = (self._layout.one_a_row(v.new_empty(rows)) for _ in range(3))

    def step(self, group: dict[str, Any]) -> Tensor | None:
        """Take one step with the settings of `group`. The values lr, gain_lr and p may be tensors on the device. On a
        CPU the function checks the gradients first. If a gradient is NaN or infinite, the function returns its
        parameter and changes no parameter and no dual state v. In all other cases the function returns None."""
        lr, q = group["lr"], dual_exponent(group["p"])
        for state in self._states:
            state.pop("latent", None)  # the compiled step's; it would be wrong after this one
        v, grads = self._rows("v"), self._gradients()
        if group["gain"]:
            self._gain_gradients(grads, group["weight_decay"])
        d = self._momentum(grads, "momentum_buffer", group, self._a)
        rates = inverse_norms(d, q, self._b, self._rates).mul_(-lr / (1 - lr))
        # amin, since it passes NaN on; a sum would overflow where many rows are dead and their rate is huge.
        if rates.device.type == "cpu" and not math.isfinite(rates.amin().item()):
            parts = zip(self._params, self._rates.parts, strict=True)
            return next(param for param, rate in parts if not rate.isfinite().all())
        v.add_(d, self._rates)  # ((1 - lr) v - lr d/||d||_q)/(1 - lr): the factor goes with the norm

        # With r = |v|^(q-2): v r is w before it is scaled, and |v|^q = v (v r), so one power serves norm and weights.
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
        """Return the state `key` of all parameters, of which theirs are views."""
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
        """Return the pieces that belong to one gathered matrix each."""
        return rows.runs if self._gathers else rows.parts

    def _gathered(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Gradients or parameters as matrices."""
        if self._gathers:
            dtype = self._states[0]["v"].dtype
            flat = [self._orientation.turned(one.detach()).flatten().to(dtype) for one in tensors]
            return self._layout.entries(torch.cat(flat)).runs
        return [self._orientation.rows(one.detach()) for one in tensors]

    def _gain_gradients(self, grads: Sequence[Tensor], weight_decay: float) -> None:
        """The gain's gradient is <dL/dparameter, w>, and the parameter holds gain * w (masked where it is masked)."""
        gains = self._rows("gain").flat
        for grad, weight, out in zip(grads, self._gathered(self._params), self._pieces(self._gain_grads), strict=True):
            row_dot(grad, weight, out)
        self._gain_grads.flat.div_(gains)
        if weight_decay:
            self._gain_grads.flat.add_(gains, alpha=weight_decay)

    def _momentum(self, grads: Sequence[Tensor], key: str, group: dict[str, Any], out: Rows) -> Rows:
        """Return the gradients after heavy-ball or Nesterov momentum, in torch.optim.SGD's form (no dampening)."""
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
        """Return the momentum `key`, which begins with zeros."""
        for state in self._states:
            if key not in state:
                state[key] = torch.zeros_like(state["gain" if key in _ONE_A_ROW else "v"])
        return self._rows(key)

    def _scatter(self, unscaled: Rows) -> None:
        """Sets the parameters to `unscaled` times the scales of their rows, which stand where the rates stood."""
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
