"""Compare two ways to weights of one bit with fixed masks: the straight-through estimator, and a falling exponent.

    python -m benchmarks.training.signs --data-dir DIR [--out FILE] [--workers 1]

On the Lp sphere, a weight is computed from a number v as sgn(v) |v|^(1 / (p - 1)). For large p, it tends to sgn(v). So
if the exponent falls from 1 to 0, trained weights become signs without a jump. Here a LeNet-300-100 is trained on
Fashion-MNIST with lpss for FLOAT epochs. Then, in BINARY epochs, each weight becomes the sign of a number v, times a
scale for each row:

- `straight`: the network computes with signs from the first step. The gradient with respect to a sign is used as the
  gradient with respect to v.
- `mirror`: the exponent falls linearly to 0 during a share of the steps. The gradient with respect to the power is used
  as the gradient with respect to v (mirror descent).
- `chain`: as `mirror`, but the gradient is multiplied by the derivative of the power.

Adam updates the numbers v, the scales and the biases. Its learning rates fall to 0 as a cosine. The learning rate of
the numbers v and the share of the steps are chosen on validation data under seed 0. Then networks are trained under
three other seeds, and judged once on the test data. Each finished training is a line of FILE, and is not run again.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks.methods import _loaded
from benchmarks.training.jobs import Job, Jobs
from tune_sparsity.experiments import Data, Experiment
from tune_sparsity.experiments.base import evaluate
from tune_sparsity.experiments.training import train_whole

EXPERIMENT = "fashion-mnist"
FLOAT, BINARY, SPARSITIES = 5, 3, (0.9,)
WAYS: dict[str, list[dict[str, float]]] = {
    "straight": [{"lr": lr, "share": 0.0} for lr in (1e-3, 3e-3, 1e-2)],
    "mirror": [{"lr": lr, "share": share} for lr in (1e-3, 3e-3, 1e-2) for share in (0.4, 0.8)],
    "chain": [{"lr": lr, "share": share} for lr in (1e-3, 3e-3, 1e-2) for share in (0.4, 0.8)],
}
PARAMS = {"p": 1.7, "p_early": 1.5, "early_layers": 1, "sphere_lr": 0.01, "lr": 0.05}
_SCALE_LR, _OTHER_LR = 1e-3, 3e-4


class _Power(torch.autograd.Function):
    """Computes sgn(v) |v|^exponent. The backward pass returns the gradient without a change."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, exponent: float) -> Tensor:
        return v.sign() * v.abs() ** exponent

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], None


class Powered(nn.Module):
    """Computes a weight matrix from numbers v: sgn(v) |v|^exponent, times a scale for each row, times a mask. At the
    start the exponent is 1, and the result is the weight matrix that the constructor gets."""

    def __init__(self, weight: Tensor, *, chain: bool) -> None:
        super().__init__()
        self.register_buffer("mask", (weight != 0).to(weight))
        count = self.mask.sum(1, keepdim=True)
        mean = weight.abs().sum(1, keepdim=True) / count.clamp(min=1)
        self.log_scale = nn.Parameter(mean.masked_fill(count == 0, 1.0).log())
        self.chain, self.exponent = chain, 1.0

    def forward(self, numbers: Tensor) -> Tensor:
        # A number of exactly 0 has the sign +1, as everywhere in this project.
        shifted = numbers + (numbers == 0) * 1e-12
        powered = self._smooth(shifted) if self.chain else _Power.apply(shifted, self.exponent)
        return self.log_scale.exp() * powered * self.mask

    def _smooth(self, numbers: Tensor) -> Tensor:
        return numbers.sign() * numbers.abs().clamp(min=1e-3) ** self.exponent

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / self.log_scale.detach().exp()


@lru_cache
def _trained(data_dir: str, sparsity: float, seed: int) -> tuple[nn.Module, list[Tensor]]:
    params = {**PARAMS, "final_sparsity": sparsity}
    done = train_whole(*_loaded(EXPERIMENT, data_dir), "lpss", params, epochs=FLOAT, seed=seed, device="cpu")
    return done.model, list(done.sparse.masks)


def _before(data_dir: str, sparsity: float, seed: int) -> tuple[nn.Module, list[Tensor]]:
    """Return a copy of a trained network, which the caller may change, and its masks."""
    model, masks = _trained(data_dir, sparsity, seed)
    return copy.deepcopy(model), masks


def train(job: Job) -> Job:
    """Turn the weights of a trained network into signs. Return its validation accuracies before and after this, and the
    test accuracy after this (None under seed 0)."""
    experiment, data = _loaded(EXPERIMENT, job["data_dir"])
    model, masks = _before(job["data_dir"], job["sparsity"], job["seed"])
    start = evaluate(experiment, model, data.val)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert [layer.weight.shape for layer in layers] == [mask.shape for mask in masks]
    powered = [
        Powered(layer.weight.detach() * mask, chain=job["way"] == "chain")
        for layer, mask in zip(layers, masks, strict=True)
    ]
    for layer, one in zip(layers, powered, strict=True):
        parametrize.register_parametrization(layer, "weight", one)
    _finetune(experiment, data, model, powered, job)
    signs = [layer.weight[layer.weight != 0] / one.log_scale.exp().expand_as(layer.weight)[layer.weight != 0]
             for layer, one in zip(layers, powered, strict=True)]  # fmt: skip
    assert all(torch.allclose(one.abs(), torch.ones(())) for one in signs)
    test = evaluate(experiment, model, data.test) if job["seed"] else None
    return {"start": start, "val": evaluate(experiment, model, data.val), "test": test}


def _finetune(experiment: Experiment, data: Data, model: nn.Module, powered: list[Powered], job: Job) -> None:
    numbers = [value for name, value in model.named_parameters() if name.endswith("original")]
    scales = [one.log_scale for one in powered]
    known = {id(one) for one in [*numbers, *scales]}
    others = [one for one in model.parameters() if id(one) not in known]
    rates = (job["lr"], _SCALE_LR, _OTHER_LR)
    groups = [{"params": group, "lr": lr} for group, lr in zip((numbers, scales, others), rates, strict=True)]
    adam, batch = torch.optim.Adam(groups), experiment.recipe.batch_size
    order, count = torch.Generator().manual_seed(job["seed"]), len(data.train.y)
    total, step = BINARY * math.ceil(count / batch), 0
    model.train()
    for _ in range(BINARY):
        for places in torch.randperm(count, generator=order).split(batch):
            for one in powered:
                one.exponent = max(0.0, 1 - step / (job["share"] * total)) if job["share"] else 0.0
            for group, rate in zip(adam.param_groups, rates, strict=True):
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / total))
            adam.zero_grad()
            experiment.loss(model(data.train.x[places]), data.train.y[places]).backward()
            adam.step()
            step += 1
    for one in powered:
        one.exponent = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="../shared/data")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/training/done/signs.jsonl"))
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    jobs = Jobs(train, options.out, options.workers)
    print("| sparsity | way | chosen | float, validation | signs, validation | signs, test |\n|" + " --- |" * 6)
    for sparsity in SPARSITIES:
        for way, settings in WAYS.items():
            common = {"sparsity": sparsity, "way": way, "data_dir": options.data_dir}
            tried = jobs.run([{**common, **one, "seed": 0} for one in settings])
            best = max(range(len(tried)), key=lambda place: tried[place]["val"])
            done = jobs.run([{**common, **settings[best], "seed": seed} for seed in (1, 2, 3)])
            cells = [_spread([100 * one[name] for one in done]) for name in ("start", "val", "test")]
            print(f"| {sparsity} | {way} | {settings[best]} | {' | '.join(cells)} |", flush=True)


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


if __name__ == "__main__":
    main()
