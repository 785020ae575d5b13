"""What a step costs: forward and backward, plain SGD, LpSGD translated directly, and ours; LeNet-300-100, batch 128.

    python -m benchmarks.step

One thread. The four are timed in turn, in rounds, so that a machine whose speed drifts slows all of them; the table
shows medians over the rounds and the ratio to forward and backward, taken round by round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.models import lenet_300_100
from sparsity import LpssSettings, lpss, prunable_layers

BATCH, ROUNDS, REPEATS, P = 128, 15, 40, 1.4


class Direct:
    """The update of arXiv 2103.16013 written down as it is read, with torch's own power, for comparison."""

    def __init__(self, model: nn.Module, p: float, lr: float, momentum: float = 0.9) -> None:
        self.layers = [layer.weight for layer in prunable_layers(model) if layer.sphere]
        ids = {id(weight) for weight in self.layers}
        others = [param for param in model.parameters() if id(param) not in ids]
        self.others = torch.optim.SGD(others, lr=0.0, momentum=momentum, nesterov=True)
        self.p, self.q, self.lr, self.momentum = p, p / (p - 1), lr, momentum
        self.v = [weight.detach().sign() * weight.detach().abs() ** (p - 1) for weight in self.layers]
        self.buffer = [torch.zeros_like(weight) for weight in self.layers]

    def _unit(self, x: Tensor) -> Tensor:
        return x / (x.abs() ** self.q).sum(1, keepdim=True) ** (1 / self.q)

    @torch.no_grad()
    def step(self) -> None:
        for weight, v, buffer in zip(self.layers, self.v, self.buffer, strict=True):
            assert weight.grad is not None
            buffer.mul_(self.momentum).add_(weight.grad)
            d = weight.grad + self.momentum * buffer
            v.copy_(self._unit((1 - self.lr) * v - self.lr * self._unit(d)))
            weight.copy_(v.sign() * v.abs() ** (1 / (self.p - 1)))
        self.others.step()


def measure(action: Callable[[], object]) -> float:
    """Milliseconds a call, over REPEATS calls."""
    start = time.perf_counter()
    for _ in range(REPEATS):
        action()
    return (time.perf_counter() - start) / REPEATS * 1e3


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = torch.randn(BATCH, 784), torch.randint(0, 10, (BATCH,))

    def forward_backward(model: nn.Module) -> nn.Module:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        return model

    # Each on a network of its own, so that none steps on weights that another has spoilt.
    plain, direct, ours = (forward_backward(lenet_300_100()) for _ in range(3))
    sparse = lpss(ours, LpssSettings(0.9, P, 0.0078), total_steps=10**9)
    sides: dict[str, Callable[[], object]] = {
        "forward and backward": lambda: forward_backward(plain),
        "SGD": torch.optim.SGD(plain.parameters(), lr=1e-6, momentum=0.9, nesterov=True).step,
        "LpSGD, direct": Direct(direct, P, 0.0078).step,
        "LpSGD, ours": sparse.optimizer.step,
        "LpSGD, ours, with masks": sparse.step,
    }
    rounds: dict[str, list[float]] = {name: [] for name in sides}
    for action in sides.values():
        measure(action)
    for _ in range(ROUNDS):
        for name, action in sides.items():
            rounds[name].append(measure(action))
    base = rounds["forward and backward"]
    print("| | ms | of forward and backward |\n| --- | --- | --- |")
    for name, times in rounds.items():
        ratio = statistics.median(t / b for t, b in zip(times, base, strict=True))
        print(f"| {name} | {statistics.median(times):.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
