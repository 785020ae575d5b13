"""Choose validation examples at random. The choice is always the same for the same data."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def hold_out(labels: Tensor, count: int, allowed: Tensor | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split examples at random, for example into training and validation examples. Return two tensors of indices: the
    remaining examples and the held-out examples, both in ascending order.

    The split is stratified: each class has the same share of the held-out examples as of all examples, rounded by the
    largest remainder method. The same arguments always give the same result.

    Args:
        labels: the class of each example, shape (n,).
        count: the number of examples to hold out.
        allowed: whether each example may be held out, booleans of the shape (n,). If None, all may.
        seed: the seed of the random choice.

    Raises:
        ValueError: if a class has fewer allowed examples than must be held out.
    """
    generator = Generator().manual_seed(seed)
    classes, sizes = labels.unique(return_counts=True)
    exact = sizes.double() * count / len(labels)
    shares = exact.floor().long()
    shares[(exact - shares).argsort(descending=True, stable=True)[: count - int(shares.sum())]] += 1
    held = torch.zeros(len(labels), dtype=torch.bool)
    for kind, share in zip(classes.tolist(), shares.tolist(), strict=True):
        members = (labels == kind) if allowed is None else (labels == kind) & allowed
        candidates = members.nonzero().squeeze(1)
        if share > len(candidates):
            raise ValueError(
                f"class {kind} has only {len(candidates)} examples that may be held out, but needs {share}"
            )
        held[candidates[torch.randperm(len(candidates), generator=generator)[:share]]] = True
    return (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)


def occurs_once(x: Tensor) -> Tensor:
    """Return a boolean for each row of x, shape (n,): whether this row differs from all other rows. A row is the input
    of one example."""
    _, group, sizes = x.flatten(1).unique(dim=0, return_inverse=True, return_counts=True)
    return sizes[group] == 1
