"""Compare the first masks that RigL may begin with: random masks, and masks whose neurons have log-normal fan-ins.

    python -m benchmarks.baselines.fan_in --experiment digits [--targets 0.9 0.98] [--seeds 24] [--data-dir DIR]

RigL moves connections towards few neurons with many inputs. N. Tomczak (arXiv 2604.10560) therefore begins with fan-ins
whose distribution is log-normal, and reports .16 points more on Fashion-MNIST. Here the numbers of inputs of a layer's
neurons are the quantiles of a log-normal distribution with a given coefficient of variation (standard deviation divided
by mean). Each neuron has at least one input, and the numbers are given to the neurons in random order. Their sum is the
number of weights that Erdos-Renyi-Kernel gives the layer. The last layer keeps a random mask. The seeds are the same
for all kinds of masks. The p-value is that of Wilcoxon's signed-rank test.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from scipy.stats import norm, wilcoxon
from torch import Generator, Tensor

from benchmarks.curves.choosing import percent
from benchmarks.curves.collect import EPOCHS
from benchmarks.methods import _loaded
from benchmarks.training.jobs import Job, Jobs
from tune_sparsity.experiments.base import evaluate
from tune_sparsity.experiments.training import train_whole
from tune_sparsity.sparsity.distributions import layer_counts, random_masks, rounded
from tune_sparsity.sparsity.methods import baselines

VARIATIONS = (0.0, 0.3, 0.6, 1.0)  # coefficients of variation of the fan-ins; 0 stands for RigL's random masks
FIRST_SEED = 200
LEARNING_RATES = {"digits": 0.1, "fashion-mnist": 0.05}


def fan_ins(neurons: int, inputs: int, total: int, variation: float) -> list[int]:
    """Return the numbers of inputs of the neurons, ascending, in [1, inputs]. Their sum is `total`."""
    sigma = math.sqrt(math.log1p(variation**2))
    shape = np.exp(sigma * norm.ppf((np.arange(neurons) + 0.5) / neurons))
    low, high = 0.0, float(inputs) / shape.min()
    for _ in range(60):  # bisection for the scale at which the clipped quantiles sum to `total`
        middle = (low + high) / 2
        low, high = (low, middle) if np.clip(middle * shape, 1, inputs).sum() > total else (middle, high)
    return rounded(np.clip(low * shape, 1, inputs).tolist(), [inputs] * neurons, total)


def masks(
    weights: Sequence[Tensor], sparsity: float, distribution: str, generator: Generator, *, variation: float
) -> list[Tensor]:
    """Return masks as `random_masks` does, with log-normal fan-ins in all layers but the last."""
    counts = layer_counts([weight.shape for weight in weights], sparsity, distribution)
    found = random_masks(weights, sparsity, distribution, generator)
    for place, (weight, count) in enumerate(zip(weights[:-1], counts, strict=False)):
        neurons, inputs = weight.shape[0], weight[0].numel()
        numbers = fan_ins(neurons, inputs, count, variation)
        mask = torch.zeros(neurons, inputs, dtype=weight.dtype)
        for row, neuron in enumerate(torch.randperm(neurons, generator=generator).tolist()):
            mask[neuron, torch.randperm(inputs, generator=generator)[: numbers[row]]] = 1
        found[place] = mask.view(weight.shape)
    return found


def work(data_dir: str, job: Job) -> Job:
    """Train one network in this process. Return its accuracies and the variation of each layer's fan-ins."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as the search's workers do
    experiment, data = _loaded(job["experiment"], data_dir)
    params: dict[str, Any] = {"lr": job["lr"], "weight_decay": 1e-4, "final_sparsity": job["target"]}
    first = partial(masks, variation=job["variation"]) if job["variation"] else random_masks
    with patch.object(baselines, "random_masks", first):
        trained = train_whole(experiment, data, "rigl", params, epochs=job["epochs"], seed=job["seed"], device="cpu")
    numbers = [(p != 0).flatten(1).sum(1).double() for p in trained.model.parameters() if p.dim() > 1]
    return {
        "val": evaluate(experiment, trained.model, data.val),
        "test": evaluate(experiment, trained.model, data.test),
        "variations": [round(float(some.std() / some.mean()), 3) for some in numbers],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", choices=LEARNING_RATES, required=True)
    parser.add_argument("--data-dir", default="../shared/data")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.9, 0.98])
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/fan_in"))
    options = parser.parse_args()
    name = options.experiment
    jobs = Jobs(partial(work, options.data_dir), options.out / f"{name}.jsonl", options.workers)
    common = {"experiment": name, "lr": LEARNING_RATES[name], "epochs": EPOCHS[name]}
    print(
        "| target | variation at the start | at the end, by layer | validation % | test % | gain | p |\n|"
        + " --- |" * 7
    )
    for target in options.targets:
        plain: list[float] = []
        for variation in VARIATIONS:
            own = {**common, "target": target, "variation": variation}
            done = jobs.run([{**own, "seed": FIRST_SEED + seed} for seed in range(options.seeds)])
            val, test = ([one[split] for one in done] for split in ("val", "test"))
            plain = plain or test
            gains = [100 * (one - other) for one, other in zip(test, plain, strict=True)]
            p = f"{wilcoxon(gains).pvalue:.2f}" if any(gains) else ""
            ends = ", ".join(
                f"{statistics.mean(some):.2f}" for some in zip(*(one["variations"] for one in done), strict=True)
            )
            print(
                f"| {target:g} | {variation:g} | {ends} | {100 * statistics.mean(val):.2f} | {percent(test)} | "
                f"{statistics.mean(gains):+.2f} | {p} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
