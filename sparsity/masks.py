"""Compute masks: tensors of zeros and ones in the shape and dtype of a weight, with exact numbers of zeros."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Generator, Tensor

# The least magnitude of an active weight. It is nonzero, and too small to have an effect.
_SMALLEST = 2.0**-100


def zeros_for(sparsity: float, weights: int) -> int:
    """Return the smallest whole number z with z / `weights` >= `sparsity`.

    The function takes `sparsity` as the decimal number that Python prints for it. The sparsity 0.9 and 1000 weights
    therefore give exactly 900. With the binary number in memory, rounding could give 901.
    """
    return math.ceil(Fraction(repr(float(sparsity))) * weights)


def sparsity_with(zeros: int, weights: int) -> float:
    """Return the largest sparsity that needs at most `zeros` zeros (see `zeros_for`). It is zeros / weights, or the
    next smaller float if this quotient was rounded up."""
    sparsity = zeros / weights
    return sparsity if zeros_for(sparsity, weights) <= zeros else math.nextafter(sparsity, 0.0)


def row_floors(shapes: Sequence[torch.Size], keep: int, a_row: int) -> list[int]:
    """Return, for each tensor, the minimum number of ones that its mask must have in each row.

    This number is the smaller of `a_row` and the length of the row. If the masks would then need more than `keep` ones
    in all, `a_row` is reduced for all tensors until they do not. Each index of a tensor's first dimension is a row.
    """
    floors = [min(a_row, shape[1:].numel()) for shape in shapes]
    if sum(shape[0] * floor for shape, floor in zip(shapes, floors, strict=True)) <= keep:
        return floors
    return row_floors(shapes, keep, a_row - 1)


def keep_largest(scores: Sequence[Tensor], keep: int, *, at_least: int = 1, a_row: int = 0) -> list[Tensor]:
    """Return masks with exactly `keep` ones in all, at the entries with the largest scores of all tensors together.

    If several scores are equal, torch.topk chooses among them, so that the number of ones is always exact.

    Args:
        scores: one tensor of any shape for each layer. NaN is not allowed. An entry with the score -inf gets a one only
            after all other entries.
        keep: the number of ones, from 0 to the number of all entries.
        at_least: the minimum number of ones in each tensor, because a layer without any connection would cut the
            network in two. This minimum has no effect if rows have a minimum (`a_row`), or if the minimums of all
            tensors together exceed `keep`.
        a_row: the minimum number of ones in each row. `row_floors` reduces it if a row or `keep` is too small.

    Raises:
        ValueError: if `keep` is out of range.
    """
    flat = torch.cat([score.flatten() for score in scores])
    if not 0 <= keep <= flat.numel():
        raise ValueError(f"cannot keep {keep} of {flat.numel()} weights")
    floors = row_floors([score.shape for score in scores], keep, a_row)
    by_row = any(floors)
    if not by_row:
        floors = [min(at_least, score.numel()) for score in scores]
    rows = [score.shape[0] if by_row else 1 for score in scores]
    if sum(count * floor for count, floor in zip(rows, floors, strict=True)) <= keep:
        parts = flat.split([score.numel() for score in scores])
        for part, count, floor in zip(parts, rows, floors, strict=True):
            part = part.view(count, -1)
            part.scatter_(1, part.topk(floor).indices, math.inf)
    mask = torch.zeros_like(flat)
    mask[flat.topk(keep, sorted=False).indices] = 1.0
    return [part.view_as(score) for part, score in zip(mask.split([s.numel() for s in scores]), scores, strict=True)]


def random_mask(shape: torch.Size, sparsity: float, generator: Generator, dtype: torch.dtype) -> Tensor:
    """Return a mask on the CPU with zeros at random positions. The mask has exactly `zeros_for(sparsity, n)` zeros,
    where n is the number of its entries."""
    n = shape.numel()
    mask = torch.ones(n, dtype=dtype)
    mask[torch.randperm(n, generator=generator)[: zeros_for(sparsity, n)]] = 0.0
    return mask.view(shape)


def grow_rate(before: Sequence[Tensor], after: Sequence[Tensor]) -> float | None:
    """Compare masks before and after an update. Return the number of new ones divided by the number of new zeros, or
    None if there is no new zero."""
    dropped, grown = (
        sum(int((old > new).sum()) for old, new in zip(first, second, strict=True))
        for first, second in ((before, after), (after, before))
    )
    return grown / dropped if dropped else None


def multiply(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Multiply the first tensor of each pair by the second, in place. More than two pairs are multiplied in one
    operation, because this starts fewer GPU kernels."""
    if len(pairs) > 2:
        torch._foreach_mul_(*map(list, zip(*pairs, strict=True)))
        return
    for tensor, factor in pairs:
        tensor.mul_(factor)


def keep_active(weight: Tensor, mask: Tensor) -> None:
    """Replace unmasked weights that are zero or almost zero by a tiny positive number, in place. The number of nonzero
    weights is then exactly the number of ones in the mask."""
    info = torch.finfo(weight.dtype)
    smallest = max(_SMALLEST, info.tiny * info.eps)  # 2^-24 for float16
    weight.masked_fill_((weight.abs() < smallest) & (mask != 0), smallest)
