"""Make a step of LpSGD with compiled code (sparsity/optim/kernel.c), for float32 on a CPU.

If most weights are masked, a step computes powers only for the active ones. A masked weight has no gradient and no
momentum. Only its dual image v (see LpSGD) changes: a step multiplies v by the same factor for all masked weights of a
row. The norm of a row needs the sum of |v|^q over its masked weights, with q = p/(p-1) for the exponent p of the
sphere. A step gets the new sum from the old sum and this factor, without powers for each weight. The state "latent"
contains the sum of each row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tune_sparsity.sparsity.optim.foreach import State
from tune_sparsity.sparsity.orientation import STANDARD, Orientation
from tune_sparsity.sparsity.sphere import dual_exponent

try:
    from tune_sparsity.sparsity.optim import _kernel as kernel
except ImportError:  # installed without a C compiler, or on another kind of processor
    kernel = None  # type: ignore[assignment]

_FEW = 0.6  # up to this share of active weights, a step updates only the active weights; above it, this saves no time


def fits(tensor: Tensor) -> bool:
    """Return whether the compiled code is installed and can work on this tensor: float32, contiguous, on a CPU."""
    return kernel is not None and tensor.dtype == torch.float32 and tensor.device.type == "cpu" and _plain(tensor)


def _plain(tensor: Tensor) -> bool:
    return tensor.is_contiguous() and tensor.layout == torch.strided


def _gradient(param: Tensor) -> Tensor:
    """Return the parameter's gradient in contiguous memory."""
    grad = param.grad
    assert grad is not None
    return grad if _plain(grad) else grad.contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class FusedStep:
    """Makes the steps of LpSGD for one parameter on the sphere.

    Args:
        param: a parameter. The function `fits` must return True for its rows.
        state: the optimizer's state of the parameter. It contains "v", shape (rows, fan-in), and "gain", shape (rows,
            1). "v" is the dual image sign(w)|w|^(p-1) of the weights w on the sphere (see LpSGD).
        mask: the mask in the parameter's shape, or None. For masked weights, the parameter and its momentum are zero,
            and the gradient counts as zero.
        orientation: tells which dimensions of the parameter form the rows. If torch cannot make a view of these rows,
            each step works on a copy of the rows.
    """

    def __init__(self, param: Tensor, state: State, mask: Tensor | None, orientation: Orientation = STANDARD) -> None:
        self.param, self._state, self._orientation = param, state, orientation
        self._mask = None if mask is None else self._matrix(mask.to(param.dtype))
        self._rows, self._fan_in = state["v"].shape
        self._places = self._starts = None
        self._q: float | None = None  # the q with which the state "latent" was computed; None before the first step
        if self._mask is not None and self._mask.count_nonzero() <= _FEW * param.numel():
            rows, columns = self._mask.nonzero().unbind(1)
            self._places = columns.to(torch.int32)
            self._starts = torch.zeros(self._rows + 1, dtype=torch.int64)
            torch.cumsum(torch.bincount(rows, minlength=self._rows), 0, out=self._starts[1:])
        self._memory = torch.empty(2 * max(kernel.NEAR, self._fan_in + kernel.LANES))

    def step(self, group: dict[str, Any]) -> Tensor | None:
        """Make one step with the settings of `group`.

        Returns:
            None if the step was made. Otherwise the parameter of this FusedStep, to name it in an error: either its
            gradient is NaN or infinite, and nothing has changed; or its momentum has overflowed, and some rows may have
            changed.
        """
        state, q, momentum = self._state, float(dual_exponent(group["p"])), group["momentum"]
        assert self.param.grad is not None
        grad, rows = self._in_rows(self.param.grad), self._in_rows(self.param)
        self._follow_latent(q)
        done = kernel.step(
            self._rows,
            self._fan_in,
            grad.data_ptr(),
            rows.data_ptr(),
            self._at("v"),
            self._momentum("momentum_buffer", "v") if momentum else 0,
            self._at("gain"),
            self._momentum("gain_momentum", "gain") if momentum and group["gain"] else 0,
            _address(self._mask),
            _address(self._places),
            _address(self._starts),
            _address(state.get("latent")),
            self._memory.data_ptr(),
            group["lr"],
            q,
            momentum,
            group["nesterov"],
            group["weight_decay"],
            group["gain_lr"],
            group["gain"],
        )
        if rows.data_ptr() != self.param.data_ptr():
            self.param.copy_(self._orientation.turned_back(rows, self.param.shape))
        return None if done else self.param

    def _matrix(self, x: Tensor) -> Tensor:
        """Return a tensor of the parameter's shape as contiguous rows."""
        return self._orientation.rows(x).contiguous()

    def _in_rows(self, x: Tensor) -> Tensor:
        """Return a tensor whose memory contains the rows one after another, as in `_matrix`. Avoid a copy if
        possible."""
        return x if self._orientation is STANDARD and _plain(x) else self._matrix(x)

    def _at(self, key: str) -> int:
        """Return the memory address of a state. Make the state contiguous first, because other code may have replaced
        it."""
        if not _plain(self._state[key]):
            self._state[key] = self._state[key].contiguous()
        return self._state[key].data_ptr()

    def _momentum(self, key: str, like: str) -> int:
        """Return the memory address of a momentum. It has the shape of the state `like` and begins with zeros."""
        if key not in self._state:
            self._state[key] = torch.zeros_like(self._state[like])
        return self._at(key)

    def _follow_latent(self, q: float) -> None:
        """Compute the state "latent", the sum of |v|^q over the masked weights of each row, if it is not known for this
        q."""
        if self._places is None:
            self._state.pop("latent", None)  # it would be wrong after this step
        elif "latent" not in self._state or self._q not in (None, q):
            latent = self._state["latent"] = torch.empty(self._rows, 1)
            kernel.sum_masked(self._rows, self._fan_in, self._at("v"), _address(self._mask), q, latent.data_ptr())
        self._q = q


def descend(param: Tensor, state: State, group: dict[str, Any]) -> bool:
    """Make the step of torch.optim.SGD for one parameter, in one pass over its memory, and return True. If the gradient
    is NaN or infinite, change nothing and return False."""
    grad, momentum = _gradient(param), group["momentum"]
    if momentum and "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(param)
    return bool(
        kernel.descend(
            param.numel(),
            grad.data_ptr(),
            param.data_ptr(),
            state["momentum_buffer"].data_ptr() if momentum else 0,
            group["lr"],
            momentum,
            group["nesterov"],
            group["weight_decay"],
        )
    )
