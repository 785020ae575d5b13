"""Define small data sets and networks for tests, and functions that tests of the optimizer share."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tune_sparsity.sparsity import LpSGD


def blobs(n: int = 400, features: int = 20, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return inputs (n, features) and labels (n,). Each class is a Gaussian cluster, well separated from the others."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * F.normalize(torch.randn(classes, features, generator=generator), dim=1)
    y = torch.arange(n) % classes
    return centres[y] + 0.5 * torch.randn(n, features, generator=generator), y


def batches(x: Tensor, y: Tensor, steps: int, size: int = 32, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `steps` random batches. The same seed always gives the same batches."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(x), (size,), generator=generator)
        yield x[rows], y[rows]


def mlp(*sizes: int, norm: bool = False, seed: int = 0) -> nn.Sequential:
    """Return linear layers with ReLU between them. If `norm` is true, there is also batch normalisation."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            parts += [nn.Linear(fan_in, fan_out), *([nn.BatchNorm1d(fan_out)] if norm else []), nn.ReLU()]
        return nn.Sequential(*parts[: -2 if norm else -1])


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tensors(seed: int, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return a tensor of each shape with normally distributed random numbers, which are drawn in float64."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def norms(w: Tensor, p: float) -> Tensor:
    """Return ||w||_p of each row, computed in float64 from logarithms."""
    return (torch.logsumexp(p * w.detach().double().flatten(1).abs().log(), -1) / p).exp()


def step(optimizer: LpSGD, param: nn.Parameter, grad: Tensor) -> None:
    param.grad = grad.to(param.dtype).view_as(param).clone()
    optimizer.step()
