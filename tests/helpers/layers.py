"""Define layers that users know from other libraries."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv1D(nn.Module):
    """The linear layer of GPT-2 in the library transformers. Its weight has the shape (inputs, outputs)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(0.3 * torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.reshape(-1, self.nx), self.weight).view(*x.shape[:-1], self.nf)


def kept_in_evaluation(module: nn.Module) -> nn.Module:
    """Put the module into evaluation mode and return it. `module.train()` no longer changes the mode."""
    module.eval()
    module.train = lambda mode=True: module  # type: ignore[method-assign]
    return module
