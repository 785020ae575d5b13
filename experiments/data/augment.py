"""Images kept as bytes: normalised and augmented batch by batch, where the network is.

Random crop, flip and cutout work on whole batches (n, c, h, w) of any type, with random numbers from a generator on the
CPU, so that a training on any device draws the same ones and can be resumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Normalise:
    """Turn images of bytes, shape (n, c, h, w), into float32 (x/255 - mean)/std, channel by channel.

    >>> Normalise(mean=(0.5,), std=(0.5,))(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
    tensor([[[[-1.,  1.]]]])
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        mean, std = (_by_channel(values, x.device) for values in (self.mean, self.std))
        return (x.float() / 255 - mean) / std

    def description(self) -> dict[str, Any]:
        """For Data.preprocessing."""
        return {"divide": 255, "mean": list(self.mean), "std": list(self.std)}


@cache
def _by_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(channels, 1, 1). Kept: to bring them to a GPU would make every batch wait for it."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


def crop(x: Tensor, pad: int, top: Tensor, left: Tensor) -> Tensor:
    """Image k's window of the original size at row top[k] and column left[k] (0..2 pad) of the image padded by `pad`
    on every side by reflection (the border itself is not repeated). `pad` must be below the height and the width."""
    height, width = x.shape[-2:]
    rows, columns = _reflected(top, pad, height), _reflected(left, pad, width)
    index = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    return x.flatten(2).gather(2, index[:, None, :].expand(-1, x.shape[1], -1)).view_as(x)


def _reflected(start: Tensor, pad: int, size: int) -> Tensor:
    """(n, size): which of `size` pixels lie in the window that begins at `start` of the padded line."""
    position = start[:, None] + torch.arange(size, device=start.device) - pad
    return (size - 1) - ((size - 1) - position.abs()).abs()


def flip(x: Tensor, which: Tensor) -> Tensor:
    """Mirrors, left to right, the images for which `which` (n,) is true."""
    return torch.where(which[:, None, None, None], x.flip(-1), x)


def cutout(x: Tensor, size: int, top: Tensor, left: Tensor) -> Tensor:
    """Sets to 0, in all channels, the square of `size` pixels whose corner is top[k], left[k]."""
    rows, columns = (torch.arange(n, device=x.device) for n in x.shape[-2:])
    inside_rows = (rows >= top[:, None]) & (rows < top[:, None] + size)
    inside_columns = (columns >= left[:, None]) & (columns < left[:, None] + size)
    return x.masked_fill((inside_rows[:, :, None] & inside_columns[:, None, :])[:, None], 0)


@dataclass(frozen=True)
class Augmentation:
    """Random crop after padding by reflection, then horizontal flip, then cutout; each may be left out.

    Attributes:
        pad: pixels on every side, below the image's height and width; all (2 pad + 1)^2 windows are equally likely.
        mirror: whether half of the images are flipped.
        hole: side of the square set to 0 (black, as the bytes are not normalised yet); it lies wholly in the image
            (T. DeVries, G. Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017, let
            it reach over the border).
    """

    pad: int = 4
    mirror: bool = True
    hole: int = 0

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        n, height, width = len(x), *x.shape[-2:]

        def draw(limit: int) -> Tensor:
            return torch.randint(limit, (n,), generator=generator).to(x.device, non_blocking=True)

        if self.pad:
            x = crop(x, self.pad, draw(2 * self.pad + 1), draw(2 * self.pad + 1))
        if self.mirror:
            x = flip(x, draw(2).bool())
        if self.hole:
            x = cutout(x, self.hole, draw(height - self.hole + 1), draw(width - self.hole + 1))
        return x
