"""Masks: tensors of zeros and ones in the shape and dtype of the weight they prune, with exact counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Generator, Tensor

_SMALLEST = 2.0**-100  # an active weight ends at least this large: it counts as a weight, and adds nothing


def zeros_for(sparsity: float, weights: int) -> int:
    """Return the least number of zeros z with z / weights >= sparsity, for the decimal number that `sparsity` prints
    as.

    Exact: .9 of 1000 weights is 900, where binary arithmetic can give 901.
    """
    return math.ceil(Fraction(repr(float(sparsity))) * weights)


def sparsity_with(zeros: int, weights: int) -> float:
    """Return the largest sparsity that `zeros` zeros reach, of those that ask for no zero more: the quotient, or where
    that is rounded up the float below it."""
    sparsity = zeros / weights
    return sparsity if zeros_for(sparsity, weights) <= zeros else math.nextafter(sparsity, 0.0)


def row_floors(shapes: Sequence[torch.Size], keep: int, a_row: int) -> list[int]:
    """Return how many entries each row of each tensor keeps at least: `a_row`, or all that it has; the same number
    fewer everywhere where that would be more than `keep` in all. Rows are those of the first dimension."""
    floors = [min(a_row, shape[1:].numel()) for shape in shapes]
    if sum(shape[0] * floor for shape, floor in zip(shapes, floors, strict=True)) <= keep:
        return floors
    return row_floors(shapes, keep, a_row - 1)


def keep_largest(scores: Sequence[Tensor], keep: int, *, at_least: int = 1, a_row: int = 0) -> list[Tensor]:
    """Masks that keep exactly `keep` entries in all: those of largest score over all tensors together.

    Every row of every tensor keeps `a_row` of its own as far as `row_floors` says, and every tensor at least `at_least`
    (fewer if it is smaller or `keep` does not reach): a layer with no connection left would cut the network in two.
    Ties go to the one that torch.topk meets first, so the count is exact also when all scores are equal.

    Args:
        scores: one tensor a layer, any shape; NaN is not allowed, -inf marks entries to take last.
        keep: how many entries to keep in all, in [0, their number].
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
    """Return how many connections grew over how many were dropped between two lists of masks; None where none were."""
    dropped, grown = (
        sum(int((old > new).sum()) for old, new in zip(first, second, strict=True))
        for first, second in ((before, after), (after, before))
    )
    return grown / dropped if dropped else None


def multiply(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Multiply each first tensor by its second, in place: as one where that saves kernels."""
    if len(pairs) > 2:
        torch._foreach_mul_(*map(list, zip(*pairs, strict=True)))
        return
    for tensor, factor in pairs:
        tensor.mul_(factor)


def keep_active(weight: Tensor, mask: Tensor) -> None:
    """Make active weights that are zero, or nearly so, a tiny number: they count as weights."""
    info = torch.finfo(weight.dtype)
    smallest = max(_SMALLEST, info.tiny * info.eps)  # of float16, which has no 2^-100
    weight.masked_fill_((weight.abs() < smallest) & (mask != 0), smallest)
