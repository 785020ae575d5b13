"""Compute the difference between the scores of two methods, with a confidence interval. Both methods are judged on the
same test examples under the same seeds."""

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
    """Return the mean of the F1 scores of the classes, without classes that are neither a target nor a prediction."""
    both = counts.diagonal(dim1=-2, dim2=-1)
    either = counts.sum(-1) + counts.sum(-2)
    return (2 * both / either.clamp_min(1)).sum(-1) / (either > 0).sum(-1)


def confusion(targets: Tensor, predictions: Tensor, weights: Tensor, classes: int) -> Tensor:
    """Return how many examples of each class were predicted as each class.

    Args:
        targets: shape (examples).
        predictions: shape (seeds, examples).
        weights: how often each example occurs in each bootstrap sample, shape (resamples, examples).

    Returns:
        A tensor of the shape (resamples, seeds, classes, classes), targets by predictions.
    """
    cells = torch.nn.functional.one_hot(targets * classes + predictions, classes**2).double()
    return torch.einsum("re,sec->rsc", weights, cells).unflatten(-1, (classes, classes))


def accuracies(targets: Tensor, predictions: Tensor) -> str:
    """Return a text: the mean accuracy over the seeds in per cent, and the lowest and the highest accuracy of a seed.

    Args:
        targets: shape (examples).
        predictions: shape (seeds, examples).
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
    """Return the mean over the seeds of the first method's score minus the second method's score, with its 95 %
    interval.

    The interval is that of a paired bootstrap: each bootstrap sample draws test examples and seeds with
    replacement, and both methods get the same ones.

    Args:
        one, other: the predicted classes of each method, shape (seeds, examples), with the same seeds in the same
            order.
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
