"""Which examples validate: fixed, and none that a training example equals."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def hold_out(labels: Tensor, count: int, allowed: Tensor | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two sets of indices (kept, held out), both in ascending order, always the same for the same labels.

    The held-out ones are drawn by class, in the classes' shares of all labels (largest remainder), from the
    `allowed` (n,) examples.

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
    """(n,) booleans: whether no other of the inputs (n, ...) equals this one."""
    _, group, sizes = x.flatten(1).unique(dim=0, return_inverse=True, return_counts=True)
    return sizes[group] == 1
