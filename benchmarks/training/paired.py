"""The interval of a difference between two methods that were judged on the same test examples under the same seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Score = Callable[[Tensor], Tensor]
"""Confusion counts (..., classes, classes), targets by predictions -> scores (...)."""


def accuracy(counts: Tensor) -> Tensor:
    return counts.diagonal(dim1=-2, dim2=-1).sum(-1) / counts.sum((-2, -1))


def macro_f1(counts: Tensor) -> Tensor:
    """Return the mean of the classes' F1. A class that is neither a target nor predicted is left out of it."""
    both = counts.diagonal(dim1=-2, dim2=-1)
    either = counts.sum(-1) + counts.sum(-2)
    return (2 * both / either.clamp_min(1)).sum(-1) / (either > 0).sum(-1)


def confusion(targets: Tensor, predictions: Tensor, weights: Tensor, classes: int) -> Tensor:
    """Return how often each class was taken for each other one.

    Args:
        targets: (examples).
        predictions: (seeds, examples).
        weights: (resamples, examples): how often each example counts.

    Returns:
        (resamples, seeds, classes, classes).
    """
    cells = torch.nn.functional.one_hot(targets * classes + predictions, classes**2).double()
    return torch.einsum("re,sec->rsc", weights, cells).unflatten(-1, (classes, classes))


def accuracies(targets: Tensor, predictions: Tensor) -> str:
    """Return the mean accuracy over seeds in per cent, with the lowest and the highest.

    Args:
        targets: (examples).
        predictions: (seeds, examples).
    """
    right = 100 * (predictions == targets).double().mean(1)
    return f"{right.mean():.2f} ({right.min():.2f} to {right.max():.2f})"


class Difference(NamedTuple):
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:+.2f} ({100 * self.low:+.2f} to {100 * self.high:+.2f})"


def difference(
    score: Score, targets: Tensor, one: Tensor, other: Tensor, *, classes: int, resamples: int = 4000
) -> Difference:
    """Return the mean over seeds of the first method's score minus the second's, with its 95 % interval.

    The interval is a bootstrap's: test examples are drawn anew, and so are seeds; both methods get the same ones.

    Args:
        one, other: predicted classes, (seeds, examples), of the same seeds in the same order.
    """
    generator = torch.Generator().manual_seed(0)
    seeds, examples = one.shape
    drawn = torch.randint(examples, (resamples, examples), generator=generator)
    weights = torch.zeros(resamples, examples).double().scatter_add_(1, drawn, torch.ones(drawn.shape).double())

    def by_seed(counted: Tensor) -> Tensor:
        first, second = (score(confusion(targets, each, counted, classes)) for each in (one, other))
        return first - second

    apart = torch.cat([by_seed(some) for some in weights.split(100)])
    means = apart.gather(1, torch.randint(seeds, apart.shape, generator=generator)).mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return Difference(float(by_seed(torch.ones(1, examples).double()).mean()), low, high)
