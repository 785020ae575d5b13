"""Measure trained networks that are made 90 % sparse in a quarter of the epochs of their dense training.

    python -m benchmarks.training.finetune --data-dir DIR [--networks resnet18 vit] [--seeds 3]

The networks are torchvision's resnet18 without changes, and a small vision transformer with layer norm. They learn the
3,500 images of the built-in `cifar10-subset`. A dense network, the parent, is trained for each seed. lpss, gmp and rigl
then start from the parent with `trained=True`.

Validation accuracies under one seed decide between three learning rates of the parents, and between six points of each
method. Other settings have the method's default values. Each final network is tested once on the test images. The
intervals are those of a paired bootstrap over test images and seeds. The last column compares the outputs of a parent
with those of the wrapped network before its first mask, in evaluation mode: their largest difference, divided by the
largest output of the parent.

Every finished training is a line of OUT. The parents are stored in a folder beside OUT. Neither is trained again.
Tables are printed in Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.training.jobs import Job, Jobs
from benchmarks.training.paired import accuracies, accuracy, difference
from tune_sparsity.experiments import Data, Experiment, Recipe, Training, find
from tune_sparsity.experiments.base import Split
from tune_sparsity.experiments.training import NotFinite, train_whole
from tune_sparsity.sparsity import METHODS as RECIPES

# FIRST_SEED is the first seed of the final trainings. The parameters are chosen with seed 0.
SPARSITY, CLASSES, FIRST_SEED = 0.9, 10, 100
METHODS = ("lpss", "gmp", "rigl")
EPOCHS, QUARTER = 12, 3


class VisionTransformer(nn.Module):
    """Makes patches of 4 x 4 pixels, applies blocks with layer norm, and classifies the mean over the patches."""

    def __init__(self, width: int = 96, blocks: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.places = nn.Parameter(0.02 * torch.randn(64, width))
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, blocks, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2) + self.places).mean(1))


def resnet18() -> nn.Module:
    import torchvision

    return torchvision.models.resnet18(weights=None, num_classes=CLASSES)


Params = dict[str, Any]
NETWORKS = {"resnet18": resnet18, "vit": VisionTransformer}
COMMON: dict[str, Params] = {"resnet18": {}, "vit": {"optimizer": "adamw", "weight_decay": 0.05}}
PARENTS: dict[str, list[Params]] = {
    "resnet18": [{"lr": lr, "weight_decay": 5e-4} for lr in (0.02, 0.05, 0.1)],
    "vit": [{"lr": lr} for lr in (0.0005, 0.001, 0.002)],
}
RATES = {"resnet18": (0.005, 0.01, 0.02), "vit": (0.0003, 0.0006, 0.0012)}
SECOND: dict[str, Sequence[Params]] = {
    "lpss": ({"sphere_lr": 0.002}, {"sphere_lr": 0.006}),
    "gmp": ({"end": 0.5}, {"end": 0.75}),
    "rigl": ({"drop_fraction": 0.1}, {"drop_fraction": 0.3}),
}
LPSS = {"p": 1.7, "threshold.begin": 0.0, "threshold.end": 0.7}


def tries(network: str, method: str) -> list[Params]:
    common = {"final_sparsity": SPARSITY, **COMMON[network], **(LPSS if method == "lpss" else {})}
    return [{**common, "lr": lr, **second} for lr in RATES[network] for second in SECOND[method]]


def experiment(network: str, parent: Path | None = None) -> Experiment:
    """Return the experiment that trains this network, or one that goes on with the parent in a file."""
    clip = 1.0 if network == "vit" else None
    ours = replace(
        find("cifar10-subset"),
        model=NETWORKS[network],
        recipe=Recipe(EPOCHS if parent is None else QUARTER, batch_size=64, clip_norm=clip),
        optimizer=COMMON[network].get("optimizer", "sgd"),
    )
    return ours if parent is None else replace(ours, model=partial(restored, network, parent), trained=True)


def restored(network: str, parent: Path) -> nn.Module:
    model = NETWORKS[network]()
    model.load_state_dict(torch.load(parent, weights_only=True))
    return model


@cache
def images(folder: str) -> Data:
    return find("cifar10-subset").load(Path(folder))


def work(job: Job) -> Job:
    """Train. Return the validation accuracy, and after a final training also the classes that it predicts for the test
    images."""
    data = images(job["folder"])
    ours = experiment(job["network"], job.get("parent") and Path(job["parent"]))
    given = {"epochs": ours.recipe.epochs, "seed": job["seed"], "device": "cpu"}
    changed = _changed(ours, data, job) if "parent" in job else None
    try:
        done = train_whole(ours, data, job["method"], job["params"], **given)
    except NotFinite:
        return {"val": 0.0, "test": None, "sparsity": None, "changed": changed}
    if job.get("keep"):
        Path(job["keep"]).parent.mkdir(parents=True, exist_ok=True)
        torch.save(done.model.state_dict(), job["keep"])
    right = predictions(ours, done, data.val) == data.val.y
    test = predictions(ours, done, data.test).tolist() if job["final"] else None
    return {"val": float(right.float().mean()), "test": test, "sparsity": done.sparse.sparsity(), "changed": changed}


def predictions(ours: Experiment, done: Training, split: Split) -> Tensor:
    return _outputs(ours, done.model, split).argmax(1)


@torch.no_grad()
def _outputs(ours: Experiment, model: nn.Module, split: Split) -> Tensor:
    model.eval()
    return torch.cat([ours.outputs(model, x) for x, _ in split.batches(250)])


def _changed(ours: Experiment, data: Data, job: Job) -> float:
    """Return the largest difference between the outputs of a parent and those of the wrapped network before any mask,
    divided by the largest output of the parent."""
    parent, model = ours.model(), ours.model()
    params = {**job["params"], "final_sparsity": SPARSITY}
    sparse = RECIPES[job["method"]].build(
        model, params, total_steps=100, generator=torch.Generator().manual_seed(0), rules=ours.layers, trained=True
    )
    for layer, mask in zip(sparse.layers, sparse.masks, strict=True):
        if job["method"] != "rigl":  # rigl begins with a mask of the largest weights
            assert bool(mask.all()), f"{layer.name} begins with a mask"
    before, after = (_outputs(ours, one, data.val) for one in (parent, model))
    return float((after - before).abs().max() / before.abs().max())


class Benchmark:
    """All trainings from one network's parents."""

    def __init__(self, jobs: Jobs, network: str, folder: str, seeds: int) -> None:
        self.jobs, self.network, self.folder = jobs, network, folder
        self.seeds = range(FIRST_SEED, FIRST_SEED + seeds)

    def job(self, method: str, params: Params, seed: int, **more: Any) -> Job:
        common = {"network": self.network, "folder": self.folder, "method": method, "params": params, "seed": seed}
        return {**common, "final": False, **more}

    def parent(self, seed: int) -> str:
        return str(self.jobs.file.with_suffix("") / f"{self.network}-{seed}.pt")

    def parents(self) -> list[Job]:
        """Return the measurements of the parents. The first parent, with seed 0, is the start of the trainings that
        choose the settings of the methods."""
        points = [{**COMMON[self.network], **point} for point in PARENTS[self.network]]
        params = self.best("dense", points, {})
        jobs = [self.job("dense", params, seed, final=seed != 0, keep=self.parent(seed)) for seed in (0, *self.seeds)]
        return self.jobs.run(jobs)

    def best(self, method: str, points: Sequence[Params], more: Job) -> Params:
        """Return the point with the best validation accuracy. If several are equally good, return the first of them."""
        done = self.jobs.run([self.job(method, point, 0, **more) for point in points])
        chosen = max(range(len(points)), key=lambda index: (done[index]["val"], -index))
        print(f"{self.network} {method}: {done[chosen]['val']:.4f} {points[chosen]}", flush=True)
        return points[chosen]

    def sparse(self, method: str) -> list[Job]:
        params = self.best(method, tries(self.network, method), {"parent": self.parent(0)})
        jobs = [self.job(method, params, seed, parent=self.parent(seed), final=True) for seed in self.seeds]
        return self.jobs.run(jobs)


def rows(network: str, targets: Tensor, found: dict[str, list[Job]]) -> list[str]:
    """Return the table's lines: the test accuracy, the accuracy minus that of the parent, and the accuracy of lpss
    minus that of the method."""
    tests = {method: torch.tensor([one["test"] for one in done]) for method, done in found.items()}
    apart = partial(difference, accuracy, targets, classes=CLASSES)
    lines = []
    for method, test in tests.items():
        cells = [accuracies(targets, test)]
        cells.append("" if method == "dense" else str(apart(test, tests["dense"])))
        cells.append("" if method == "lpss" else str(apart(tests["lpss"], test)))
        changed = [one["changed"] for one in found[method] if one["changed"] is not None]
        cells.append(f"{max(changed):.1e}" if changed and method != "rigl" else "")
        lines.append(f"| {network} | {method} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="lpss among them")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/finetune.jsonl"))
    options = parser.parse_args()
    jobs = Jobs(work, options.out, options.workers)
    lines = [
        "| network | method | test accuracy % | minus its parent | lpss minus it | outputs changed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for network in options.networks:
        benchmark = Benchmark(jobs, network, options.data_dir, options.seeds)
        found = {"dense": benchmark.parents()[1:]}
        found |= {method: benchmark.sparse(method) for method in options.methods}
        lines += rows(network, images(options.data_dir).test.y, found)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
