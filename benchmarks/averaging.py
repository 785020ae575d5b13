"""Compare three ways to train LeNet-300-100 with lpss, called sides: `cosine`, `average` and `bits`.

    python -m benchmarks.averaging --data-dir DIR [--tasks 0 1 2] [--sides cosine average bits] [--points 24]

`cosine` lowers the learning rate along a cosine. `average` holds the learning rate at a share of its peak, called the
tail, after the mask is fixed, and averages the weights from then on. `bits` gives the weights 4 bits in the last part
of the training.

For each data set and sparsity, every side is tuned on validation data with the same random points. `average` adds the
tail and the kind of average to each point. `bits` adds the length of the last part, and to half of the points also the
tail. The BEST points of each side are trained under two more seeds. The point with the best mean validation accuracy
over the three seeds is chosen. It is then trained under three seeds that no search has used, and each of these networks
is tested once. On Fashion-MNIST there are two such trainings for each seed: "final" uses the 55,000 training images of
the search, and "whole" uses all 60,000. On MNIST there is only "whole". MNIST is tuned only at the sparsity .98, with
half the epochs of the trainings that follow, and the chosen point is trained at four sparsities.

Every finished training is a line of OUT/EXPERIMENT.jsonl and is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.methods import FIRST_SEED, Job, _loaded, with_validation
from tune_sparsity.experiments.base import evaluate
from tune_sparsity.experiments.training import NotFinite, train_whole

BEST, SEEDS = 4, 3
SIDES = ("cosine", "average", "bits")


@dataclass(frozen=True)
class Task:
    """A search at one sparsity, and the sparsities at which its best point is then trained."""

    experiment: str
    tuned_at: float
    epochs: int  # of the search
    final_epochs: int
    serves: tuple[float, ...]
    stages: tuple[str, ...]


TASKS = (
    Task("fashion-mnist", 0.98, 8, 8, (0.98,), ("final", "whole")),
    Task("fashion-mnist", 0.9, 8, 8, (0.9,), ("final", "whole")),
    Task("mnist", 0.98, 10, 20, (0.98, 0.99, 0.95, 0.9), ("whole",)),
)


def points(side: str, count: int) -> Iterator[dict[str, Any]]:
    """Yield `count` random points of a side. All sides get the same random numbers."""
    for number in range(count):
        u = np.random.default_rng(number).uniform(size=9)

        def log(index: int, low: float, high: float, of: Any = u) -> float:
            return float(f"{low * (high / low) ** of[index]:.3g}")

        point = {
            "p": 1.7,
            "p_early": round(1.3 + 0.5 * u[0], 2),
            "early_layers": 1,
            "lr": log(1, 0.03, 0.4),
            "sphere_lr": log(2, 0.0015, 0.012),
            "weight_decay": log(3, 1e-4, 1e-3),
            "threshold": {"end": round(0.6 + 0.25 * u[4], 2)},
            "initial_sparsity": 0.2,
        }
        hold = {"learning_rate": "hold", "tail": log(5, 0.1, 1.0)}
        if side == "average":
            point |= {**hold, "averaging": ("swa", "ema")[int(u[6] > 0.75)], "average_every": 4}
        if side == "bits":
            point |= {**(hold if u[7] > 0.5 else {}), "weight_bits": 4, "bits_share": round(0.1 + 0.3 * u[8], 2)}
        yield point


def train(job: Job, data_dir: str) -> Job:
    """Train one job in this process. Return it with its accuracies. If it diverges, only `val` is there, and is 0."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    experiment, data = _loaded(job["experiment"], data_dir)
    if job["stage"] == "whole":
        data = with_validation(data)
    options = {"epochs": job["epochs"], "seed": job["seed"], "device": "cpu"}
    try:
        trained = train_whole(experiment, data, "lpss", job["params"], **options)
    except NotFinite:
        return {**job, "val": 0.0}
    found = {"zeros": trained.sparse.zeros()[0]}
    if job["stage"] == "tune":
        found["val"] = evaluate(experiment, trained.model, data.val)
        if trained.sparse.average is not None:
            with trained.sparse.average.swapped():
                found["val_last"] = evaluate(experiment, trained.model, data.val)
    else:
        found["test"] = evaluate(experiment, trained.model, data.test)
    return {**job, **found}


class Log:
    """Runs trainings, and keeps the finished ones in one file for each experiment, one JSON document a line."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options, self._done = options, dict[str, Job]()
        options.out.mkdir(parents=True, exist_ok=True)
        for path in options.out.glob("*.jsonl"):
            for line in path.read_text().splitlines():
                self._done[self._key(json.loads(line))] = json.loads(line)

    @staticmethod
    def _key(job: Job) -> str:
        names = ("experiment", "stage", "epochs", "seed", "params")
        return json.dumps([job[name] for name in names], sort_keys=True)

    def train(self, jobs: Iterable[Job], pool: ProcessPoolExecutor) -> list[Job]:
        """Train the jobs that are not in the files yet. Return all jobs with their accuracies."""
        jobs = list(jobs)
        left = [job for job in jobs if self._key(job) not in self._done]
        for done in pool.map(train, left, [self._options.data_dir] * len(left)):
            self._done[self._key(done)] = done
            with (self._options.out / f"{done['experiment']}.jsonl").open("a") as file:
                file.write(json.dumps(done) + "\n")
        return [self._done[self._key(job)] for job in jobs]


def tune(task: Task, side: str, count: int, log: Log, pool: ProcessPoolExecutor) -> Job:
    """Return the best point with its mean validation accuracy over the seeds."""
    common = {"experiment": task.experiment, "stage": "tune", "side": side, "epochs": task.epochs}
    tried = [{**point, "final_sparsity": task.tuned_at} for point in points(side, count)]
    first = log.train([{**common, "seed": 0, "params": point} for point in tried], pool)
    best = sorted(first, key=lambda job: -job["val"])[:BEST]
    seeds = [[{**job, "seed": seed} for seed in range(SEEDS)] for job in best]
    again = log.train([{**common, "seed": job["seed"], "params": job["params"]} for of in seeds for job in of], pool)
    values: dict[str, list[float]] = {}
    for job in again:
        values.setdefault(json.dumps(job["params"]), []).append(job["val"])
    params = max(values, key=lambda key: statistics.mean(values[key]))
    return {"params": json.loads(params), "val": statistics.mean(values[params])}


def finish(task: Task, side: str, chosen: Job, log: Log, pool: ProcessPoolExecutor) -> None:
    for stage in task.stages:
        for sparsity in task.serves:
            params = {**chosen["params"], "final_sparsity": sparsity}
            common = {"experiment": task.experiment, "stage": stage, "side": side, "epochs": task.final_epochs}
            seeds = range(FIRST_SEED, FIRST_SEED + SEEDS)
            done = log.train([{**common, "seed": seed, "params": params} for seed in seeds], pool)
            tests = [100 * job["test"] for job in done]
            spread = f"{statistics.mean(tests):.2f} ({min(tests):.2f} to {max(tests):.2f})"
            print(f"| {task.experiment} | {sparsity:g} | {stage} | {side} | {spread} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tasks", type=int, nargs="+", default=range(len(TASKS)), choices=range(len(TASKS)))
    parser.add_argument("--points", type=int, default=24)
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/averaging"))
    options = parser.parse_args()
    log = Log(options)
    with ProcessPoolExecutor(options.workers, get_context("spawn"), os.nice, (5,)) as pool:
        for task in (TASKS[index] for index in options.tasks):
            for side in options.sides:
                chosen = tune(task, side, options.points, log, pool)
                print(f"{task.experiment} {task.tuned_at:g} {side}: {chosen}", flush=True)
                finish(task, side, chosen, log, pool)


if __name__ == "__main__":
    main()
