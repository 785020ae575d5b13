"""Measures the importance of a group of neurons, from the weights that make its outputs and those that read them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """Holds the importance of groups in one layer or normalisation.

    Attributes:
        values: one for each index, not negative, with a mean of 1: on any device.
        groups: the group of each index, or -1.
        reads: whether the layer reads the groups' outputs. Otherwise it computes them.
    """

    values: Tensor
    groups: Tensor
    reads: bool


def importance(parts: Iterable[Part], count: int) -> Tensor:
    """Return the importance of each group, float64, on the CPU. It is the mean over the parts that compute its outputs,
    times the mean over the parts that read them. A mean without parts is 1.

    Args:
        parts: the importance in each layer and normalisation.
        count: the number of groups.
    """
    found = list(parts)
    values = torch.cat([part.values for part in found]).cpu().split([len(part.values) for part in found])  # one wait
    sums, members = torch.zeros(2, 2, count + 1, dtype=torch.float64)
    for value, part in zip(values, found, strict=True):
        places = part.groups % (count + 1)  # -1 is the last one
        sums[int(part.reads)].index_add_(0, places, value)
        members[int(part.reads)].index_add_(0, places, torch.ones_like(value))
    return torch.where(members > 0, sums / members, 1.0).prod(0)[:count]


def mean_squares(log_magnitude: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean square of the weights of each index of the first dimension, and of each of the second, both over
    the mean square of all; float64.

    Args:
        log_magnitude: log2 of the weights' magnitudes.
    """
    shifted = (log_magnitude - log_magnitude.amax()).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    squares = (2 * shifted.float()).exp2().reshape(*shifted.shape[:2], -1).mean(2)
    return over_mean(squares.mean(1)), over_mean(squares.mean(0))


def over_mean(values: Tensor) -> Tensor:
    """Return values over their mean, float64; zeros stay zeros."""
    values = values.double()
    return values / values.mean().clamp_min(torch.finfo(torch.float64).tiny)
