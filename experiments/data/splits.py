"""Choose validation examples that are always the same and differ from all training examples."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def hold_out(labels: Tensor, count: int, allowed: Tensor | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split examples at random into two sets of indices (kept, held out). The result is always the same for the same
    arguments.

    The split is stratified: each class has the same share of the held-out examples as of all examples, rounded by the
    largest remainder method. Both results are in ascending order.

    Args:
        labels: the class of each example, shape (n,).
        count: examples to hold out.
        allowed: whether an example may be held out, shape (n,). If None, every example may.

    Raises:
        ValueError: if a class has fewer allowed examples than its share.
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
            raise ValueError(f"class {kind} has {len(candidates)} examples to hold out, {share} are wanted")
        held[candidates[torch.randperm(len(candidates), generator=generator)[:share]]] = True
    return (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)


def occurs_once(x: Tensor) -> Tensor:
    """Return booleans of the shape (n,). An entry is true if this input differs from all other inputs."""
    _, group, sizes = x.flatten(1).unique(dim=0, return_inverse=True, return_counts=True)
    return sizes[group] == 1
