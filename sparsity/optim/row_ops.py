"""Compute parts of a step of LpSGD, in place and with few passes over the rows of many parameters.

On a CPU, powers take most of the time of a step. They are computed as exp2(a log2 x), after x is clamped to a lower
limit. Without this limit, the power of a zero, or a power that underflows, would take ten to a hundred times longer,
because the vectorised functions compute such values one by one. Gradients contain many zeros if weights are masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Number = float | Tensor
"""A number, or a 0-dimensional tensor on a GPU. The code never waits for the value of such a tensor."""

# The smallest normal number of float32, whose inverse is finite. Smaller numbers may count as zero
# (torch.set_flush_denormal).
_TINY = 2.0**-126
_HEADROOM = 20  # the lower limit of the results of `power_` is 2^20 times the smallest normal number


class Rows(NamedTuple):
    """Contains matrices (rows, fan-in) that lie one after another in one flat tensor. One operation can change all
    their entries."""

    flat: Tensor
    """All entries, one-dimensional."""
    parts: list[Tensor]
    """The matrices (rows, fan-in), as views of `flat`."""
    runs: list[Tensor]
    """The same memory as views in as few matrices as possible. Neighbouring matrices with equal fan-in become one
    matrix."""

    def largest(self, out: Rows) -> None:
        """Write the largest entry of every row into `out`, which has one number for each row."""
        for rows, largest in zip(self.runs, out.runs, strict=True):
            torch.amax(rows, 1, keepdim=True, out=largest)

    def totals(self) -> Tensor:
        """Return the sums of all rows as a one-dimensional tensor."""
        return torch.cat([rows.sum(1) for rows in self.runs])

    def products(self, other: Rows, out: Rows) -> None:
        """Write the inner product of every row with the same row of `other` into `out`, which has one number for each
        row."""
        for rows, others, product in zip(self.runs, other.runs, out.runs, strict=True):
            row_dot(rows, others, product)

    def scale_(self, factors: Rows) -> None:
        """Multiply every row by its own factor, in place."""
        for rows, factor in zip(self.runs, factors.runs, strict=True):
            rows.mul_(factor)

    def add_(self, other: Rows, factors: Rows) -> None:
        """Add to every row the same row of `other`, multiplied by a factor for this row, in place."""
        for rows, others, factor in zip(self.runs, other.runs, factors.runs, strict=True):
            rows.addcmul_(others, factor)


class Layout:
    """Describes how matrices of the shapes (rows, fan-in) lie in a flat tensor, one after another. A flat tensor with
    one number for each row has these numbers in the same order as the rows."""

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        self.shapes = shapes
        runs = groupby(shapes, lambda shape: shape[1])
        self.runs = [(sum(rows for rows, _ in run), fan_in) for fan_in, run in runs]

    def entries(self, flat: Tensor) -> Rows:
        return Rows(flat, _cut(flat, self.shapes), _cut(flat, self.runs))

    def one_a_row(self, flat: Tensor) -> Rows:
        return Rows(flat, *(_cut(flat, [(rows, 1) for rows, _ in shapes]) for shapes in (self.shapes, self.runs)))


def _cut(flat: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    pieces = flat.split([rows * fan_in for rows, fan_in in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _shared(x: Tensor) -> bool:
    """Return whether NumPy can work on x's memory."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def power_(x: Tensor, exponent: Number) -> Tensor:
    """Replace x by x^exponent, in place, for x >= 0 and exponent > 0. NaN stays NaN.

    On a CPU, the results have a lower limit of about 2^-106 in float32, or 2^-1002 in float64. A smaller power is
    replaced by this limit, and an x below the smallest normal number by the smallest normal number. If the caller
    multiplies the result by the original x, the product has an error of at most about the limit, also for x = 0.
    """
    if x.device.type != "cpu":
        return x.pow_(exponent)
    lowest, exponent = np.log2(torch.finfo(x.dtype).tiny), float(exponent)
    x.clamp_min_(float(2.0 ** max(lowest, (lowest + _HEADROOM) / exponent)))
    return x.log2_().mul_(exponent).exp2_()


def row_dot(x: Tensor, y: Tensor, out: Tensor) -> None:
    """Write the inner product of every row of x with the same row of y into `out` of shape (rows, 1)."""
    if _shared(x) and x.dtype == y.dtype:
        np.vecdot(x.numpy(), y.numpy(), out=out.numpy()[:, 0])
    else:
        torch.sum(x.to(out.dtype) * y.to(out.dtype), 1, keepdim=True, out=out)


def inverse_norms(d: Rows, q: Number, scratch: Rows, out: Rows) -> Tensor:
    """Write 1/||d||_q of every row into `out`, for finite d of any magnitude. Return the numbers of all rows as a
    one-dimensional tensor.

    The result is huge but finite for a row of zeros, and NaN for a row with NaN or an infinite value.
    """
    torch.abs(d.flat, out=scratch.flat)
    scratch.largest(out)
    inverse = out.flat.clamp_min_(_TINY).reciprocal_()
    scratch.scale_(out)
    power_(scratch.flat, q)
    totals = scratch.totals()  # for each row, ||d/largest||_q^q, from 1 to the fan-in; about 0 if d = 0
    return inverse.mul_(totals.clamp_min_(1.0).pow_(-1 / q))


def times_own_power(v: Rows, exponent: Number, scratch: Rows) -> Rows:
    """Compute v |v|^exponent in `scratch`, and return `scratch`. If the exponent is 0, return v itself. If the exponent
    is in the memory of a GPU, the result is always in `scratch`, because a comparison with 0 would wait for the GPU."""
    known = not isinstance(exponent, Tensor) or exponent.device.type == "cpu"
    if known and exponent == 0.0:
        return v
    power_(torch.abs(v.flat, out=scratch.flat), exponent).mul_(v.flat)
    return scratch


def descend(xs: list[Tensor], ds: list[Tensor], lr: Number) -> None:
    """Replace each tensor x of `xs` by x - lr d, in place. The tensors d are those of `ds`, in the same order."""
    if isinstance(lr, Tensor):
        torch._foreach_sub_(xs, torch._foreach_mul(ds, lr))
    else:
        torch._foreach_add_(xs, ds, alpha=-lr)
