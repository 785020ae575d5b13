"""The unit Lp sphere and its dual, row by row.

Every function works on the last dimension of a tensor with any leading dimensions (a "row" is one neuron's fan-in
weights) and takes the exponent p as a number or as a tensor that broadcasts against the leading dimensions, so that
layers, or whole networks, with exponents of their own can be treated at once.

Notation: 1 < p <= 2, q = p / (p - 1) the dual exponent, v = sign(w)|w|^(p-1) the dual image of w. Then
||v||_q = 1 exactly when ||w||_p = 1, and w = sign(v)|v|^(1/(p-1)). Source: Li et al., arXiv 2103.16013.

Powers are taken of values divided by their row's largest magnitude: at p = 1.07 (q = 15.3) a plain ||1e-4 x||_q
underflows in float32 and ||1e3 x||_q overflows.
"""

from __future__ import annotations

import torch
from torch import Tensor

P_MIN = 1.02
"""Smallest supported exponent: below it float32 cannot hold |v|^(1/(p-1)) for ordinary rows."""
P_MAX = 2.0

Exponent = float | Tensor


def check_p(p: Exponent) -> Exponent:
    """Returns p unchanged. Raises ValueError unless every entry lies in [1.02, 2]."""
    low, high = (float(p.min()), float(p.max())) if isinstance(p, Tensor) else (p, p)
    if not (low >= P_MIN and high <= P_MAX):
        raise ValueError(f"p must lie in [{P_MIN}, {P_MAX:g}], got {p}")
    return p


def _per_row(p: Exponent, x: Tensor) -> Exponent:
    """p shaped to broadcast over the last dimension of x, in x's dtype."""
    return p.to(x).unsqueeze(-1) if isinstance(p, Tensor) else p


def dual_exponent(p: Exponent) -> Exponent:
    """q = p / (p - 1), so that 1/p + 1/q = 1; in [2, 51] for the supported p."""
    return p / (p - 1)


def row_norm(x: Tensor, order: Exponent) -> Tensor:
    """||x||_order along the last dimension, kept as a dimension of size 1: shape (..., 1).

    Safe against overflow and underflow for any finite x; a row of zeros has norm 0.
    """
    order = _per_row(order, x)
    largest = x.abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    return scale * ((x / scale).abs() ** order).sum(-1, keepdim=True) ** (1 / order) * (largest > 0)


def unit(x: Tensor, order: Exponent) -> Tensor:
    """x / ||x||_order row by row, shape of x. A row of zeros stays zero (a dead neuron has no direction)."""
    # Divided by its largest magnitude first: the norm of what is left lies in [1, n^(1/order)].
    largest = x.abs().amax(-1, keepdim=True)
    scaled = x / torch.where(largest > 0, largest, torch.ones_like(largest))
    norm = row_norm(scaled, order)
    return scaled / torch.where(norm > 0, norm, torch.ones_like(norm))


def to_dual(w: Tensor, p: Exponent) -> Tensor:
    """v = sign(w)|w|^(p-1), shape of w."""
    return w.sign() * w.abs() ** (_per_row(p, w) - 1)


def from_dual(v: Tensor, p: Exponent) -> Tensor:
    """w = sign(v)|v|^(1/(p-1)), shape of v.

    Small entries underflow to zero (at p = 1.07 every |v| < 7e-4 in float32): a zero of w does not mean a pruned
    connection, only a mask does.
    """
    return v.sign() * v.abs() ** (1 / (_per_row(p, v) - 1))


def project(w: Tensor, p: Exponent) -> Tensor:
    """w / ||w||_p row by row: the radial projection onto the unit Lp sphere, shape of w."""
    return unit(w, p)


def stationary_dual(gradient: Tensor, p: Exponent) -> Tensor:
    """Return the dual image -g/||g||_q of the minimiser of <g, w> over the sphere, shape of the gradient.

    By Hoelder's inequality <g, w> >= -||g||_q for ||w||_p = 1, with equality at w = from_dual of this value. It is
    also the fixed point of LpSGD (the stationary point of the augmented empirical risk).
    """
    return -unit(gradient, dual_exponent(p))
