"""Compute masks: tensors of zeros and ones in the shape and dtype of a weight, with exact numbers of zeros."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Generator, Tensor

_SMALLEST = (
    2.0**-100
)  # the least magnitude of an active weight: large enough to be nonzero, too small to have an effect


def zeros_for(sparsity: float, weights: int) -> int:
    """Return the least number of zeros z with z / weights >= sparsity.

    The result is exact for the decimal number that `sparsity` prints as: .9 of 1000 weights is 900, where binary
    arithmetic can give 901.
    """
    return math.ceil(Fraction(repr(float(sparsity))) * weights)


def sparsity_with(zeros: int, weights: int) -> float:
    """Return the largest sparsity for which `zeros_for` requires no more than `zeros` zeros. The result is zeros /
    weights. If the division has rounded up, the result is the next smaller float."""
    sparsity = zeros / weights
    return sparsity if zeros_for(sparsity, weights) <= zeros else math.nextafter(sparsity, 0.0)


def row_floors(shapes: Sequence[torch.Size], keep: int, a_row: int) -> list[int]:
    """Return, for each tensor, the least number of entries that each of its rows keeps.

    This number is `a_row`, or the length of the row if the row is shorter. If the rows of all tensors would then keep
    more than `keep` entries together, a smaller `a_row` is used for all tensors. The first dimension of a tensor counts
    its rows.
    """
    floors = [min(a_row, shape[1:].numel()) for shape in shapes]
    if sum(shape[0] * floor for shape, floor in zip(shapes, floors, strict=True)) <= keep:
        return floors
    return row_floors(shapes, keep, a_row - 1)


def keep_largest(scores: Sequence[Tensor], keep: int, *, at_least: int = 1, a_row: int = 0) -> list[Tensor]:
    """Return masks that keep exactly `keep` entries: those with the largest scores of all tensors together.

    Every row of every tensor keeps the number of entries from `row_floors`. Without `a_row`, every tensor keeps at
    least `at_least` entries, because a layer without connections would cut the network in two. These minimums are
    reduced if the tensor or `keep` is too small. If several scores are equal, torch.topk decides which of them are
    kept. The count is therefore exact even if all scores are equal.

    Args:
        scores: one tensor of any shape for each layer. NaN is not allowed. -inf marks entries that are kept last.
        keep: the number of entries to keep, from 0 to the number of all entries.

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
    """Return a mask on the CPU with exactly zeros_for(sparsity, n) zeros at random places."""
    n = shape.numel()
    mask = torch.ones(n, dtype=dtype)
    mask[torch.randperm(n, generator=generator)[: zeros_for(sparsity, n)]] = 0.0
    return mask.view(shape)


def grow_rate(before: Sequence[Tensor], after: Sequence[Tensor]) -> float | None:
    """Compare two lists of masks. Return the number of grown connections divided by the number of dropped connections,
    or None if no connection was dropped."""
    dropped, grown = (
        sum(int((old > new).sum()) for old, new in zip(first, second, strict=True))
        for first, second in ((before, after), (after, before))
    )
    return grown / dropped if dropped else None


def multiply(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Multiply the first tensor of each pair by the second, in place. If there are more than two pairs, one operation
    multiplies them all, which saves kernels."""
    if len(pairs) > 2:
        torch._foreach_mul_(*map(list, zip(*pairs, strict=True)))
        return
    for tensor, factor in pairs:
        tensor.mul_(factor)


def keep_active(weight: Tensor, mask: Tensor) -> None:
    """Replace active weights that are zero or almost zero by a tiny number, so that they count as weights."""
    info = torch.finfo(weight.dtype)
    smallest = max(_SMALLEST, info.tiny * info.eps)  # the smallest number of float16 is larger than 2^-100
    weight.masked_fill_((weight.abs() < smallest) & (mask != 0), smallest)
