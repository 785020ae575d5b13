"""How much a group of neurons counts: by what makes its outputs, and by what reads them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """What some weights say of groups.

    Attributes:
        values: one for each index, not negative, of a mean of 1: on any device.
        groups: the group of each index, or -1.
        reads: whether they read the group's outputs. They make them otherwise.
    """

    values: Tensor
    groups: Tensor
    reads: bool
    kind: str = ""


def importance(parts: Iterable[Part], count: int) -> Tensor:
    """Return the importance of each group, float64, on the CPU.

    It is the mean square of the weights that make the group's outputs times that of the weights that read them, each
    over the mean of its layer. A neuron counts as much where its row is scaled and its column is scaled back.

    Args:
        parts: what layers and normalisations say.
        count: the number of groups.
    """
    parts = list(parts)
    variant = os.environ.get("VARIANT", "product")
    if variant == "rows":
        parts = [p for p in parts if not p.reads and p.kind != "gamma"]
    if variant == "product0":
        parts = [p for p in parts if p.kind != "gamma"]
    if variant == "product":
        parts = [p for p in parts if p.kind != "normalised"]
    if variant == "gamma":
        parts = [p for p in parts if p.kind != "normalised" and not p.reads]
    values = torch.cat([part.values for part in parts]).cpu().split([len(part.values) for part in parts])
    sums, members = torch.zeros(2, 2, count + 1, dtype=torch.float64)
    for value, part in zip(values, parts, strict=True):
        places = part.groups % (count + 1)  # -1 is the last one
        sums[int(part.reads)].index_add_(0, places, value)
        members[int(part.reads)].index_add_(0, places, torch.ones_like(value))
    if variant == "mean":
        return (sums.sum(0) / members.sum(0).clamp_min(1))[:count]
    means = torch.where(members > 0, sums / members, 1.0)
    return means.prod(0)[:count]


def mean_squares(log_magnitude: Tensor, dim: int) -> Tensor:
    """Return the mean square of the weights of each index of a dimension, over the mean square of all; float64.

    Args:
        log_magnitude: log2 of the weights' magnitudes.
    """
    others = [other for other in range(log_magnitude.dim()) if other != dim]
    shifted = (log_magnitude - log_magnitude.amax()).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    return over_mean((2 * shifted.float()).exp2().mean(others))


def over_mean(values: Tensor) -> Tensor:
    """Return values over their mean, float64; zeros stay zeros."""
    values = values.double()
    return values / values.mean().clamp_min(torch.finfo(torch.float64).tiny)
