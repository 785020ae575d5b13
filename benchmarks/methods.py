"""Compare all methods on the same network (LeNet-300-100), data, epochs and batches, at several sparsities and seeds.

    python -m benchmarks.methods --experiment mnist --data-dir DIR [--epochs 20] [--seeds 3]

First, a small search chooses the learning rate of every method. It trains the three points of `grid` for half the
epochs, and chooses the point with the best validation accuracy. A search at .95 chooses the point for the sparsities .9
and .95, and a search at .98 chooses the point for .98 and .99. Then each chosen point is trained at its two sparsities
under every seed, and tested on the test data. These trainings have all epochs, and use the training and the validation
data together, because the published results come from trainings on both. Settings that are not in the grid have the
method's default values.

Every finished training is a line of OUT/EXPERIMENT-METHOD.jsonl and is not run again. You can stop the benchmark at any
time and start it again later. The table is printed in Markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from tune_sparsity.experiments import Data, Experiment, find
from tune_sparsity.experiments.base import Split, evaluate
from tune_sparsity.experiments.training import NotFinite, train_whole
from tune_sparsity.sparsity import METHODS

# The sparsity of each search, and the sparsities that are trained with its best parameters.
TUNED_FOR = {0.95: (0.9, 0.95), 0.98: (0.98, 0.99)}
SPARSITIES = tuple(sparsity for served in TUNED_FOR.values() for sparsity in served)
FIRST_SEED = 100  # the first seed of the final trainings; the searches use seed 0
LPSS = {"p_early": 1.4, "p": 1.7, "early_layers": 1}
Job = dict[str, Any]


@lru_cache(maxsize=1)
def _loaded(experiment: str, data_dir: str) -> tuple[Experiment, Data]:
    found = find(experiment)
    return found, found.load(Path(data_dir))


def with_validation(data: Data) -> Data:
    """Return the data with the validation examples among the training examples."""
    return replace(data, train=Split(*(torch.cat(pair) for pair in zip(data.train, data.val, strict=True))))


def train(job: Job) -> Job:
    """Train one job in this process. Return the job with its accuracies, which are 0 if the training diverges."""
    torch.set_num_threads(1)
    experiment, data = _loaded(job["experiment"], job["data_dir"])
    final = job["stage"] == "final"
    if final:
        data = with_validation(data)
    try:
        trained = train_whole(
            experiment, data, job["method"], job["params"], epochs=job["epochs"], seed=job["seed"], device="cpu"
        )
    except NotFinite:
        return {**job, "val": 0.0, "test": 0.0, "sparsity": None}
    return {
        **job,
        "val": None if final else evaluate(experiment, trained.model, data.val),
        "test": evaluate(experiment, trained.model, data.test) if final else None,
        "sparsity": trained.sparse.sparsity(),
    }


class Log:
    """Holds the finished trainings of one method. Each training is a line of the file, in JSON."""

    def __init__(self, folder: Path, common: Job, method: str) -> None:
        self.path = folder / f"{common['experiment']}-{method}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.done = {self._key(job): job for job in map(json.loads, lines)}

    @staticmethod
    def _key(job: Job) -> str:
        return json.dumps([job[name] for name in ("stage", "epochs", "seed", "params")], sort_keys=True)

    def train(self, job: Job) -> Job:
        """Return the job with its accuracies. The job is trained only if it is not in the file yet."""
        if self._key(job) not in self.done:
            self.done[self._key(job)] = trained = train(job)
            with self.path.open("a") as file:
                file.write(json.dumps(trained) + "\n")
        return self.done[self._key(job)]


def tune(arguments: tuple[str, float, Job, int, Path]) -> dict[str, Any]:
    """Return the parameters of the method's grid with the best validation accuracy at one sparsity. If several are
    equally good, return the first of them."""
    method, at, common, epochs, folder = arguments
    log = Log(folder, common, method)
    own = {} if method == "dense" else {"final_sparsity": at}
    jobs = [{**common, "stage": "tune", "method": method, "params": {**point, **own}} for point in grid(method)]
    return dict(
        max((log.train({**job, "epochs": epochs, "seed": 0}) for job in jobs), key=lambda job: job["val"])["params"]
    )


def grid(method: str) -> list[dict[str, Any]]:
    """Return the points of a method's grid, which differ in their learning rate. For lpss, this is the learning rate
    off the sphere, and the exponents are those of the first point of its space."""
    return [{"lr": lr, **(LPSS if method == "lpss" else {"weight_decay": 1e-4})} for lr in (0.05, 0.1, 0.2)]


def searches(methods: Iterable[str]) -> list[tuple[str, float]]:
    """Return pairs of a method and a sparsity at which it is tuned. The dense network has one pair, at sparsity 0."""
    return [(method, at) for method in methods for at in (TUNED_FOR if method != "dense" else [0.0])]


def finish(arguments: tuple[str, float, dict[str, Any], Job, int, int, Path]) -> list[Job]:
    """Train the chosen parameters under every seed, at each sparsity that they were chosen for."""
    method, tuned_at, params, common, epochs, seeds, folder = arguments
    log, done = Log(folder, common, method), []
    for sparsity in TUNED_FOR.get(tuned_at, (0.0,)):
        own = {} if method == "dense" else {"final_sparsity": sparsity}
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            job = {**common, "stage": "final", "method": method, "params": {**params, **own}, "at": sparsity}
            done.append(log.train({**job, "epochs": epochs, "seed": seed}))
            print(f"{method} at {sparsity:g}, seed {seed}: {100 * done[-1]['test']:.2f}", flush=True)
    return done


def table(done: Iterable[Job]) -> str:
    """Return a table of the test accuracies in per cent, with a row for each method and a column for each sparsity. A
    cell has the mean and the range over the seeds."""
    results: dict[str, dict[float, list[float]]] = {}
    for job in done:
        results.setdefault(job["method"], {}).setdefault(job["at"], []).append(100 * job["test"])
    lines = ["| method | " + " | ".join(f"{s:g}" for s in SPARSITIES) + " |", "| --- |" + " --- |" * len(SPARSITIES)]
    for method, by_sparsity in results.items():
        cells = []
        for sparsity in SPARSITIES:
            values = by_sparsity.get(sparsity, by_sparsity.get(0.0, []))
            cells.append(f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else "")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", choices=["mnist", "fashion-mnist"], required=True)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/methods"))
    options = parser.parse_args()
    common = {"experiment": options.experiment, "data_dir": options.data_dir}
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        pairs, half = searches(options.methods), max(1, options.epochs // 2)
        tuned = list(pool.map(tune, [(*pair, common, half, options.out) for pair in pairs]))
        chosen = [(*pair, params) for pair, params in zip(pairs, tuned, strict=True)]
        done = pool.map(finish, [(*one, common, options.epochs, options.seeds, options.out) for one in chosen])
        rows = [job for jobs in done for job in jobs]
    for method, at, params in chosen:
        print(f"{method} tuned at {at:g}: {params}")
    print(table(rows))


if __name__ == "__main__":
    main()
