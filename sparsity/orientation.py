"""How a weight is seen as a matrix: a row for each neuron, which holds the weights of its fan-in."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Orientation(NamedTuple):
    """Which dimensions of a weight are its neurons' fan-in. The standard one is that of nn.Linear and nn.Conv2d.

    Attributes:
        fan_in: the dimensions; None for all but the first. The neurons are the other dimensions, taken together.
        groups: how many groups the first dimension falls into, each with neurons of its own. A transposed convolution
            has a weight (inputs, outputs / groups, kernel...), where a group's outputs see that group's inputs alone.
    """

    fan_in: tuple[int, ...] | None = None
    groups: int = 1

    def suits(self, shape: torch.Size) -> bool:
        """Return whether a weight of this shape can have it."""
        return self.fan_in is None or (set(self.fan_in) < set(range(len(shape))) and shape[0] % self.groups == 0)

    def turned(self, x: Tensor) -> Tensor:
        """Return a tensor of the weight's shape as (neurons, fan-in...): a view where one exists, else a copy."""
        if self.fan_in is None:
            return x
        order, neurons = self._order(x.dim())
        return x.unflatten(0, (self.groups, -1)).permute(order).flatten(0, neurons - 1)

    def rows(self, x: Tensor) -> Tensor:
        """Return a tensor of the weight's shape as a matrix (neurons, fan-in)."""
        return self.turned(x).flatten(1)

    def turned_back(self, x: Tensor, shape: torch.Size) -> Tensor:
        """Return in the weight's shape what `turned` or `rows` made of it."""
        if self.fan_in is None:
            return x if x.shape == shape else x.view(shape)
        order, _ = self._order(len(shape))
        split = (self.groups, shape[0] // self.groups, *shape[1:])
        back = sorted(range(len(order)), key=order.__getitem__)
        return x.reshape([split[dim] for dim in order]).permute(back).reshape(shape)

    def _order(self, dims: int) -> tuple[list[int], int]:
        """Return the order of the dimensions with the groups as a first one, and how many of them are neurons'."""
        assert self.fan_in is not None
        fan_in = [dim + 1 for dim in self.fan_in]
        neurons = [dim for dim in range(dims + 1) if dim not in fan_in]
        return [*neurons, *fan_in], len(neurons)


STANDARD = Orientation()


def oriented(fan_in: int | tuple[int, ...], dims: int) -> Orientation:
    """Return the orientation of a weight of `dims` dimensions.

    Raises:
        ValueError: if these are not some of the dimensions, and not all.
    """
    given = (fan_in,) if isinstance(fan_in, int) else tuple(fan_in)
    found = sorted({dim + dims if dim < 0 else dim for dim in given})
    if not found or len(found) == dims or not all(0 <= dim < dims for dim in found):
        raise ValueError(f"fan-in dimensions {given} of {dims}: give some of 0..{dims - 1}, and not all")
    return STANDARD if found == list(range(1, dims)) else Orientation(tuple(found))
