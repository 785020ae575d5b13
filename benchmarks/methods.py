"""Every method on the same network, data, epochs and batches: LeNet-300-100, several sparsities, several seeds.

    python -m benchmarks.methods --experiment mnist --data-dir DIR [--epochs 20] [--tune 6] [--seeds 3]

First every method's parameters are tuned by the same small search, once for the sparsities .9 and .95 and once for .98
and .99: `--tune` trials of the method's own space and first points, at .95 and at .98, with half the epochs, judged on
the validation data. Then the best parameters are trained with all epochs on the training and the validation data
together (what the published figures were trained on), at every sparsity under every seed, and judged on the test data.

Every finished training is a line of OUT/EXPERIMENT.jsonl and is not run again: the benchmark can be stopped at any time
and goes on where it was. The table is printed in Markdown.
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

from experiments import Data, Experiment, find
from experiments.base import Split, evaluate
from experiments.training import NotFinite, train_whole
from search_spaces import load_space
from sparsity import METHODS
from tuner.records import TrialRecord, TrialState
from tuner.searcher import OptunaSearcher

TUNED_FOR = {0.95: (0.9, 0.95), 0.98: (0.98, 0.99)}  # the sparsity of a search: those that its best serves
SPARSITIES = tuple(sparsity for served in TUNED_FOR.values() for sparsity in served)
FIRST_SEED = 100  # of the final trainings: none that a search has seen
Job = dict[str, Any]


@lru_cache(maxsize=1)
def _loaded(experiment: str, data_dir: str) -> tuple[Experiment, Data]:
    found = find(experiment)
    return found, found.load(Path(data_dir))


def train(job: Job) -> Job:
    """Trains one job in this process; the job with its accuracies. A training that diverges has accuracy 0."""
    torch.set_num_threads(1)
    experiment, data = _loaded(job["experiment"], job["data_dir"])
    final = job["stage"] == "final"
    if final:
        data = replace(data, train=Split(*(torch.cat(pair) for pair in zip(data.train, data.val, strict=True))))
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
    """The trainings that are done, one JSON document a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.done = {self._key(job): job for job in map(json.loads, lines)}

    @staticmethod
    def _key(job: Job) -> str:
        return json.dumps([job[name] for name in ("stage", "method", "epochs", "seed", "params")], sort_keys=True)

    def __contains__(self, job: Job) -> bool:
        return self._key(job) in self.done

    def __getitem__(self, job: Job) -> Job:
        return self.done[self._key(job)]

    def add(self, job: Job) -> None:
        self.done[self._key(job)] = job
        with self.path.open("a") as file:
            file.write(json.dumps(job) + "\n")


def tune(method: str, at: float, common: Job, trials: int, epochs: int, log: Log) -> dict[str, Any]:
    """The best of `trials` parameters by validation accuracy; the sampler is seeded, so a resumed search repeats."""
    own = {} if method == "dense" else {"final_sparsity": at}
    searcher = OptunaSearcher([load_space(method, at)], at if own else 0.0, seed=0)
    best: Job = {"val": -1.0}
    for number in range(trials):
        asked = searcher.ask()
        params = {**asked.params, **own}
        job = {**common, "stage": "tune", "method": method, "params": params, "epochs": epochs, "seed": number}
        if job not in log:
            log.add(train(job))
        job = log[job]
        best = max(best, job, key=lambda j: j["val"])
        record = TrialRecord(asked.number, method, asked.params, TrialState.COMPLETED)
        record.val_accuracy, record.sparsity = job["val"], job["sparsity"] or 0.0
        searcher.tell(record)
    return dict(best["params"])


def _tune_one(arguments: tuple[str, float, Job, int, int, Path]) -> dict[str, Any]:
    method, at, common, trials, epochs, folder = arguments
    return tune(method, at, common, trials, epochs, Log(folder / f"{common['experiment']}-tune-{method}-{at:g}.jsonl"))


def searches(methods: Iterable[str]) -> list[tuple[str, float]]:
    """(method, sparsity to tune it at): the dense network, which has none, once."""
    return [(method, at) for method in methods for at in (TUNED_FOR if method != "dense" else [0.0])]


def final_jobs(chosen: dict[tuple[str, float], dict[str, Any]], common: Job, epochs: int, seeds: int) -> Iterable[Job]:
    """Every sparsity and seed of every method; the dense network once a seed."""
    for (method, tuned_at), params in chosen.items():
        for sparsity in TUNED_FOR.get(tuned_at, (0.0,)):
            own = {**params, "final_sparsity": sparsity} if method != "dense" else params
            for seed in range(FIRST_SEED, FIRST_SEED + seeds):
                job = {"stage": "final", "method": method, "params": own, "epochs": epochs, "seed": seed}
                yield {**common, **job, "at": sparsity}


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
    parser.add_argument("--tune", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/methods"))
    options = parser.parse_args()
    common = {"experiment": options.experiment, "data_dir": options.data_dir}
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        pairs, half = searches(options.methods), max(1, options.epochs // 2)
        tuned = pool.map(_tune_one, [(*pair, common, options.tune, half, options.out) for pair in pairs])
        chosen = dict(zip(pairs, tuned, strict=True))
        log = Log(options.out / f"{options.experiment}.jsonl")
        jobs = list(final_jobs(chosen, common, options.epochs, options.seeds))
        for done in pool.map(train, [job for job in jobs if job not in log]):
            log.add(done)
            print(f"{done['method']} at {done['at']:g}, seed {done['seed']}: {100 * done['test']:.2f}", flush=True)
    print(table(log[job] for job in jobs))


if __name__ == "__main__":
    main()
