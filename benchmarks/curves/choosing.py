"""Compare rules by which a study may choose its best trial, and estimates of the chosen trial's accuracy.

    python -m benchmarks.curves.choosing studies [--experiment digits] [--targets 0.9 0.95 0.98] [--seeds 30]
        [--recipes 16] [--epochs 30] [--data-dir ../shared/data] [--out FOLDER]
    python -m benchmarks.curves.choosing table [--draws 5600]
    python -m benchmarks.curves.choosing seeds [--draws 5600]

`studies` runs studies with the search of `tune-sparsity` but without Ray: 24 trials, two at a time. It also trains the
default recipe, which is the first point of the search space at the target, under `--recipes` seeds. For each completed
trial it keeps the loss and the correctness on all images that no trial trained on. Digits has 540 such images, and the
study uses 180 of them for validation. Then these images are split anew at random, 200 times for each study: into as
many validation images as before, and test images. So the result does not depend on the luck of a single split. Early
stopping used the study's own split. A study that is already in FOLDER is not run again.

`table` makes up studies. Their trials are drawn at random from the trainings of `benchmarks.curves.collect` whose
sparsity is near a target, for many targets. `seeds` makes up studies of 12 trials from the configurations that
`collect` trained under three seeds. Such a study may spend some of its 12 trials on two more seeds for each of its most
accurate configurations. It then takes the configuration with the best mean accuracy, and of the three trainings of this
configuration the most accurate one. Both compute standard errors from 40 random subsets, each of seven tenths of the
trainings (`table`) or of the configurations (`seeds`).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.curves.points import INFILL, SPARSITY
from benchmarks.curves.table import Row, Table
from benchmarks.training.single_process import completed
from tune_sparsity.experiments import Data, Experiment, find
from tune_sparsity.experiments.base import outputs_of
from tune_sparsity.experiments.training import Training, train_whole
from tune_sparsity.search_spaces import load_space
from tune_sparsity.tuner.study.estimate import shrunk
from tune_sparsity.tuner.study.goal import Goal, at_targets

Array = np.ndarray[Any, Any]
METHOD, TRIALS, SPLITS = "lpss", 24, 200
VALIDATION = 180  # images of digits


@dataclass(frozen=True)
class Trials:
    """The trials that a study chooses from: arrays with one entry for each trial."""

    accuracy: Array  # on the validation data
    loss: Array  # on the validation data
    sparsity: Array
    test: Array  # accuracy on the test data
    validation: int = VALIDATION  # number of validation images

    def near_best(self) -> Array:
        """Return which trials are at most one standard error less accurate than the most accurate one."""
        top = self.accuracy.max()
        return self.accuracy >= top - math.sqrt(max(top * (1 - top), 0.25 / self.validation) / self.validation) - 1e-9

    def on_front(self) -> Array:
        """Return which trials are on the Pareto front of accuracy and sparsity."""
        pairs = list(zip(self.accuracy, self.sparsity, strict=True))
        worse = [any(a >= b and s >= z and (a, s) != (b, z) for a, s in pairs) for b, z in pairs]
        return ~np.array(worse)

    def first(self, *keys: Array) -> Array:
        """Return the index of the trial with the smallest `keys[0]`, as an array. The later keys break ties."""
        return np.lexsort(keys[::-1])[:1]


NOW = "accuracy, then sparsity (now)"
RULES: dict[str, Callable[[Trials], Array]] = {
    NOW: lambda t: t.first(-t.accuracy, -t.sparsity),
    "accuracy, then loss": lambda t: t.first(-t.accuracy, t.loss),
    "loss within one standard error": lambda t: t.first(~t.near_best(), t.loss),
    "the same, on the front alone": lambda t: t.first(~(t.near_best() & t.on_front()), t.loss),
    "loss": lambda t: t.first(t.loss),
    "any trial": lambda t: np.arange(len(t.test)),
    "best on the test images": lambda t: t.first(-t.test),
}


def by_rule(trials: Trials) -> dict[str, float]:
    """Return the mean test accuracy of the trials that each rule chooses."""
    return {name: float(trials.test[rule(trials)].mean()) for name, rule in RULES.items()}


@dataclass(frozen=True)
class Measured:
    """The results of a study's completed trials that reached the target. They are measured on all images that no trial
    trained on: the validation images, then the test images."""

    correct: Array  # 1 or 0, shape (trials, images)
    loss: Array  # shape (trials, images)
    sparsity: Array  # shape (trials,)
    validation: int = VALIDATION  # number of validation images

    def trials(self, order: Array) -> Trials:
        """Return the trials. The first images in `order` count as validation images, and the others as test images."""
        val, test = order[: self.validation], order[self.validation :]
        means = self.correct[:, val].mean(1), self.loss[:, val].mean(1)
        return Trials(*means, self.sparsity, self.correct[:, test].mean(1), self.validation)


@torch.no_grad()
def _on_images(training: Training, test: Any) -> tuple[Array, Array]:
    """Return the correctness and the loss of a network for each image."""
    correct, losses = list[bool](), list[float]()
    for split in (training.val_split, test):
        for outputs, targets in outputs_of(training.experiment, training.model, split):
            correct += (outputs.argmax(1) == targets).tolist()
            pairs = zip(outputs.split(1), targets.split(1), strict=True)
            losses += [float(training.experiment.loss(*pair)) for pair in pairs]
    return np.array(correct, dtype=float), np.array(losses)


@dataclass(frozen=True)
class Task:
    """An experiment, its data, and the epochs of each training."""

    experiment: Experiment
    data: Data
    epochs: int

    def searched(self, goal: Goal, trials: int, seed: int) -> Measured:
        """Run one study, and measure its completed trials that reached the target."""
        own: dict[str, Any] = {"trials": trials, "seed": seed, "epochs": self.epochs, "method": METHOD}
        found = completed(self.experiment, self.data, goal=goal, **own)
        return self._measured(one.training for one in found if one.training.sparse.sparsity() >= goal.lowest)

    def default(self, sparsities: Sequence[float], seeds: Sequence[int]) -> Measured:
        """Train the default recipe at each of the sparsities, under one seed each, without a search."""
        return self._measured(
            train_whole(self.experiment, self.data, METHOD, first_point(one), epochs=self.epochs, seed=seed)
            for one, seed in zip(sparsities, seeds, strict=True)
        )

    def _measured(self, trainings: Iterable[Training]) -> Measured:
        found = [(*_on_images(one, self.data.test), one.sparse.sparsity()) for one in trainings]
        correct, loss, sparsity = (np.array(part) for part in zip(*found, strict=True))
        return Measured(correct, loss, sparsity, self.data.val.examples)


def first_point(sparsity: float) -> dict[str, Any]:
    """Return the default recipe for a sparsity: the first point of the search space that a study tries."""
    return load_space(METHOD, sparsity).first_for(sparsity)[0]


def kept(path: Path, make: Callable[[], Measured]) -> Measured:
    """Return the content of the file `path`. If it does not exist, write the result of `make` into it first."""
    if not path.exists():
        np.savez_compressed(path, **vars(make()))
    with np.load(path) as file:
        return Measured(**{**file, "validation": int(file.get("validation", VALIDATION))})


def percent(values: Array | list[float], sign: str = "") -> str:
    """Return the mean of the values and its standard error, as a text in percent."""
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    return f"{100 * np.mean(values):{sign}.2f} ± {100 * error:.2f}"


def studies(task: Task, targets: list[float], count: int, recipes: int, out: Path) -> None:
    """Run the subcommand `studies`: print its tables."""
    out.mkdir(parents=True, exist_ok=True)
    alone: dict[float, list[Measured]] = {t: [] for t in targets}
    found: dict[float, list[Measured]] = {t: [] for t in targets}
    for seed in range(recipes):
        for t in targets:
            alone[t].append(kept(out / f"default-{t}-{seed}.npz", partial(task.default, [t], [1000 + seed])))
    for seed in range(count):
        for t in targets:
            run = partial(task.searched, at_targets(t), TRIALS, seed)
            found[t].append(kept(out / f"study-{t}-{seed}.npz", run))
    images = np.arange(found[targets[0]][0].correct.shape[1])
    own = {t: np.array([_figures(one.trials(images)) for one in found[t]]) for t in targets}
    drawn = {t: [_redrawn(one, seed) for seed, one in enumerate(found[t])] for t in targets}
    print("| target | default recipe % | study % | completed trials |\n|" + " --- |" * 4)
    for t in targets:
        alone_test = [float(one.trials(images).test[0]) for one in alone[t]]
        trials = np.mean([len(one.sparsity) for one in found[t]])
        print(f"| {t} | {percent(alone_test)} | {percent(own[t][:, 4])} | {trials:.1f} |")
    print("\n| rule |" + "".join(f" {t} |" for t in targets) + "\n|" + " --- |" * (len(targets) + 1))
    for rule in RULES:
        gains = ([np.mean([by[rule] - by[NOW] for by, _ in one]) for one in drawn[t]] for t in targets)
        print(f"| {rule} | " + " | ".join(percent(np.array(gain), "+") for gain in gains) + " |")
    columns = ("accuracy", "error", "within one se", "estimate", "error", "within one se", "test")
    print(f"\n| target, split | {' | '.join(columns)} |\n|" + " --- |" * 8)
    for t in targets:
        for name, rows in (("own", own[t]), ("redrawn", np.array([row for one in drawn[t] for _, row in one]))):
            accuracy, _, estimated, _, test = (f"{100 * mean:.2f}" for mean in rows.mean(0))
            cells = [accuracy, *_judged(rows, 0, 1), estimated, *_judged(rows, 2, 3), test]
            print(f"| {t}, {name} | {' | '.join(cells)} |")


def _redrawn(measured: Measured, seed: int) -> list[tuple[dict[str, float], list[float]]]:
    """Split the images of a study anew, SPLITS times. Return `by_rule` and `_figures` for each split."""
    rng, images = np.random.default_rng(seed), measured.correct.shape[1]
    splits = (measured.trials(rng.permutation(images)) for _ in range(SPLITS))
    return [(by_rule(trials), _figures(trials)) for trials in splits]


def _figures(trials: Trials) -> list[float]:
    """Return figures of the trial that the rule NOW chooses: its validation accuracy with the standard error, the
    estimate of its accuracy with the standard error, and its test accuracy."""
    place = RULES[NOW](trials)[0]
    value, values = float(trials.accuracy[place]), trials.accuracy.tolist()
    error = shrunk(value, [value], trials.validation).error
    return [value, error, *shrunk(value, values, trials.validation), float(trials.test[place])]


def _judged(rows: Array, value: int, error: int) -> Iterator[str]:
    """Yield the mean error of an estimate, and how often the test accuracy is within one standard error of it."""
    away = rows[:, value] - rows[:, 4]
    yield f"{100 * away.mean():+.2f}"
    yield f"{np.mean(np.abs(away) <= rows[:, error]):.0%}"


def _drawn() -> list[Row]:
    """Return the trainings of the Sobol sequence on digits that did not diverge."""
    return [row for row in Table("digits", METHOD).rows() if row.index < INFILL and row.test is not None]


def table(draws: int) -> None:
    """Run the subcommand `table`: print its table."""
    rows = _drawn()
    columns = [[row.at_target[-1], row.val_loss, row.params[SPARSITY], row.test] for row in rows]
    data, rng = np.array(columns, dtype=float), np.random.default_rng(0)
    print("| trials | rule | below .93 | from .93 on |\n|" + " --- |" * 4)
    for count in (6, 12):
        whole = _gains(data, count, draws, rng)
        parts = [_gains(rng.permutation(data)[: len(data) * 7 // 10], count, draws // 20, rng) for _ in range(40)]
        for rule in RULES:
            spread = math.sqrt(7 / 3) * np.std([part[rule] for part in parts], axis=0)
            cells = (f"{100 * gain:+.2f} ± {100 * se:.2f}" for gain, se in zip(whole[rule], spread, strict=True))
            print(f"| {count} | {rule} | {' | '.join(cells)} |")


def _gains(data: Array, count: int, draws: int, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Return the mean gain of each rule over the rule NOW, at targets below .93 and at targets from .93 on."""
    found: list[list[dict[str, float]]] = [[], []]
    for target in 1 - np.exp(np.linspace(math.log(0.4), math.log(0.02), 14)):
        near = data[(data[:, 2] >= target) & (data[:, 2] < target + 0.2 * (1 - target))]
        if len(near) < count:
            continue
        for _ in range(draws // 14):
            found[int(target >= 0.93)].append(by_rule(Trials(*near[rng.permutation(len(near))[:count]].T)))
    below, above = ({rule: float(np.mean([by[rule] - by[NOW] for by in part])) for rule in RULES} for part in found)
    return {rule: (below[rule], above[rule]) for rule in RULES}


def seeds(draws: int) -> None:
    """Run the subcommand `seeds`: print its table."""
    by_index: dict[int, list[list[float]]] = {}
    for row in _drawn():
        by_index.setdefault(row.index, []).append([row.at_target[-1], row.test, row.params[SPARSITY]])
    data, rng = np.array([some for some in by_index.values() if len(some) == 3]), np.random.default_rng(0)
    print("| sparsities | configurations | 2 confirmed | 3 confirmed |\n|" + " --- |" * 4)
    for low, high in ((0.5, 0.8), (0.8, 0.93), (0.93, 0.98)):
        near = data[(data[:, 0, 2] >= low) & (data[:, 0, 2] < high)]
        whole = _confirmed(near, draws, rng)
        parts = [_confirmed(rng.permutation(near)[: len(near) * 7 // 10], draws // 20, rng) for _ in range(40)]
        spread = math.sqrt(7 / 3) * np.std(parts, axis=0)
        cells = (f"{100 * gain:+.2f} ± {100 * error:.2f}" for gain, error in zip(whole, spread, strict=True))
        print(f"| {low} to {high} | {len(near)} | {' | '.join(cells)} |")


def _confirmed(data: Array, draws: int, rng: np.random.Generator) -> Array:
    """Compare studies that train two or three of their configurations under two more seeds each, with studies that do
    not. All have the same number of trials. Return the mean gains in test accuracy, for two and for three."""
    gains = []
    for _ in range(draws):
        some = rng.permutation(data)[:12][:, rng.permutation(3)]
        plain = some[some[:, 0, 0].argmax(), 0, 1]
        own = []
        for count in (2, 3):
            new = some[: len(some) - 2 * count]
            leading = new[np.argsort(-new[:, 0, 0], kind="stable")[:count]]
            chosen = leading[leading[:, :, 0].mean(1).argmax()]
            own.append(chosen[chosen[:, 0].argmax(), 1] - plain)
        gains.append(own)
    return np.asarray(np.mean(gains, axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("studies", "table", "seeds"))
    parser.add_argument("--targets", type=float, nargs="+", default=[0.9, 0.95, 0.98])
    parser.add_argument("--experiment", default="digits")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--epochs", type=int, help="(default: the experiment's own)")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--recipes", type=int, default=16)
    parser.add_argument("--draws", type=int, default=14 * 400)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/choosing"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as the search's workers do
    if options.what == "table":
        table(options.draws)
    elif options.what == "seeds":
        seeds(options.draws)
    else:
        experiment = find(options.experiment)
        task = Task(experiment, experiment.load(options.data_dir), options.epochs or experiment.recipe.epochs)
        studies(task, options.targets, options.seeds, options.recipes, options.out)


if __name__ == "__main__":
    main()
