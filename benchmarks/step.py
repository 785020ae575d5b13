"""What a step costs: forward and backward, plain SGD, LpSGD translated directly, and ours; LeNet-300-100, batch 128.

    python -m benchmarks.step

One thread, in processor time, which other processes do not stretch. Each side trains a network of its own on the same
batches, in turns, so that a machine whose speed drifts slows all of them; the table shows medians over the rounds, of
medians over a round's steps, and ratios taken round by round. The last line is the mean step of a training to 90 %
sparsity, updates of the masks included, and what forward, backward and this step take together against plain SGD's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.models import lenet_300_100
from sparsity import LpssSettings, lpss, prunable_layers

BATCH, ROUNDS, REPEATS = 128, 15, 40
P, LR = 1.4, 0.0078


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


class Side:
    """One network in training, and the times of its last round in milliseconds."""

    def __init__(self, make: Callable[[nn.Module], Callable[[], object]]) -> None:
        torch.manual_seed(0)
        self.model = lenet_300_100()
        self.model_step = make(self.model)
        self.all_steps: list[float] = []

    def round(self, batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """Trains on the batches: median milliseconds of a forward and backward pass, and of a step."""
        times: list[tuple[float, float]] = []
        for x, y in batches:
            start = time.thread_time()
            self.model.zero_grad()
            F.cross_entropy(self.model(x), y).backward()
            between = time.thread_time()
            self.model_step()
            times.append((between - start, time.thread_time() - between))
        self.all_steps += [1e3 * step for _, step in times]
        forward_backward, step = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
        return forward_backward, step


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(BATCH, 784, generator=generator), torch.randint(0, 10, (BATCH,), generator=generator))
        for _ in range(REPEATS)
    ]
    settings = LpssSettings(0.9, P, LR)
    sides = {
        "SGD": Side(lambda model: torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True).step),
        "LpSGD, direct": Side(lambda model: Direct(model, P, LR).step),
        "LpSGD, ours": Side(lambda model: lpss(model, settings, total_steps=10**9).optimizer.step),
        "LpSGD, ours, with masks": Side(lambda model: lpss(model, settings, total_steps=10**9).step),
        "the same, 90 % masked": Side(
            lambda model: lpss(model, replace(settings, initial_sparsity=0.9), total_steps=10**9).step
        ),
    }
    whole = Side(lambda model: lpss(model, settings, total_steps=ROUNDS * REPEATS).step)
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for k in range(ROUNDS + 1):  # the first is for warming up
        for name, side in sides.items():
            times = side.round(batches)
            if k:
                rounds[name].append(times)
        if k:
            whole.round(batches)
    base = [statistics.median(rounds[name][k][0] for name in sides) for k in range(ROUNDS)]
    direct = [step for _, step in rounds["LpSGD, direct"]]
    print("| | ms | of forward and backward | times as fast as direct |\n| --- | --- | --- | --- |")
    print(f"| forward and backward | {statistics.median(base):.2f} | 1.00 | |")
    for name, times_of in rounds.items():
        steps = [step for _, step in times_of]
        ratio = statistics.median(step / b for step, b in zip(steps, base, strict=True))
        faster = statistics.median(d / step for step, d in zip(steps, direct, strict=True))
        print(f"| {name} | {statistics.median(steps):.2f} | {ratio:.2f} | {faster:.1f} |")
    mean, between = statistics.mean(whole.all_steps), statistics.median(base)
    sgd = between + statistics.median(step for _, step in rounds["SGD"])
    print(f"| a whole training's mean | {mean:.2f} | {mean / between:.2f} | {statistics.median(direct) / mean:.1f} |")
    print(f"\nForward, backward and step in a whole training: {(between + mean) / sgd:.2f} times those of plain SGD.")


if __name__ == "__main__":
    main()
