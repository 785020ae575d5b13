"""View a weight as a matrix. Each row contains the incoming weights (the fan-in) of one neuron."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Orientation(NamedTuple):
    """Describes which dimensions of a weight are the fan-in of its neurons. The standard orientation is that of
    nn.Linear and nn.Conv2d.

    Attributes:
        fan_in: the dimensions of the fan-in. If None, these are all dimensions except the first. The other dimensions
            count the neurons: each combination of their indices is one neuron.
        groups: the number of groups of a transposed convolution, and 1 for all other weights. The weight of a
            transposed convolution has the shape (inputs, outputs / groups, kernel...). Its first dimension consists of
            one part for each group, and the outputs of a group use only the inputs of this group.
    """

    fan_in: tuple[int, ...] | None = None
    groups: int = 1

    def suits(self, shape: torch.Size) -> bool:
        """Return whether a weight of this shape can have this orientation: it has the dimensions of `fan_in` and at
        least one more, and its first dimension can be divided into `groups` equal parts."""
        return self.fan_in is None or (set(self.fan_in) < set(range(len(shape))) and shape[0] % self.groups == 0)

    def turned(self, x: Tensor) -> Tensor:
        """Convert a tensor from the weight's shape to the shape (neurons, fan-in...). The result is a view if possible,
        otherwise a copy."""
        if self.fan_in is None:
            return x
        order, neurons = self._order(x.dim())
        return x.unflatten(0, (self.groups, -1)).permute(order).flatten(0, neurons - 1)

    def rows(self, x: Tensor) -> Tensor:
        """Convert a tensor from the weight's shape to a matrix (neurons, fan-in)."""
        return self.turned(x).flatten(1)

    def turned_back(self, x: Tensor, shape: torch.Size) -> Tensor:
        """Undo `turned` or `rows`: convert a tensor back to the weight's shape."""
        if self.fan_in is None:
            return x if x.shape == shape else x.view(shape)
        order, _ = self._order(len(shape))
        split = (self.groups, shape[0] // self.groups, *shape[1:])
        back = sorted(range(len(order)), key=order.__getitem__)
        return x.reshape([split[dim] for dim in order]).permute(back).reshape(shape)

    def _order(self, dims: int) -> tuple[list[int], int]:
        """Return the order of the dimensions, with the groups as an additional first dimension, and the number of
        dimensions that belong to the neurons."""
        assert self.fan_in is not None
        fan_in = [dim + 1 for dim in self.fan_in]
        neurons = [dim for dim in range(dims + 1) if dim not in fan_in]
        return [*neurons, *fan_in], len(neurons)


STANDARD = Orientation()


def oriented(fan_in: int | tuple[int, ...], dims: int) -> Orientation:
    """Return the orientation of a weight of `dims` dimensions.

    Args:
        fan_in: the fan-in dimensions. Negative numbers count from the end.

    Raises:
        ValueError: if the weight does not have these dimensions, if `fan_in` is empty, or if it contains all
            dimensions.
    """
    given = (fan_in,) if isinstance(fan_in, int) else tuple(fan_in)
    found = sorted({dim + dims if dim < 0 else dim for dim in given})
    if not found or len(found) == dims or not all(0 <= dim < dims for dim in found):
        raise ValueError(f"fan-in dimensions {given} are not accepted: give at least one of 0..{dims - 1}, but not all")
    return STANDARD if found == list(range(1, dims)) else Orientation(tuple(found))
