"""Pack the signs in a matrix as bits. The bit 1 stands for +1, and the bit 0 for -1. The lowest bit of a byte comes
first. Each row of the matrix begins at a new byte."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def signs(x: Tensor) -> Tensor:
    """Return the sign of each number, -1 or +1, as float32. The sign of 0 is +1."""
    return signs_(x.to(torch.float32, copy=True))


def signs_(x: Tensor) -> Tensor:
    """Replace each number by its sign, in place, and return the tensor. The sign of 0 is +1."""
    return x.ge_(0).mul_(2).sub_(1)


def pack(positive: Tensor) -> Tensor:
    """Pack a Boolean tensor of shape (rows, n) into uint8 of shape (rows, ceil(n / 8)). Unused bits are 0."""
    if positive.device.type == "cpu":  # NumPy is several times faster
        return torch.from_numpy(np.packbits(positive.contiguous().numpy(), axis=1, bitorder="little"))
    rows, n = positive.shape
    padded = torch.nn.functional.pad(positive.to(torch.uint8), (0, -n % 8)).view(rows, -1, 8)
    return (padded << _places(positive.device)).sum(2, dtype=torch.uint8)


def unpack(packed: Tensor, n: int) -> Tensor:
    """Undo `pack`. Return signs of the shape (rows, n), as -1 and +1 in float32. The argument `n` is the length of a
    row before `pack`."""
    if packed.device.type == "cpu":
        bits = torch.from_numpy(np.unpackbits(packed.contiguous().numpy(), axis=1, count=n, bitorder="little"))
    else:
        bits = (packed.unsqueeze(2) >> _places(packed.device)).bitwise_and_(1).view(len(packed), -1)[:, :n]
    return bits.float().mul_(2).sub_(1)


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, device=device, dtype=torch.uint8)
