"""Masks: tensors of zeros and ones in the shape and dtype of the weight they prune, with exact counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Generator, Tensor


def zeros_for(sparsity: float, weights: int) -> int:
    """The least number of zeros z with z / weights >= sparsity, for the decimal number that `sparsity` prints as.

    Exact: .9 of 1000 weights is 900, where binary arithmetic can give 901.
    """
    return math.ceil(Fraction(repr(float(sparsity))) * weights)


def keep_largest(scores: Sequence[Tensor], keep: int, *, at_least: int = 1) -> list[Tensor]:
    """Masks that keep exactly `keep` entries in all: those of largest score over all tensors together.

    Every tensor keeps at least `at_least` of its own (fewer if it is smaller or `keep` does not reach): a layer with
    no connection left would cut the network in two. Ties go to the one that torch.topk meets first, so the count is
    exact also when all scores are equal.

    Args:
        scores: one tensor a layer, any shape; NaN is not allowed, -inf marks entries to take last.
        keep: how many entries to keep in all, in [0, their number].
    """
    flat = torch.cat([score.flatten() for score in scores])
    if not 0 <= keep <= flat.numel():
        raise ValueError(f"cannot keep {keep} of {flat.numel()} weights")
    reserved = [min(at_least, score.numel()) for score in scores]
    if sum(reserved) <= keep:
        start = 0
        for score, count in zip(scores, reserved, strict=True):
            best = score.flatten().topk(count).indices + start
            flat[best] = math.inf
            start += score.numel()
    mask = torch.zeros_like(flat)
    mask[flat.topk(keep, sorted=False).indices] = 1.0
    return [part.view_as(score) for part, score in zip(mask.split([s.numel() for s in scores]), scores, strict=True)]


def random_mask(shape: torch.Size, sparsity: float, generator: Generator, dtype: torch.dtype) -> Tensor:
    """A mask on the CPU with exactly zeros_for(sparsity, n) zeros at random places."""
    n = shape.numel()
    mask = torch.ones(n, dtype=dtype)
    mask[torch.randperm(n, generator=generator)[: zeros_for(sparsity, n)]] = 0.0
    return mask.view(shape)
