"""Every method on the same network, data, epochs and batches: LeNet-300-100, several sparsities, several seeds.

    python -m benchmarks.methods --experiment mnist --data-dir DIR [--epochs 20] [--seeds 3]

First the learning rates of every method are tuned by the same small search, a grid of three (`grid`), once for the
sparsities .9 and .95 and once for .98 and .99, at .95 and at .98: half the epochs, judged on the validation data. Then
the best of the three is trained with all epochs on the training and the validation data together (what the published
figures were trained on), at every sparsity under every seed, and judged on the test data. What the grid does not name
is each method's default.

Every finished training is a line of OUT/EXPERIMENT-METHOD.jsonl and is not run again: the benchmark can be stopped at
any time and goes on where it was. The table is printed in Markdown.
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
    """Trains one job in this process; the job with its accuracies. A training that diverges has accuracy 0."""
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
    """The trainings of one method that are done, one JSON document a line."""

    def __init__(self, folder: Path, common: Job, method: str) -> None:
        self.path = folder / f"{common['experiment']}-{method}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.done = {self._key(job): job for job in map(json.loads, lines)}

    @staticmethod
    def _key(job: Job) -> str:
        return json.dumps([job[name] for name in ("stage", "epochs", "seed", "params")], sort_keys=True)

    def train(self, job: Job) -> Job:
        """The job with its accuracies, trained now unless it was before."""
        if self._key(job) not in self.done:
            self.done[self._key(job)] = trained = train(job)
            with self.path.open("a") as file:
                file.write(json.dumps(trained) + "\n")
        return self.done[self._key(job)]


def tune(arguments: tuple[str, float, Job, int, Path]) -> dict[str, Any]:
    """The best parameters of the method's grid by validation accuracy at one sparsity; of equals the first."""
    method, at, common, epochs, folder = arguments
    log = Log(folder, common, method)
    own = {} if method == "dense" else {"final_sparsity": at}
    jobs = [{**common, "stage": "tune", "method": method, "params": {**point, **own}} for point in grid(method)]
    return dict(
        max((log.train({**job, "epochs": epochs, "seed": 0}) for job in jobs), key=lambda job: job["val"])["params"]
    )


def grid(method: str) -> list[dict[str, Any]]:
    """Three learning rates; lpss' is that of what lies off the sphere, and it takes its space's first exponents."""
    return [{"lr": lr, **(LPSS if method == "lpss" else {"weight_decay": 1e-4})} for lr in (0.05, 0.1, 0.2)]


def searches(methods: Iterable[str]) -> list[tuple[str, float]]:
    """(method, sparsity to tune it at): the dense network, which has none, once."""
    return [(method, at) for method in methods for at in (TUNED_FOR if method != "dense" else [0.0])]


def finish(arguments: tuple[str, float, dict[str, Any], Job, int, int, Path]) -> list[Job]:
    """The chosen parameters at every sparsity that they serve, under every seed."""
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
    """Test accuracy in per cent, mean and range over the seeds, a row a method and a column a sparsity."""
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
