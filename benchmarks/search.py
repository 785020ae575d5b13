"""Compare searches: the number of trials until a search is as good as random search with 64 trials, the time of a
proposal, and the effect of early stopping.

    python -m benchmarks.search [--seeds 10] [--first-seed 0] [--only NAME ...] [--out FOLDER]
    python -m benchmarks.search --cost
    python -m benchmarks.search --stopping [--first-seed 10] [--experiment mnist --data-dir DIR --trials 16 --epochs 8]

Without `--cost` and `--stopping`, the benchmark counts trials. Under each seed, random search without priors and first
points trains 64 networks. Each other search then runs until it has a network with at least the best validation accuracy
of these 64, or until it has trained 32 networks. Networks below the target sparsity count as 0. All searches train the
same experiment, one trial after the other, and trial n of a seed has the same training seed in every search. The
benchmark calls `suggest` and `on_trial_complete` of Ray's OptunaSearch itself. This search gets the same ranges without
their conditions. It gets a single score, as its users would write it: the accuracy, minus ten times the amount by which
the sparsity is below the target.

`--cost` prints the milliseconds that the default search needs for a trial.

`--stopping` runs trials of the default search and records the validation accuracy at the target after each epoch. Then
it applies several rules of early stopping to these records, with two trials at a time. For each rule, it prints how
many epochs the rule saves, and how much accuracy of the best trial is lost.

Every finished training is a line of OUT/EXPERIMENT.jsonl and is not run again. You can stop the benchmark at any time
and start it again later. Tables are printed in Markdown.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tune_sparsity.experiments import Data, Experiment, Training, find
from tune_sparsity.experiments.training import NotFinite
from tune_sparsity.search_spaces import Space, load_space
from tune_sparsity.sparsity import METHODS
from tune_sparsity.tuner.search.asha import FIRST_RUNG, REDUCTION, SPACING, Halving, rung_epochs
from tune_sparsity.tuner.search.planner import planner_for
from tune_sparsity.tuner.search.samplers import DEFAULT_SAMPLER, SAMPLERS
from tune_sparsity.tuner.search.searcher import OptunaSearcher
from tune_sparsity.tuner.search.spaces import space_for
from tune_sparsity.tuner.study.goal import along_front, at_targets
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState
from tune_sparsity.tuner.worker.trainable import trial_seed

TARGET = 0.9
RANDOM_TRIALS, TRIALS = 64, 32
Propose = Iterator[tuple[dict[str, Any], Callable[["Trained"], None]]]
"""Parameters to train, and whom to tell what came of them."""


class Trained:
    """A finished training: its accuracy at the target after every epoch, and how it ended."""

    def __init__(self, curve: list[float], accuracy: float, sparsity: float, seconds: float) -> None:
        self.curve, self.accuracy, self.sparsity, self.seconds = curve, accuracy, sparsity, seconds

    @property
    def feasible(self) -> float:
        """Return the accuracy if the target sparsity is reached, and otherwise 0. A training that diverged also has
        0."""
        return self.accuracy if self.sparsity >= TARGET else 0.0


class Trainer:
    """Trains each configuration once per seed. A training that is in the log is not run again, but read from the
    log."""

    def __init__(self, experiment: Experiment, data: Data, epochs: int, path: Path) -> None:
        self.experiment, self.data, self.epochs, self.path = experiment, data, epochs, path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.done = {line["key"]: Trained(**line["trained"]) for line in map(json.loads, lines)}

    def train(self, params: dict[str, Any], seed: int) -> Trained:
        # The key contains the settings, because two spaces may have different names for the same setting.
        key = f"{METHODS['lpss'].configure(params)} {self.epochs} {seed}"
        if key not in self.done:
            self.done[key] = self._train(params, seed)
            with self.path.open("a") as file:
                file.write(json.dumps({"key": key, "trained": vars(self.done[key])}) + "\n")
        return self.done[key]

    def _train(self, params: dict[str, Any], seed: int) -> Trained:
        start, curve = time.process_time(), []
        training = Training(
            self.experiment, self.data.train, self.data.val, "lpss", params, epochs=self.epochs, seed=seed
        )
        accuracy = sparsity = 0.0
        try:
            while not training.finished:
                measured = training.epoch()
                curve.append(measured["val_accuracy_at_target"])
            accuracy, sparsity = measured["val_accuracy"], measured["sparsity"]
        except NotFinite:
            pass
        return Trained(curve, accuracy, sparsity, time.process_time() - start)


# The searches


def ours(seed: int, space: Space, **options: Any) -> Propose:
    """Our searcher, as a study with `--concurrency 1` drives it."""
    searcher = OptunaSearcher([space], TARGET, seed=seed, **options)
    while True:
        asked = searcher.ask()

        def tell(trained: Trained, number: int = asked.number, params: dict[str, Any] = asked.params) -> None:
            state = TrialState.COMPLETED if trained.sparsity > 0 else TrialState.FAILED
            searcher.tell(TrialRecord(number, "lpss", params, state, trained.accuracy, trained.sparsity))

        yield asked.params, tell


def rays(seed: int, space: Space, *, points: bool) -> Propose:
    """Yield the proposals of Ray's OptunaSearch. It gets the ranges without their conditions, and a single score."""
    from ray.tune.search.optuna import OptunaSearch

    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    first = [{**space.centre(), **point} for point in space.first] if points else None
    search = OptunaSearch(dict(space.distributions), metric="score", mode="max", points_to_evaluate=first, seed=seed)
    for number in range(1_000_000):
        params = search.suggest(str(number))

        def tell(trained: Trained, number: int = number) -> None:
            score = trained.accuracy - 10 * max(0.0, TARGET - trained.sparsity)
            search.on_trial_complete(str(number), {"score": score})

        yield {**space.fixed, **params}, tell


def without_priors(space: Space) -> Space:
    return replace(space, first=(), near=(), priors={})


def searches() -> dict[str, Callable[[int, Space], Propose]]:
    """Return a dict from the names of the table's rows to the searches."""
    samplers = {name: _with(sampler=name) for name in SAMPLERS if name != "random"}
    return {
        DEFAULT_SAMPLER: samplers.pop(DEFAULT_SAMPLER),
        "Ray's OptunaSearch": lambda seed, space: rays(seed, space, points=False),
        "Ray's OptunaSearch, our first points": lambda seed, space: rays(seed, space, points=True),
        f"{DEFAULT_SAMPLER}, no priors or first points": lambda seed, space: ours(seed, without_priors(space)),
        **samplers,
    }


def _with(**options: Any) -> Callable[[int, Space], Propose]:
    return lambda seed, space: ours(seed, space, **options)


def run(trainer: Trainer, propose: Propose, seed: int, trials: int, until: float = 2.0) -> list[Trained]:
    """Return the trainings of a search. The search ends after `trials` trainings, or earlier with the first training
    whose `feasible` accuracy is at least `until`."""
    done: list[Trained] = []
    for number, (params, tell) in zip(range(trials), propose, strict=False):
        trained = trainer.train(params, trial_seed(seed, number))
        tell(trained)
        done.append(trained)
        if trained.feasible >= until:
            break
    return done


def reach(trainer: Trainer, seeds: range, only: list[str]) -> None:
    """Print how many trials each search needs, in a table with a row for each search. Print the table anew after each
    seed."""
    space, names = load_space("lpss", TARGET), only or list(searches())
    needed: dict[str, list[float]] = {name: [] for name in names}
    goals: list[float] = []
    for seed in seeds:
        baseline = run(trainer, ours(seed, without_priors(space), sampler="random"), seed, RANDOM_TRIALS)
        goals.append(max(trained.feasible for trained in baseline))
        for name in names:
            found = run(trainer, searches()[name](seed, space), seed, TRIALS, until=goals[-1])
            reached = found[-1].feasible >= goals[-1]
            needed[name].append(len(found) if reached else float("inf"))
        print(f"\nAfter {len(goals)} seeds; random search's best of {RANDOM_TRIALS}: {_range(goals)}\n")
        print("| search | median trials to reach it | of each seed |\n| --- | --- | --- |")
        for name, counts in needed.items():
            each = ", ".join("more" if count > TRIALS else str(count) for count in counts)
            median = statistics.median(counts)
            print(
                f"| {name} | {'more than ' + str(TRIALS) if median > TRIALS else f'{median:g}'} | {each} |", flush=True
            )


def _range(values: list[float]) -> str:
    return f"{100 * min(values):.2f} to {100 * max(values):.2f} %, mean {100 * statistics.mean(values):.2f}"


# Early stopping


class Rule(NamedTuple):
    """A rule of early stopping.

    Attributes:
        first: the first rung, as a share of all epochs.
        spacing: the factor from each rung to the next.
        reduction: the factor by which a rung reduces the number of trials.
    """

    first: float = FIRST_RUNG
    spacing: float = SPACING
    reduction: float = REDUCTION

    def __str__(self) -> str:
        return f"first rung {self.first:.2g}, spacing {self.spacing:g}, reduction {self.reduction:g}"

    def halving(self, epochs: int, target: float) -> Halving:
        """Return an early stopping by this rule, for trials with this number of epochs."""
        return Halving(rung_epochs(epochs, self.first, self.spacing), target=target, reduction=self.reduction)


# The first rule is the default of the search.
RULES = tuple(Rule(*one) for one in ((), (1 / 5, 3, 3), (1 / 5, 3, 4), (1 / 6, 3, 3), (1 / 6, 2, 3), (1 / 8, 2, 2)))


def stopping(trainer: Trainer, seeds: range, trials: int) -> None:
    """Print what each rule of early stopping saves of the default search's epochs, and what it costs in accuracy."""
    space, epochs = load_space("lpss", TARGET), trainer.epochs
    searched = [run(trainer, ours(seed, space), seed, trials) for seed in seeds]
    print("| rule | epochs saved, mean | range | points of the best lost, mean | of each seed |\n|" + " --- |" * 5)
    for rule in RULES:
        saved, lost = [], []
        for done in searched:
            finished, trained_epochs = replay(done, epochs, rule)
            best, with_it = (max((one.feasible for one in some), default=0.0) for some in (done, finished))
            saved.append(1 - trained_epochs / sum(len(trained.curve) for trained in done))
            lost.append(100 * (best - with_it))
        each = ", ".join(f"{points:.2f}" for points in lost)
        spread = f"{min(saved):.2f} to {max(saved):.2f}"
        print(f"| {rule} | {statistics.mean(saved):.3f} | {spread} | {statistics.mean(lost):.2f} | {each} |")


def replay(trials: list[Trained], epochs: int, rule: Rule, slots: int = 2) -> tuple[list[Trained], int]:
    """Apply a rule to recorded trials, `slots` trials at a time. Return the trials that the rule would not have
    stopped, and the number of epochs that all trials would have trained."""
    halving = rule.halving(epochs, TARGET)
    waiting = iter(enumerate(trials))
    running = [(number, trained, 0) for number, trained in islice(waiting, slots)]
    finished, spent = [], 0
    while running:
        number, trained, epoch = running.pop(0)
        if epoch >= len(trained.curve):  # the training has ended or diverged
            if len(trained.curve) == epochs:
                finished.append(trained)
            else:
                halving.forget(number)
        else:
            spent += 1
            if halving.goes_on(number, "lpss", epoch + 1, (trained.curve[epoch], trained.sparsity or TARGET)):
                running.append((number, trained, epoch + 1))
                continue
        if (following := next(waiting, None)) is not None:
            running.append((*following, 0))
    return finished, spent


# The cost of a proposal


def cost(trials: int = 1000) -> None:
    """Print how many milliseconds `ask` and `tell` need for a trial. The trials are simulated, and a third of them are
    stopped early. The search records two objectives and the constraint on disk. Times are processor times, because the
    machine also does other work."""
    import tempfile

    print(f"| sampler | goal | ms a trial, mean of {trials} | last 100 |\n| --- | --- | --- | --- |")
    for goal in (at_targets(TARGET), along_front(TARGET, 0.92)):
        with tempfile.TemporaryDirectory() as folder:
            journal = Path(folder) / "optuna.journal"
            space = space_for("lpss", goal)
            searcher = OptunaSearcher([space], TARGET, planner=planner_for([space], goal, trials), journal=journal)
            seconds = _seconds(searcher.ask, searcher.tell, trials)
        print(f"| {DEFAULT_SAMPLER} | {goal} | {_ms(seconds)} | {_ms(seconds[-100:])} |", flush=True)


def _seconds(ask: Callable[[], Any], tell: Callable[[TrialRecord], None], trials: int) -> list[float]:
    rng, seconds = np.random.default_rng(0), []
    for number in range(trials):
        start = time.process_time()
        asked = ask()
        seconds.append(time.process_time() - start)
        params = asked.params
        away = abs(params["p"] - 1.5) + abs(np.log(params["lr"] / 0.05)) / 5 + abs(params["momentum"] - 0.9)
        state = TrialState.COMPLETED if number % 3 else TrialState.PRUNED
        record = TrialRecord(asked.number, asked.method, params, state)
        record.value = float(np.exp(-away) * (1 - params["final_sparsity"]) ** 0.02 + 0.005 * rng.normal())
        record.sparsity = params["final_sparsity"] - (0.05 if params["threshold.end"] > 0.85 else 0.0)
        start = time.process_time()
        tell(record)
        seconds[-1] += time.process_time() - start
    return seconds


def _ms(seconds: list[float]) -> str:
    return f"{1000 * statistics.mean(seconds):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--stopping", action="store_true")
    parser.add_argument("--experiment", choices=["digits", "mnist"], default="digits")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0, help="so that several runs share the work")
    parser.add_argument("--only", nargs="+", choices=list(searches()), default=[])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/search"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.cost:
        cost()
        return
    experiment = find(options.experiment)
    epochs = options.epochs or experiment.recipe.epochs
    data = experiment.load(options.data_dir)
    trainer = Trainer(experiment, data, epochs, options.out / f"{options.experiment}.jsonl")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    if options.stopping:
        stopping(trainer, seeds, options.trials)
    else:
        reach(trainer, seeds, options.only)


if __name__ == "__main__":
    main()
