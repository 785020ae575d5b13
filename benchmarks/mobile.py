"""Compare methods on a small MobileNet-like network, with depthwise and pointwise convolutions and few images. In such
a network, many neurons of a layer can easily die: all their incoming weights are pruned.

    python -m benchmarks.mobile --data-dir DIR [--sparsity 0.95] [--epochs 3 12] [--seeds 3]

The network has 30,720 weights. At a sparsity of .95, a neuron keeps 2.5 weights on average. The training data are 3,000
images of Fashion-MNIST. Each method uses one of the points that its own space tries first (see `first_point`). All
learning rates of the point are multiplied by 1, 2 or 4. The best factor is chosen by validation accuracy after 3
epochs. With this factor, the method is trained under every seed for each number of epochs, and tested on the test data.

Every finished training is a line of OUT and is not run again. You can stop the benchmark at any time and start it again
later. The table is printed in Markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tune_sparsity.experiments import Data, Experiment, Recipe, find
from tune_sparsity.experiments.base import Split, evaluate
from tune_sparsity.experiments.training import train_whole
from tune_sparsity.search_spaces import load_space
from tune_sparsity.sparsity import dead_neurons

BLOCKS = ((16, 32, 1), (32, 64, 2), (64, 128, 1), (128, 128, 1))  # channels of inputs and outputs, stride
IMAGES = 3000
METHODS = ("dense", "rigl", "gmp", "lpss")
RATES = (1, 2, 4)  # factors of the learning rates of the first point
TUNED_FOR = 3  # epochs
FIRST_SEED = 100  # the first seed of the final trainings; the rates are chosen with seed 0


def network() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for inputs, outputs, stride in BLOCKS:
        depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        layers += [depthwise, nn.BatchNorm2d(inputs), nn.ReLU(), pointwise, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def load(data_dir: Path | None) -> Data:
    data = find("fashion-mnist-wrn").load(data_dir)
    return replace(data, train=Split(*(part[:IMAGES] for part in data.train)))


mobile = Experiment("mobile", load, network, Recipe(epochs=3, batch_size=64), prepare=find("fashion-mnist-wrn").prepare)


@dataclass
class Trainings:
    """Trainings at one sparsity, and the file of those that are done."""

    data: Data
    sparsity: float
    file: Path

    def train(self, method: str, rates: int, epochs: int, seed: int) -> dict[str, Any]:
        """Return the measurements of a training. The training is run only if it is not in the file yet."""
        job = {"method": method, "sparsity": self.sparsity, "rates": rates, "epochs": epochs, "seed": seed}
        for done in map(json.loads, self.file.read_text().splitlines() if self.file.exists() else ()):
            if done.items() >= job.items():
                return dict(done)
        params = first_point(method, self.sparsity)
        params |= {name: rates * params[name] for name in ("lr", "sphere_lr") if name in params}
        training = train_whole(mobile, self.data, method, params, epochs=epochs, seed=seed, device="cpu")
        dead = dead_neurons(training.sparse.layers, training.sparse.masks)
        splits = {"val": self.data.val, "test": self.data.test}
        job |= {name: evaluate(mobile, training.model, split) for name, split in splits.items()}
        job |= {"zeros": training.sparse.zeros()[0], "dead": sum(one.dead for one in dead.values())}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            file.write(json.dumps(job) + "\n")
        return job

    def best_rates(self, method: str) -> int:
        """Return the factor of the learning rates with the best validation accuracy. If several are equally good,
        return the first of them."""
        return max(RATES, key=lambda rates: self.train(method, rates, TUNED_FOR, seed=0)["val"])


def first_point(method: str, sparsity: float) -> dict[str, Any]:
    """Return the parameters of a point that a method's space tries first. Of several points, this is the point whose
    target `near` is nearest to this sparsity."""
    space = load_space(method, 0.0 if method == "dense" else sparsity)
    apart = space.apart_from(sparsity)
    point = space.first[min(apart, key=apart.__getitem__, default=0)]
    return {**point, **space.fixed_for(point)}


def row(method: str, rates: int, epochs: int, done: Sequence[dict[str, Any]]) -> str:
    """Return a line of the table: the mean accuracy and its range over the seeds, and the most neurons that died."""
    test = [100 * one["test"] for one in done]
    accuracy = f"{statistics.mean(test):.2f} ({min(test):.2f} to {max(test):.2f})"
    return f"| {method} | {rates} | {epochs} | {accuracy} | {max(one['dead'] for one in done)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--epochs", type=int, nargs="+", default=[3, 12])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/mobile.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    trainings = Trainings(load(options.data_dir), options.sparsity, options.out)
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    print("| method | rates | epochs | test accuracy % | dead neurons |\n| --- | --- | --- | --- | --- |")
    for epochs in options.epochs:
        for method in options.methods:
            rates = trainings.best_rates(method)
            done = [trainings.train(method, rates, epochs, seed) for seed in seeds]
            print(row(method, rates, epochs, done), flush=True)


if __name__ == "__main__":
    main()
