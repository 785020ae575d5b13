"""Measure the importance of a group of neurons, from the weights that compute its outputs and the weights that read
them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """Contains the importance of groups, measured in one layer or normalisation.

    Attributes:
        values: one number for each row or column of a layer's weight, or for each channel of a normalisation: its
            importance, on any device. The numbers are not negative, and their mean is 1 (or 0, if all weights are
            zero).
        groups: the group of each row, column or channel, or -1 if it is never removed.
        reads: True if these weights read the outputs of the groups. False if they compute the outputs, as the factors
            of a normalisation do.
    """

    values: Tensor
    groups: Tensor
    reads: bool


def importance(parts: Iterable[Part], count: int) -> Tensor:
    """Return the importance of each group: shape (count,), float64, on the CPU. The importance is a product of two
    means: the mean over the parts that compute the group's outputs, and the mean over the parts that read them. If no
    part computes the outputs of a group, or no part reads them, the mean over these parts is 1.

    Args:
        parts: the importance in each layer and normalisation.
        count: the number of groups.
    """
    found = list(parts)
    # All parts leave the device in one copy, because each copy waits for the device.
    values = torch.cat([part.values for part in found]).cpu().split([len(part.values) for part in found])
    sums, members = torch.zeros(2, 2, count + 1, dtype=torch.float64)
    for value, part in zip(values, found, strict=True):
        places = part.groups % (count + 1)  # -1 becomes the index `count`, which the result omits
        sums[int(part.reads)].index_add_(0, places, value)
        members[int(part.reads)].index_add_(0, places, torch.ones_like(value))
    return torch.where(members > 0, sums / members, 1.0).prod(0)[:count]


def mean_squares(log_magnitude: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean square of the weights at each index of the first dimension, and at each index of the second
    dimension. Both are divided by the mean square of all weights, in float64.

    Args:
        log_magnitude: log2 of the weights' magnitudes.
    """
    shifted = (log_magnitude - log_magnitude.amax()).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    squares = (2 * shifted.float()).exp2().reshape(*shifted.shape[:2], -1).mean(2)
    return over_mean(squares.mean(1)), over_mean(squares.mean(0))


def over_mean(values: Tensor) -> Tensor:
    """Return the values divided by their mean, in float64. If all values are zero, they stay zero."""
    values = values.double()
    return values / values.mean().clamp_min(torch.finfo(torch.float64).tiny)
