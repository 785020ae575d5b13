"""Compare the studies of a front or of several targets with simple alternatives in the same number of epochs.

    python -m benchmarks.front digits [--seeds 5] [--samplers tpe gp ...] [--trials 10 40 100]
    python -m benchmarks.front mnist fashion-mnist --data-dir DIR [--seeds 3]
    python -m benchmarks.front targets ways [--seeds 5]

A study runs as the command that a user would type, in a folder of its own. `digits` compares a study of a front with
grids. A grid takes one of the first two points of lpss's space, and trains it at many sparsities. These have equal
distances in the logarithm of the density; with 10 trials, another grid has sparsities at equal distances. A grid has as
many trainings as fit into the epochs that the study trained. `mnist` and `fashion-mnist` use only one grid, with the
first point, and also a random search without early stopping that has as many trials as this grid. All are compared by
their mean accuracy over the front. At each sparsity of the range, the best validation accuracy at this sparsity or a
higher one is taken. The mean of these values is the hypervolume divided by the length of the range.

`targets` compares a study of four targets and 40 trials with four studies of 10 trials, one for each target.

`ways` compares options on digits with simple alternatives in the same number of trials: early stopping with no early
stopping, three methods in one study with a study for each method, a second study that has `--warm-start` with one
longer study, `--max-nonzero` with the sparsity that leaves the same number of weights, and `--time-budget` with a study
of as many trials as began within this time.

Every finished study and every finished training of a grid is kept below OUT and is not run again: the benchmark can be
stopped at any time. Tables are printed in Markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.studies import spread
from tune_sparsity.experiments import Training, find
from tune_sparsity.search_spaces import load_space
from tune_sparsity.tuner.search.samplers import SAMPLERS
from tune_sparsity.tuner.study.goal import Goal, along_front
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState
from tune_sparsity.tuner.worker.trainable import trial_seed

FRONT = along_front(0.5, 0.99)
TARGETS = (0.8, 0.9, 0.95, 0.98)
POINTS = {"near .7": 0, "near .95": 1}
"""The first points of lpss's space that grids are made of. The second one has the centres of the priors."""
EVEN_LOG = "log density"
FRONTS = [name for name, kind in SAMPLERS.items() if kind.front]
ONE_IN_TEN = 5020
"""A tenth of the weights of the digits network that may be pruned."""
SHORT = {"mnist": (24, 8), "fashion-mnist": (24, 8)}
"""Trials and epochs of the studies on larger data."""


def even_in_log(front: Goal, count: int) -> np.ndarray:
    """Return `count` sparsities over a front, from its lowest to its highest, with equal steps in log(1 - sparsity)."""
    return 1 - np.geomspace(1 - front.lowest, 1 - front.highest, count)


class Bench:
    """Runs studies and trainings, each once: what has been run before is read from its file."""

    def __init__(self, out: Path, data_dir: Path | None) -> None:
        self.out, self.data_dir = out.absolute(), data_dir and data_dir.absolute()
        self.out.mkdir(parents=True, exist_ok=True)
        self._grids: dict[str, dict[str, Any]] = {}  # the trainings of an experiment's grids, by their keys

    def study(self, name: str, *options: str) -> dict[str, Any]:
        """Run the command with these options, unless its result is there already. Return the result. Its key `epochs`
        has the sum of the trained epochs of all trials."""
        folder = self.out / name
        if not (folder / "result.json").exists():
            data = [] if self.data_dir is None else ["--data-dir", str(self.data_dir)]
            places = ["--storage", str(self.out), "--study", name, "--tracking-uri", f"sqlite:///{self.out}/mlflow.db"]
            command = [sys.executable, "-m", "tune_sparsity", *options, *places, *data, "--json"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
        rows = (folder / "epochs.csv").read_text().splitlines()[1:]
        return {**result, "epochs": len(rows)}

    def grid(self, experiment: str, seed: int, count: int, epochs: int, point: int, even: str) -> float:
        """Train one of the first points of lpss's space at `count` sparsities. Return the mean accuracy over the front
        of these networks."""
        low, high = FRONT.lowest, FRONT.highest
        sparsities = np.linspace(low, high, count) if even == "sparsity" else even_in_log(FRONT, count)
        records = []
        for number, sparsity in enumerate(np.clip(sparsities, low, high).tolist()):
            accuracy, measured = self.trained(experiment, seed, number, epochs, point, sparsity)
            records.append(TrialRecord(number, "lpss", {}, TrialState.COMPLETED, accuracy, measured))
        return FRONT.mean_value(FRONT.hypervolume(records))

    def trained(
        self, experiment: str, seed: int, number: int, epochs: int, point: int, sparsity: float
    ) -> tuple[float, float]:
        """Train one of the first points at a sparsity. Return the validation accuracy and the sparsity after the last
        epoch."""
        path = self.out / f"grid-{experiment}.jsonl"
        key = f"{seed} {number} {epochs} {point} {sparsity!r}"
        if experiment not in self._grids:
            lines = path.read_text().splitlines() if path.exists() else []
            self._grids[experiment] = {line["key"]: line for line in map(json.loads, lines)}
        done = self._grids[experiment]
        if key not in done:
            done[key] = {"key": key, **_train(experiment, self.data_dir, seed, number, epochs, point, sparsity)}
            with path.open("a") as file:
                file.write(json.dumps(done[key]) + "\n")
        return done[key]["accuracy"], done[key]["sparsity"]


def _train(
    name: str, data_dir: Path | None, seed: int, number: int, epochs: int, point: int, sparsity: float
) -> dict[str, float]:
    experiment, data = _loaded(name, data_dir)
    space = load_space("lpss", sparsity)
    params = {**space.centre(), **space.first[point], "final_sparsity": sparsity}
    params = {key: value for key, value in params.items() if space.applies(key, params)}
    params |= space.fixed_for(params)
    training = Training(experiment, data.train, data.val, "lpss", params, epochs=epochs, seed=trial_seed(seed, number))
    while not training.finished:
        measured = training.epoch()
    return {"accuracy": measured["val_accuracy"], "sparsity": measured["sparsity"]}


@cache
def _loaded(name: str, data_dir: Path | None) -> Any:
    experiment = find(name)
    return experiment, experiment.load(data_dir)


def mean_accuracy(result: dict[str, Any]) -> float:
    return float(result["front"]["mean_accuracy"])


def digits(bench: Bench, seeds: range, samplers: list[str], counts: list[int]) -> None:
    """Print the mean accuracy of the front on digits, for each sampler and number of trials. Beside it, print the mean
    accuracy of grids that train about as many epochs as the study."""
    epochs = find("digits").recipe.epochs
    grids = [(name, even) for name in POINTS for even in (EVEN_LOG, "sparsity")]
    print(f"| sampler | trials | trainings' worth | mean accuracy % | {' | '.join(f'{n}, {e}' for n, e in grids)} |")
    print("| --- | --- | --- | --- |" + " --- |" * len(grids))
    for sampler in samplers:
        for count in counts:
            results = [
                bench.study(
                    f"digits-{sampler}-{count}-seed{seed}",
                    *("--front", FRONT.option, "--sampler", sampler, "--trials", str(count), "--seed", str(seed)),
                )
                for seed in seeds
            ]
            worth = [max(2, round(result["epochs"] / epochs)) for result in results]
            beside = [
                spread(
                    [
                        bench.grid("digits", seed, n, epochs, POINTS[name], even)
                        for seed, n in zip(seeds, worth, strict=True)
                    ]
                )
                if even == EVEN_LOG or count == 10
                else ""
                for name, even in grids
            ]
            found = spread([mean_accuracy(result) for result in results])
            print(
                f"| {sampler} | {count} | {statistics.mean(worth):.0f} | {found} | {' | '.join(beside)} |", flush=True
            )


def larger(bench: Bench, name: str, seeds: range) -> None:
    """Print the mean accuracy of the front on larger data, and that of a grid and of random search. The grid and random
    search stop no trial early, and train about as many epochs as the study of the front."""
    trials, epochs = SHORT[name]
    common = ("--front", FRONT.option, "--experiment", name, "--epochs", str(epochs))
    rows: dict[str, list[float]] = {"--front": [], "grid, near .7": [], "random": []}
    worth = []
    for seed in seeds:
        options = (*common, "--seed", str(seed))
        result = bench.study(f"{name}-seed{seed}", *options, "--trials", str(trials))
        count = max(2, round(result["epochs"] / epochs))
        worth.append(count)
        rows["--front"].append(mean_accuracy(result))
        rows["grid, near .7"].append(bench.grid(name, seed, count, epochs, POINTS["near .7"], EVEN_LOG))
        plain = ("--trials", str(count), "--sampler", "random", "--scheduler", "none")
        rows["random"].append(mean_accuracy(bench.study(f"{name}-random-seed{seed}", *options, *plain)))
    print(f"\n{name}, {trials} trials of {epochs} epochs, worth {worth} trainings\n")
    print("| search | mean accuracy over the front % |\n| --- | --- |")
    for label, values in rows.items():
        print(f"| {label} | {spread(values)} |", flush=True)


def targets(bench: Bench, seeds: range) -> None:
    """Four targets in one study of 40 trials, and each in a study of its own of 10 trials."""
    together: dict[float, list[float]] = {target: [] for target in TARGETS}
    alone: dict[float, list[float]] = {target: [] for target in TARGETS}
    for seed in seeds:
        options = ("--seed", str(seed))
        joint = bench.study(f"targets-seed{seed}", "--target", ",".join(map(str, TARGETS)), "--trials", "40", *options)
        for one in joint["targets"]:
            together[one["target"]].append(one["best"]["val_accuracy"] if one["best"] else 0.0)
        for target in TARGETS:
            own = bench.study(f"alone-{target}-seed{seed}", "--target", str(target), "--trials", "10", *options)
            alone[target].append(own["best"]["val_accuracy"])
    print("| target | four targets, 40 trials % | alone, 10 trials % |\n| --- | --- | --- |")
    for target in TARGETS:
        print(f"| {target} | {spread(together[target])} | {spread(alone[target])} |", flush=True)


def ways(bench: Bench, seeds: range) -> None:
    """Print the validation accuracy and the epochs of several kinds of studies, and of simple alternatives to them."""

    def found(name: str, *options: str) -> tuple[str, float]:
        results = [bench.study(f"{name}-seed{seed}", *options, "--seed", str(seed)) for seed in seeds]
        best = [mean_accuracy(one) if "front" in one else one["best"]["val_accuracy"] for one in results]
        return spread(best), statistics.mean(result["epochs"] for result in results)

    front, target = ("--front", FRONT.option, "--trials", "40"), ("--target", "0.9")
    rows = {
        "--front, 40 trials": found("digits-tpe-40", *front),
        "--front, 40 trials, --scheduler none": found("front-none", *front, "--scheduler", "none"),
        "--target 0.9 --method lpss,rigl,gmp, 30 trials": found(
            "methods", *target, "--method", "lpss,rigl,gmp", "--trials", "30"
        ),
        **{
            f"--target 0.9 --method {method}, 10 trials": found(
                f"method-{method}", *target, "--method", method, "--trials", "10"
            )
            for method in ("lpss", "rigl", "gmp")
        },
        "--target 0.9, 20 trials": found("cold", *target, "--trials", "20"),
        "--target 0.9, 32 trials": found("default", *target),
        "--target 0.9, 32 trials, --patience 10": found("patience", *target, "--patience", "10"),
        "--target 0.9, 32 trials, --scheduler none": found("target-none", *target, "--scheduler", "none"),
        f"--max-nonzero {ONE_IN_TEN}, 32 trials": found("max-nonzero", "--max-nonzero", str(ONE_IN_TEN)),
        **_time_budget(bench, seeds, *target),
    }
    warm = [
        bench.study(
            f"warm-seed{seed}",
            *(*target, "--trials", "10", "--seed", str(seed + 1000), "--warm-start", f"method-lpss-seed{seed}"),
        )
        for seed in seeds
    ]
    first = [bench.study(f"method-lpss-seed{seed}") for seed in seeds]
    together = [max(a["best"]["val_accuracy"], b["best"]["val_accuracy"]) for a, b in zip(warm, first, strict=True)]
    epochs = statistics.mean(a["epochs"] + b["epochs"] for a, b in zip(warm, first, strict=True))
    rows["--target 0.9, 10 trials and 10 more by --warm-start"] = spread(together), epochs
    print("| way | validation accuracy % | epochs |\n| --- | --- | --- |")
    for name, (accuracy, trained) in rows.items():
        print(f"| {name} | {accuracy} | {trained:.0f} |", flush=True)


def _time_budget(bench: Bench, seeds: range, *target: str) -> dict[str, tuple[str, float]]:
    """Return the rows of a study with a time budget, and of a study with as many trials as the first study began."""
    options = (*target, "--trials", "1000", "--time-budget", "15s")
    ended = [bench.study(f"budget-seed{seed}", *options, "--seed", str(seed)) for seed in seeds]
    counts = [sum(one["states"].values()) for one in ended]
    same = [
        bench.study(f"budget-trials-seed{seed}", *target, "--trials", str(count), "--seed", str(seed))
        for seed, count in zip(seeds, counts, strict=True)
    ]
    named = {"--target 0.9, --time-budget 15s": ended, f"--target 0.9, {min(counts)} to {max(counts)} trials": same}
    return {
        name: (spread([one["best"]["val_accuracy"] for one in found]), statistics.mean(one["epochs"] for one in found))
        for name, found in named.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["digits", "targets", "ways", *SHORT])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samplers", nargs="+", choices=FRONTS, default=FRONTS)
    parser.add_argument("--trials", nargs="+", type=int, default=[10, 40, 100])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/front"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    bench, seeds = Bench(options.out, options.data_dir), range(options.seeds)
    for what in options.what:
        if what == "digits":
            digits(bench, seeds, options.samplers, options.trials)
        elif what == "targets":
            targets(bench, seeds)
        elif what == "ways":
            ways(bench, seeds)
        else:
            larger(bench, what, seeds)


if __name__ == "__main__":
    main()
