"""Make sparse gradients dense, and average gradients over steps, for masks and optimizers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

_AVERAGE = 0.9  # the momentum of a gradient's average


def make_gradients_dense(params: Iterable[Tensor]) -> None:
    """Replace sparse gradients of parameters, such as those of nn.Embedding(sparse=True), by dense ones. Masks, weight
    decay and momentum need a gradient for every weight in every step."""
    for param in params:
        grad = param.grad
        if grad is not None and grad.layout is not torch.strided:
            param.grad = grad.to_dense()


@torch.no_grad()
def average_gradients(averages: Sequence[Tensor], params: Sequence[nn.Parameter]) -> None:
    """Update exponential moving averages of gradients, in place: the new average is 0.9 times the old one plus 0.1
    times the gradient. If a parameter has no gradient, its average does not change.

    Args:
        averages: one tensor for each parameter, in the shape of the parameter. If `averages` is empty, nothing happens.
    """
    pairs = [(one, param.grad) for one, param in zip(averages, params, strict=False) if param.grad is not None]
    if pairs:
        known, grads = map(list, zip(*pairs, strict=True))
        torch._foreach_mul_(known, _AVERAGE)
        torch._foreach_add_(known, grads, alpha=1 - _AVERAGE)
