"""Compute on the unit Lp sphere and its dual, row by row: a row w lies on this sphere if ||w||_p = 1.

Every function works on the last dimension of a tensor with any leading dimensions. A "row" is the fan-in weights of one
neuron. The exponent p is a number, or a tensor that broadcasts against the leading dimensions, so that layers with
different exponents can be treated at once.

Notation: 1 < p <= 2, q = p / (p - 1) is the dual exponent, v = sign(w)|w|^(p-1) is the dual image of w. Then ||v||_q =
1 exactly if ||w||_p = 1, and w = sign(v)|v|^(1/(p-1)). Source: Li et al., arXiv 2103.16013.

Before powers are computed, the values of a row are divided by the largest magnitude in the row. Without this division,
a norm ||x||_q at p = 1.07 (q = 15.3) underflows in float32 if the values of x are near 1e-4, and overflows if they are
near 1e3.
"""

from __future__ import annotations

import torch
from torch import Tensor

P_MIN = 1.02
"""Smallest supported exponent: below it float32 cannot hold |v|^(1/(p-1)) for ordinary rows."""
P_MAX = 2.0

Exponent = float | Tensor


def check_p(p: Exponent) -> Exponent:
    """Return p unchanged. Raise ValueError if an entry lies outside [1.02, 2]."""
    low, high = (float(p.min()), float(p.max())) if isinstance(p, Tensor) else (p, p)
    if not (low >= P_MIN and high <= P_MAX):
        raise ValueError(f"p must lie in [{P_MIN}, {P_MAX:g}], got {p}")
    return p


def _per_row(p: Exponent, x: Tensor) -> Exponent:
    """Return p in x's dtype, in a shape that broadcasts over the last dimension of x."""
    return p.to(x).unsqueeze(-1) if isinstance(p, Tensor) else p


def dual_exponent(p: Exponent) -> Exponent:
    """Return q = p / (p - 1), so that 1/p + 1/q = 1. It lies in [2, 51] for the supported p."""
    return p / (p - 1)


def row_norm(x: Tensor, order: Exponent) -> Tensor:
    """Return ||x||_order along the last dimension. The last dimension of the result has the size 1: shape (..., 1).

    The result does not overflow or underflow for any finite x. The norm of a row of zeros is 0.
    """
    order = _per_row(order, x)
    largest = x.abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    return scale * ((x / scale).abs() ** order).sum(-1, keepdim=True) ** (1 / order) * (largest > 0)


def unit(x: Tensor, order: Exponent) -> Tensor:
    """Return x / ||x||_order row by row, in the shape of x. A row of zeros has no direction, and stays zero."""
    # After a division by the largest magnitude, a nonzero row of n entries has a norm from 1 to n^(1/order).
    largest = x.abs().amax(-1, keepdim=True)
    scaled = x / torch.where(largest > 0, largest, torch.ones_like(largest))
    norm = row_norm(scaled, order)
    return scaled / torch.where(norm > 0, norm, torch.ones_like(norm))


def to_dual(w: Tensor, p: Exponent) -> Tensor:
    """Return v = sign(w)|w|^(p-1), in the shape of w."""
    return w.sign() * w.abs() ** (_per_row(p, w) - 1)


def from_dual(v: Tensor, p: Exponent) -> Tensor:
    """Return w = sign(v)|v|^(1/(p-1)), in the shape of v.

    Small entries underflow to zero: in float32 at p = 1.07 this is every |v| < 7e-4. A zero in w is therefore not
    always a pruned connection. Only the mask says which connections are pruned.
    """
    return v.sign() * v.abs() ** (1 / (_per_row(p, v) - 1))


def project(w: Tensor, p: Exponent) -> Tensor:
    """Return w / ||w||_p row by row, in the shape of w. This is the radial projection onto the unit Lp sphere."""
    return unit(w, p)


def stationary_dual(gradient: Tensor, p: Exponent) -> Tensor:
    """Return -g/||g||_q in the shape of the gradient g. It is the dual image of the point on the sphere that minimises
    <g, w>.

    By Hoelder's inequality <g, w> >= -||g||_q for ||w||_p = 1, with equality at w = from_dual(result, p). The result is
    also the fixed point of LpSGD for a constant gradient.
    """
    return -unit(gradient, dual_exponent(p))
