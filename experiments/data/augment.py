"""Normalise and augment batches of images on the network's device. The images are stored as bytes.

Crop, flip and cutout work on whole batches (n, c, h, w) of any type. All random numbers come from a generator on the
CPU. A training therefore draws the same numbers on every device and can be resumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Normalise:
    """Converts images of bytes, shape (n, c, h, w), to float32 values (x/255 - mean)/std, channel by channel.

    >>> Normalise(mean=(0.5,), std=(0.5,))(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
    tensor([[[[-1.,  1.]]]])

    Attributes:
        mean: the mean of each channel, on the scale of [0, 1].
        std: the standard deviation of each channel, on the same scale, > 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        mean, std = (_by_channel(values, x.device) for values in (self.mean, self.std))
        return (x.float() / 255 - mean) / std

    def description(self) -> dict[str, Any]:
        """Return a description of this conversion for Data.preprocessing, with the keys divide, mean and std."""
        return {"divide": 255, "mean": list(self.mean), "std": list(self.std)}


@cache
def _by_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return the values as a tensor of the shape (channels, 1, 1). The result is cached, because a copy to the GPU
    takes time."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


def crop(x: Tensor, pad: int, top: Tensor, left: Tensor) -> Tensor:
    """Pad each image, and return a part of it with the original size.

    Args:
        x: images (n, c, h, w). The padding is that of F.pad with mode="reflect".
        pad: pixels on every side, less than the height and the width.
        top, left: row and column, in the padded image, of the first pixel of each returned image. Both have the shape
            (n,) and values in [0, 2 * pad].
    """
    height, width = x.shape[-2:]
    rows, columns = _reflected(top, pad, height), _reflected(left, pad, width)
    index = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    return x.flatten(2).gather(2, index[:, None, :].expand(-1, x.shape[1], -1)).view_as(x)


def _reflected(start: Tensor, pad: int, size: int) -> Tensor:
    """Return, for each pixel of a part of a padded line, the index of the same pixel in the original line, (n, size).

    Args:
        start: the index in the padded line at which each part begins, (n,).
        pad: pixels of padding on each side.
        size: the length of the original line and of each part.
    """
    position = start[:, None] + torch.arange(size, device=start.device) - pad
    return (size - 1) - ((size - 1) - position.abs()).abs()


def flip(x: Tensor, which: Tensor) -> Tensor:
    """Return the images x, shape (n, c, h, w), some of them mirrored from left to right. The booleans `which`, shape
    (n,), say which images are mirrored."""
    return torch.where(which[:, None, None, None], x.flip(-1), x)


def cutout(x: Tensor, size: int, top: Tensor, left: Tensor) -> Tensor:
    """Return the images with a square of `size` x `size` pixels set to 0 in all channels. In image k, the upper left
    corner of the square is at the row top[k] and the column left[k]."""
    rows, columns = (torch.arange(n, device=x.device) for n in x.shape[-2:])
    inside_rows = (rows >= top[:, None]) & (rows < top[:, None] + size)
    inside_columns = (columns >= left[:, None]) & (columns < left[:, None] + size)
    return x.masked_fill((inside_rows[:, :, None] & inside_columns[:, None, :])[:, None], 0)


@dataclass(frozen=True)
class Augmentation:
    """Changes images at random: a crop after padding by reflection, then a horizontal flip, then cutout. Each of these
    three steps can be left out.

    A call takes images (n, c, h, w) of any type and a generator on the CPU, and returns images of the same shape.

    Attributes:
        pad: pixels of padding on every side, less than the image's height and width. With 0, there is no crop. All (2
            pad + 1)^2 positions of the crop are equally likely.
        mirror: whether each image is flipped with probability 1/2.
        hole: side of the square that cutout sets to 0, in pixels. With 0, there is no cutout. The square always lies
            inside the image. In the original method (T. DeVries, G. Taylor, "Improved Regularization of Convolutional
            Neural Networks with Cutout", 2017), a part of the square may lie outside.
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
