"""Measure what it costs to load examples: a step of ResNet-18 from memory and through a loader.

    python -m benchmarks.training.loading [--batch 64] [--steps 12] [--rounds 5]

Images come in three ways: from a split in memory, through a loader in the training process, and through a loader with
one worker process. In each round, every way in turn trains an epoch of `--steps` steps on the same images. The table
shows the median time of a step for each way. It also shows the ratio to the step from memory in the same round, as the
median over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torchvision
from torch.utils.data import TensorDataset

from tune_sparsity.experiments import Data, Experiment, Recipe, Split, Training
from tune_sparsity.experiments.data.augment import Normalise

WAYS = ("in memory", "loaded", "loaded by a worker")


def trainings(batch: int, steps: int, epochs: int) -> dict[str, Training]:
    """Return a dict from `WAYS`, the three ways to get images, to trainings on the same images."""
    numbers = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (batch * steps, 3, 32, 32), dtype=torch.uint8, generator=numbers)
    y = torch.randint(0, 10, (batch * steps,), generator=numbers)
    held = Data(*(Split(x, y) for _ in range(3)))
    sets = [TensorDataset(x, y) for _ in range(3)]
    data = dict(zip(WAYS, (held, Data(*sets), Data(*sets, workers=1)), strict=True))
    ours = Experiment(
        "resnet18",
        lambda data_dir: held,
        lambda: torchvision.models.resnet18(weights=None, num_classes=10),
        Recipe(epochs, batch),
        prepare=Normalise((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    )
    params = {"p": 1.7, "final_sparsity": 0.9}
    return {way: Training(ours, data[way].train, data[way].val, "lpss", params, epochs=epochs, seed=0) for way in WAYS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    made = trainings(options.batch, options.steps, options.rounds + 1)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.rounds + 1):
        for way, training in made.items():
            start = time.perf_counter()
            training.train()
            seconds[way].append((time.perf_counter() - start) / options.steps)
    print("| images | ms a step | ratio to memory |\n| --- | --- | --- |")
    for way, (_, *measured) in seconds.items():  # the first round warms up
        ratio = statistics.median(a / b for a, b in zip(measured, seconds[WAYS[0]][1:], strict=True))
        print(f"| {way} | {1000 * statistics.median(measured):.1f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
