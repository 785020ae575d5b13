"""Measure what a step costs: forward and backward, plain SGD, a direct translation of LpSGD, and our LpSGD. The network
is LeNet-300-100, and the batch size is 128.

    python -m benchmarks.step

Each side uses one thread. Times are processor times, because other processes do not make these longer. Each side trains
a network of its own in a process of its own, as its users would. The reason is memory: the time for fresh memory in a
step depends on the other memory that the process has allocated. In the direct translation, fresh memory takes half of
the time. In each round, every side in turn trains on the same batches. A machine that becomes slower thus slows all
sides. A time in the table is the median over the rounds of a round's median step. A ratio is computed in each round,
and the table shows its median. The last row is the mean step of a training to 90 % sparsity, with the updates of the
masks.

Below the table, the first line compares forward, backward and step with and without an average of the weights, in the
tail. The tail is the last part of a training, in which the masks no longer change. This comparison uses the mean of a
round's steps. The last line compares forward, backward and step in the training to 90 % sparsity with plain SGD.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tune_sparsity.experiments.builtin.mlp import lenet_300_100
from tune_sparsity.sparsity import LpSGD, LpssSettings, SparseTraining, lpss, prunable_layers

BATCH, ROUNDS, REPEATS = 128, 15, 40
P, LR = 1.4, 0.0078


class Direct:
    """The update of arXiv 2103.16013, for comparison: its equations without any change, with torch's own function for
    powers."""

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


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(BATCH, 784, generator=generator), torch.randint(0, 10, (BATCH,), generator=generator))
        for _ in range(REPEATS)
    ]


def unmasked(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of a sparse training after all masks were removed from it."""
    optimizer = lpss(model, SETTINGS, total_steps=LONG).optimizer
    assert isinstance(optimizer, LpSGD)
    optimizer.set_masks({})
    return optimizer


def in_the_tail(model: nn.Module, settings: LpssSettings) -> SparseTraining:
    """Return a sparse training that has only its last steps to do, with a fixed mask. These steps belong to the
    tail."""
    sparse = lpss(model, settings, total_steps=LONG)
    sparse.project()
    sparse.steps = LONG - (ROUNDS + 2) * REPEATS
    return sparse


SETTINGS = LpssSettings(0.9, P, LR)
MASKED = replace(SETTINGS, initial_sparsity=0.9)
# A number of steps for a training in which masks never change: they change between .1 and .7 of all steps, and the
# benchmark takes only a few hundred steps, at the beginning or in the tail.
LONG = 10**9
FIXED, AVERAGED = "mask fixed at 90 %", "mask fixed at 90 %, averaged"
WHOLE = "a whole training's mean"
SIDES: dict[str, Callable[[nn.Module], Callable[[], object]]] = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True).step,
    "LpSGD, direct": lambda model: Direct(model, P, LR).step,
    "LpSGD, ours": lambda model: unmasked(model).step,
    "LpSGD, ours, with masks": lambda model: lpss(model, SETTINGS, total_steps=LONG).step,
    "the same, 90 % masked": lambda model: lpss(model, MASKED, total_steps=LONG).step,
    FIXED: lambda model: in_the_tail(model, SETTINGS).step,
    AVERAGED: lambda model: in_the_tail(model, replace(SETTINGS, averaging="swa")).step,
    WHOLE: lambda model: lpss(model, SETTINGS, total_steps=(ROUNDS + 1) * REPEATS).step,
}


def train(name: str, turn: Connection) -> None:
    """Run one side in its own process. For each message, train on all batches once. Send the milliseconds of each
    forward and backward pass together, and of each step."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, data = lenet_300_100(), batches()
    step = SIDES[name](model)
    while turn.recv():
        times: list[tuple[float, float]] = []
        for x, y in data:
            start = time.thread_time()
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
            between = time.thread_time()
            step()
            times.append((1e3 * (between - start), 1e3 * (time.thread_time() - between)))
        turn.send(times)


def measure() -> dict[str, list[list[tuple[float, float]]]]:
    """Return a dict from sides to the times of all rounds except the first round, which warms up."""
    context, turns = get_context("spawn"), {}
    for name in SIDES:
        turns[name], other = context.Pipe()
        context.Process(target=train, args=(name, other), daemon=True).start()
    rounds: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in SIDES}
    for _ in range(ROUNDS + 1):
        for name, turn in turns.items():
            turn.send(True)
            rounds[name].append(turn.recv())
    for turn in turns.values():
        turn.send(False)
    return {name: times[1:] for name, times in rounds.items()}


def main() -> None:
    rounds = measure()
    passes, steps = (
        {name: [statistics.median(pair[k] for pair in times) for times in of] for name, of in rounds.items()}
        for k in (0, 1)
    )
    steps[WHOLE] = [statistics.mean(step for times in rounds[WHOLE] for _, step in times)] * ROUNDS
    base = [statistics.median(of[k] for of in passes.values()) for k in range(ROUNDS)]
    print("| | ms | of forward and backward | times as fast as direct |\n| --- | --- | --- | --- |")
    print(f"| forward and backward | {statistics.median(base):.2f} | 1.00 | |")
    for name, each in steps.items():
        ratio = statistics.median(step / b for step, b in zip(each, base, strict=True))
        faster = statistics.median(d / step for step, d in zip(each, steps["LpSGD, direct"], strict=True))
        print(f"| {name} | {statistics.median(each):.2f} | {ratio:.2f} | {faster:.1f} |")
    plain, whole = (statistics.median(base) + statistics.median(steps[name]) for name in ("SGD", WHOLE))
    fixed, averaged = ([statistics.mean(step for _, step in times) for times in rounds[n]] for n in (FIXED, AVERAGED))
    cost = statistics.median((b + one) / (b + other) for b, one, other in zip(base, averaged, fixed, strict=True))
    print(f"\nThe average makes forward, backward and step together take {cost:.3f} times as long.")
    print(f"Forward, backward and step in a whole training: {whole / plain:.2f} times those of plain SGD.")


if __name__ == "__main__":
    main()
