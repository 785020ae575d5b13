"""Compare all methods under equal conditions: the same training options and the same number of tuning trials.

    python -m benchmarks.baselines.fair --experiment fashion-mnist --data-dir DIR [--targets 0.9 0.98] [--seeds 8]

The training options are averaged weights, a held learning rate, and SGD or AdamW. For each method and target sparsity,
the search of `tune-sparsity` tunes the method on validation data, and stops bad trials early. It searches three spaces:
METHOD with PLAIN_TRIALS trials, METHOD+averaged with SGD_TRIALS trials, and METHOD+averaged+adamw with ADAMW_TRIALS
trials. The configuration with the best validation accuracy is then trained on the training and the validation data
together, under `--seeds` new seeds, and each of these networks is tested once. The dense network is tuned and tested in
the same way, once for all targets.

The seeds are the same for all methods, so a Wilcoxon signed-rank test compares lpss with each of the others seed by
seed. Each finished search and training is a line of OUT/EXPERIMENT.jsonl and is not run again.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from scipy.stats import wilcoxon

from benchmarks.methods import FIRST_SEED, _loaded, with_validation
from benchmarks.training.jobs import Job, Jobs
from benchmarks.training.single_process import completed
from tune_sparsity.experiments import Data, Experiment
from tune_sparsity.experiments.base import evaluate
from tune_sparsity.experiments.training import NotFinite, train_whole
from tune_sparsity.tuner.study.goal import at_targets

OURS, DENSE = "lpss", "dense"
METHODS = (OURS, "gmp", "rigl", "set", "sparse-momentum", DENSE)
PLAIN_TRIALS, SGD_TRIALS, ADAMW_TRIALS = 10, 10, 4
EPOCHS = {"digits": 24, "fashion-mnist": 10, "mnist": 10}


def work(data_dir: str, job: Job) -> Job:
    """Run a search or a training in this process."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as the search's workers do
    experiment, data = _loaded(job["experiment"], data_dir)
    return search(experiment, data, job) if job["what"] == "search" else final(experiment, data, job)


def search(experiment: Experiment, data: Data, job: Job) -> Job:
    """Tune a method at a target with one optimizer. Return the best parameters and their validation accuracy."""
    options = {name: job[name] for name in ("method", "space", "trials", "epochs")}
    ended = [
        (trial.metrics["val_accuracy_at_target"], -trial.number, trial.params)
        for trial in completed(experiment, data, goal=at_targets(job["target"]), seed=0, **options)
        if trial.metrics["sparsity"] >= job["target"]
    ]
    value, _, params = max(ended, key=lambda one: one[:2], default=(0.0, 0, {}))
    return {"val": value, "params": params, "completed": len(ended)}


def final(experiment: Experiment, data: Data, job: Job) -> Job:
    """Train a configuration on all images that are not test images. A training that diverges has accuracy 0."""
    options = {"epochs": job["epochs"], "seed": job["seed"], "device": "cpu"}
    try:
        trained = train_whole(experiment, with_validation(data), job["method"], job["params"], **options)
    except NotFinite:
        return {"test": 0.0, "sparsity": None}
    return {"test": evaluate(experiment, trained.model, data.test), "sparsity": trained.sparse.sparsity()}


def cells(methods: list[str], targets: list[float]) -> Iterator[tuple[str, float]]:
    """Yield all pairs of a method and a target. The dense network has only the target 0."""
    for target in targets:
        yield from ((method, target) for method in methods if method != DENSE)
    if DENSE in methods:
        yield DENSE, 0.0


def searches(common: Job, method: str, target: float) -> list[Job]:
    """Return the three searches for a method and a target: without averages, with them, and with AdamW, too."""
    spaces = {"": PLAIN_TRIALS, "+averaged": SGD_TRIALS, "+averaged+adamw": ADAMW_TRIALS}
    own = {**common, "what": "search", "method": method, "target": target}
    return [{**own, "space": method + overlays, "trials": trials} for overlays, trials in spaces.items()]


def finals(common: Job, method: str, target: float, params: Job, seeds: int) -> list[Job]:
    """Return the trainings of a chosen configuration, one for each seed. Their final sparsity is the target."""
    at = {} if method == DENSE else {"final_sparsity": target}
    own = {**common, "what": "final", "method": method, "target": target, "params": {**params, **at}}
    return [{**own, "seed": FIRST_SEED + seed} for seed in range(seeds)]


def row(method: str, values: list[float], ours: list[float] | None) -> str:
    """Return a row of the table: mean, standard deviation and range, and lpss minus this method with Wilcoxon's p."""
    percent = [100 * value for value in values]
    text = f"| {method} | {statistics.mean(percent):.2f} ± {statistics.stdev(percent):.2f} "
    text += f"({min(percent):.2f} to {max(percent):.2f}) |"
    if ours is None:
        return text + " | |"
    less = [100 * (mine - other) for mine, other in zip(ours, values, strict=True)]
    p = wilcoxon(less).pvalue if any(less) else 1.0
    return text + f" {statistics.mean(less):+.2f} | {'< .001' if p < 0.001 else f'{p:.3f}'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", choices=EPOCHS, required=True)
    parser.add_argument("--data-dir", default="../shared/data")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--targets", type=float, nargs="+", default=[0.9, 0.98])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/baselines/done"))
    options = parser.parse_args()
    jobs = Jobs(partial(work, options.data_dir), options.out / f"fair-{options.experiment}.jsonl", options.workers)
    common = {"experiment": options.experiment, "epochs": EPOCHS[options.experiment]}
    test: dict[tuple[str, float], list[float]] = {}
    for method, target in cells(options.methods, options.targets):
        asked = searches(common, method, target)
        best, job = max(zip(jobs.run(asked), asked, strict=True), key=lambda pair: pair[0]["val"])
        done = jobs.run(finals(common, method, target, best["params"], options.seeds))
        test[method, target] = [one["test"] for one in done]
        print(f"{method} at {target:g}, {job['space']}: {best['val']:.4f}, {test[method, target]}", flush=True)
    for target in options.targets:
        print(f"\n| at {target:g} | test accuracy % | lpss minus it | Wilcoxon's p |\n|" + " --- |" * 4)
        ours = test.get((OURS, target))
        for (method, at), values in test.items():
            if at == target or method == DENSE:
                print(row(method, values, None if method == OURS else ours))


if __name__ == "__main__":
    main()
