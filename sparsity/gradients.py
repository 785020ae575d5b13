"""Gradients in the form that masks and optimizers take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

_AVERAGE = 0.9  # the momentum of a gradient's average


def make_gradients_dense(params: Iterable[Tensor]) -> None:
    """Replace sparse gradients, which nn.Embedding(sparse=True) has, by dense ones. Masks, weight decay and momentum
    reach every weight at every step."""
    for param in params:
        if param.grad is not None and param.grad.layout != torch.strided:
            param.grad = param.grad.to_dense()


@torch.no_grad()
def average_gradients(averages: Sequence[Tensor], params: Sequence[nn.Parameter]) -> None:
    """Move each average towards its parameter's gradient, where it has one.

    Args:
        averages: one for each of the parameters; or none, and nothing is done.
    """
    pairs = [(one, param.grad) for one, param in zip(averages, params, strict=False) if param.grad is not None]
    if pairs:
        known, grads = map(list, zip(*pairs, strict=True))
        torch._foreach_mul_(known, _AVERAGE)
        torch._foreach_add_(known, grads, alpha=1 - _AVERAGE)
