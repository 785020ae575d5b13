"""Gradients in the form that masks and optimizers take."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def make_gradients_dense(params: Iterable[Tensor]) -> None:
    """Replace sparse gradients, which nn.Embedding(sparse=True) has, by dense ones. Masks, weight decay and momentum
    reach every weight at every step."""
    for param in params:
        if param.grad is not None and param.grad.layout != torch.strided:
            param.grad = param.grad.to_dense()
