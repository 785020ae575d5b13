"""Measure the memory of binary networks in training, their latency with products that count bits, and their accuracy.

    python -m benchmarks.training.binary memory
    python -m benchmarks.training.binary latency
    python -m benchmarks.training.binary accuracy --data-dir FOLDER [--epochs 12] [--seeds 0 1 2]
    python -m benchmarks.training.binary convolutional --data-dir FOLDER [--epochs 12] [--seeds 0 1 2]

`memory` tracks the tensors of one training step of fully connected networks such as 784-256x4-10. It compares method
`binary` with the usual recipe for such networks in float32: signs of weights and activations with the straight-through
estimator, torch's batch normalisation, and torch's Adam. `latency` measures a layer of 1024 x 1024 on one thread, in
turn with the same dense layer in float32. `accuracy` prints the accuracies after the last epoch on MNIST.
`convolutional` prints those of a network with three convolutions on the CIFAR-10 subset of 3,500 images. No epoch or
setting is chosen by means of the validation data. The tables are in Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tune_sparsity.experiments import Experiment, Recipe
from tune_sparsity.experiments.base import evaluate
from tune_sparsity.experiments.builtin.cifar import cifar10_subset
from tune_sparsity.experiments.builtin.mlp import multilayer_perceptron
from tune_sparsity.experiments.builtin.mnist import mnist
from tune_sparsity.experiments.training import train_whole
from tune_sparsity.sparsity.binary.convert import make_binary
from tune_sparsity.sparsity.binary.inference import SignLayer
from tune_sparsity.sparsity.binary.optimizer import BinaryOptimizer
from tune_sparsity.sparsity.binary.popcount import PopcountLayer, to_words
from tune_sparsity.sparsity.binary.products import LinearProduct
from tune_sparsity.sparsity.cost.live_bytes import LiveBytes

SIZES = (784, 256, 256, 256, 256, 10)


class _Sign(torch.autograd.Function):
    """Computes signs. Their gradient is the one of the straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * (x.abs() <= 1)


class _Signs(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _Sign.apply(x)


class _SignLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, _Sign.apply(self.weight))


def usual(sizes: tuple[int, ...]) -> tuple[nn.Module, torch.optim.Optimizer]:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [_SignLinear(fan_in, fan_out, bias=False), nn.BatchNorm1d(fan_out), _Signs()]
    model = nn.Sequential(*layers[:-1])
    return model, torch.optim.Adam(model.parameters(), 1e-3)


def lean(sizes: tuple[int, ...]) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = multilayer_perceptron(*sizes)
    blocks = make_binary(model)
    return model, BinaryOptimizer([block.weight for block in blocks], [block.bias for block in blocks], 1e-3)


def step_bytes(
    make: Callable[[tuple[int, ...]], tuple[nn.Module, torch.optim.Optimizer]], sizes: tuple[int, ...], batch: int
) -> tuple[int, int, int]:
    """Run two training steps, and return three numbers of bytes in the second step: of the activations that are kept
    from the forward to the backward pass, of the tensors that are kept from step to step, and of all tensors at their
    peak."""
    model, optimizer = make(sizes)
    x, y = torch.rand(batch, sizes[0]), torch.randint(sizes[-1], (batch,))

    def step() -> int:
        optimizer.zero_grad()
        saved = dict[int, int]()

        def seen(tensor: Tensor) -> Tensor:
            memory = tensor.untyped_storage()
            saved[memory.data_ptr()] = memory.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
            loss = F.cross_entropy(model(x), y)
        there = {one.untyped_storage().data_ptr() for one in (x, y, *model.parameters())}
        loss.backward()
        optimizer.step()
        return sum(size for place, size in saved.items() if place not in there)

    step()
    optimizer.zero_grad()
    states = [one for state in optimizer.state.values() for one in state.values() if isinstance(one, Tensor)]
    kept = [*model.parameters(), *model.buffers(), *states]
    with LiveBytes([x, y, *kept]) as live:
        retained = step()
    return retained, sum(one.untyped_storage().nbytes() for one in kept), live.peak


def memory() -> None:
    print("| sizes | batch | recipe | retained activations, kB | kept, MB | peak, MB | times less: retained, peak |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for sizes, batch in ((SIZES, 100), (SIZES, 1000), ((784, *[1024] * 4, 10), 100)):
        first = step_bytes(usual, sizes, batch)
        for name, (retained, kept, peak) in (("float32", first), ("binary", step_bytes(lean, sizes, batch))):
            less = f"{first[0] / retained:.1f}, {first[2] / peak:.2f}"
            told = f"{retained / 1e3:.1f} | {kept / 1e6:.2f} | {peak / 1e6:.2f} | {less}"
            print(f"| {'-'.join(map(str, sizes))} | {batch} | {name} | {told} |")


def latency(size: int = 1024, pairs: int = 500) -> None:
    torch.set_num_threads(1)
    weight = torch.where(torch.rand(size, size) < 0.5, 1, -1).to(torch.int8)
    layer = SignLayer(weight, LinearProduct(), "sign", {"threshold": torch.zeros(size, dtype=torch.int16)})
    counting, dense, x = PopcountLayer(layer), nn.Linear(size, size), torch.randn(1, size)
    counting.packs, words = True, to_words(x >= 0)
    calls = {"dense float32": lambda: dense(x), "packed signs": lambda: counting(words), "signs": lambda: counting(x)}
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for _ in range(pairs):
            for name, call in calls.items():
                for rounds in (5, 5):  # the first ones warm the cache
                    start = time.perf_counter()
                    for _ in range(rounds):
                        call()
                    taken = (time.perf_counter() - start) / rounds
                times[name].append(1e6 * taken)
    print(f"| layer of {size} x {size}, batch 1 | median, us | times quicker, median of pairs |")
    print("| --- | --- | --- |")
    for name, own in times.items():
        quicker = statistics.median(one / other for one, other in zip(times["dense float32"], own, strict=True))
        print(f"| {name} | {statistics.median(own):.1f} | {quicker:.1f} |")


def convolutional() -> nn.Module:
    """Return a network with three convolutions. `make_binary` adds the normalisations and the signs."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 128, 3, padding=1), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128 * 4 * 4, 10)),
    )


def accuracy(experiment: Experiment, data_dir: Path, epochs: int, seeds: Sequence[int], params: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    data = experiment.load(data_dir)
    found = []
    print("| seed | validation % | test % | seconds |")
    print("| --- | --- | --- | --- |")
    for seed in seeds:
        start = time.perf_counter()
        training = train_whole(experiment, data, "binary", params, epochs=epochs, seed=seed)
        values = [100 * evaluate(experiment, training.model, split) for split in (data.val, data.test)]
        found.append(values[1])
        print(f"| {seed} | {values[0]:.2f} | {values[1]:.2f} | {time.perf_counter() - start:.0f} |", flush=True)
    print(f"test: mean {statistics.mean(found):.2f}, {min(found):.2f} to {max(found):.2f}")


EXPERIMENTS = {
    "accuracy": replace(mnist, model=partial(multilayer_perceptron, *SIZES), recipe=Recipe(epochs=12, batch_size=250)),
    "convolutional": replace(cifar10_subset, model=convolutional),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["memory", "latency", *EXPERIMENTS])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--activations", default="binary")
    parser.add_argument("--flips", default="signs")
    parser.add_argument("--lr", type=float, default=2e-3)
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.what in EXPERIMENTS:
        params = {"lr": options.lr, "activations": options.activations, "flips": options.flips}
        accuracy(EXPERIMENTS[options.what], options.data_dir, options.epochs, options.seeds, params)
    else:
        {"memory": memory, "latency": latency}[options.what]()


if __name__ == "__main__":
    main()
