"""The arithmetic of a step on the sphere, in place and in few passes over the rows of many parameters at once.

On a CPU powers are what a step costs. They are taken as exp2(a log2 x) of values that have been cut off from below: the
vectorised functions fall back to one value at a time, ten to a hundred times slower, for zeros and for results that
underflow, and masked gradients are full of zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Number = float | Tensor
"""A number, or one in a device's memory, as a tensor of no dimensions: nothing then waits to know it."""

# Keeps 1/largest finite: the smallest normal number, as smaller ones may count as zero (torch.set_flush_denormal).
_TINY = 2.0**-126
_HEADROOM = 20  # powers are cut off this many binary digits above the smallest normal number


class Rows(NamedTuple):
    """Matrices of any fan-ins, one after another in flat memory, where one operation reaches all their entries."""

    flat: Tensor
    """All entries, one-dimensional."""
    parts: list[Tensor]
    """The matrices, (rows, fan-in) each: views of `flat`."""
    runs: list[Tensor]
    """The same memory in as few matrices as possible: neighbours of equal fan-in are one."""

    def largest(self, out: Rows) -> None:
        """The largest entry of every row, into `out`, which has one number a row."""
        for rows, largest in zip(self.runs, out.runs, strict=True):
            torch.amax(rows, 1, keepdim=True, out=largest)

    def totals(self) -> Tensor:
        """Return the sum of every row, flat."""
        return torch.cat([rows.sum(1) for rows in self.runs])

    def products(self, other: Rows, out: Rows) -> None:
        """The inner product of every row with the other's, into `out`, which has one number a row."""
        for rows, others, product in zip(self.runs, other.runs, out.runs, strict=True):
            row_dot(rows, others, product)

    def scale_(self, factors: Rows) -> None:
        """Multiplies every row by a number of its own."""
        for rows, factor in zip(self.runs, factors.runs, strict=True):
            rows.mul_(factor)

    def add_(self, other: Rows, factors: Rows) -> None:
        """Adds to every row the other's, times a number of its own."""
        for rows, others, factor in zip(self.runs, other.runs, factors.runs, strict=True):
            rows.addcmul_(others, factor)


class Layout:
    """Where matrices of these shapes (rows, fan-in), or one number for each of their rows, stand in flat memory."""

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
    """x^exponent in place, for x >= 0 and exponent > 0. NaN stays NaN.

    On a CPU what is below 2^-106 in float32, 2^-1002 in float64, comes out as about that; an x below the smallest
    normal number counts as that number, so a product x x^exponent is right to within these limits also at x = 0.
    """
    if x.device.type != "cpu":
        return x.pow_(exponent)
    lowest, exponent = np.log2(torch.finfo(x.dtype).tiny), float(exponent)
    x.clamp_min_(float(2.0 ** max(lowest, (lowest + _HEADROOM) / exponent)))
    return x.log2_().mul_(exponent).exp2_()


def row_dot(x: Tensor, y: Tensor, out: Tensor) -> None:
    """The inner product of every row of x with that of y, into `out` of shape (rows, 1)."""
    if _shared(x) and x.dtype == y.dtype:
        np.vecdot(x.numpy(), y.numpy(), out=out.numpy()[:, 0])
    else:
        torch.sum(x.to(out.dtype) * y.to(out.dtype), 1, keepdim=True, out=out)


def inverse_norms(d: Rows, q: Number, scratch: Rows, out: Rows) -> Tensor:
    """1/||d||_q of every row, into `out`, for finite d of any magnitude; returns it flat.

    It is huge but finite for a row of zeros, and NaN for a row that holds NaN or an infinity.
    """
    torch.abs(d.flat, out=scratch.flat)
    scratch.largest(out)
    inverse = out.flat.clamp_min_(_TINY).reciprocal_()
    scratch.scale_(out)
    power_(scratch.flat, q)
    totals = scratch.totals()  # ||d/largest||_q^q in [1, n]; about 0 if d = 0
    return inverse.mul_(totals.clamp_min_(1.0).pow_(-1 / q))


def times_own_power(v: Rows, exponent: Number, scratch: Rows) -> Rows:
    """v |v|^exponent, in `scratch`; v itself for exponent 0, where that is known without waiting for a device."""
    known = not isinstance(exponent, Tensor) or exponent.device.type == "cpu"
    if known and exponent == 0.0:
        return v
    power_(torch.abs(v.flat, out=scratch.flat), exponent).mul_(v.flat)
    return scratch


def descend(xs: list[Tensor], ds: list[Tensor], lr: Number) -> None:
    """x - lr d, in each x."""
    if isinstance(lr, Tensor):
        torch._foreach_sub_(xs, torch._foreach_mul(ds, lr))
    else:
        torch._foreach_add_(xs, ds, alpha=-lr)
