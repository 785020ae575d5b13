"""Run whole studies on the surrogate, in seconds, on a simulated clock.

    python -m benchmarks.curves.simulate --experiment digits [--target 0.9] [--trials 64] [--seeds 20] [--only NAME ...]

A study here is the command's own: its searcher, its early stopping and its records, without Ray and files. Two trials
train at a time. Each simulated epoch takes as long as the table's trainings on one thread. After each trial, the study
names its best trial by the noisy validation accuracy that it has seen. Its regret is the surrogate's highest expected
accuracy at the target, minus the expected accuracy of the named trial. Expected accuracies are free of noise, so a
search cannot look better by luck.

`Ray` is Ray's OptunaSearch with its AsyncHyperBandScheduler, both called directly: the same ranges, one score, and the
scheduler's own defaults for the rungs, with the epochs of a trial as the longest.
"""

from __future__ import annotations

import argparse
import heapq
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.curves.points import SPARSITY, point
from benchmarks.curves.surrogate import Surrogate
from benchmarks.curves.table import Table
from benchmarks.driver import reported
from benchmarks.search import RULES, Rule, without_priors
from tune_sparsity.search_spaces import Space, load_space
from tune_sparsity.tuner.config.study_config import make_config
from tune_sparsity.tuner.driver.study_run import StudyRun
from tune_sparsity.tuner.search.asha import halving_for
from tune_sparsity.tuner.search.samplers import DEFAULT_SAMPLER, SAMPLERS
from tune_sparsity.tuner.search.searcher import OptunaSearcher
from tune_sparsity.tuner.study.goal import at_targets
from tune_sparsity.tuner.study.trial import Epoch

UNIMPORTANT = ("momentum", "threshold_interval")  # according to benchmarks.curves.importance
SLOTS, METHOD, TRIED, REFINED = 2, "lpss", 1 << 12, 6
NEAR = 0.001  # "within .1 points"


@dataclass(frozen=True)
class Ended:
    """A study after one more of its trials has ended.

    Attributes:
        regret: the best expected accuracy minus that of the trial that the study would name now.
        epochs: all that have been trained.
        seconds: simulated, since the study's start.
    """

    regret: float
    epochs: int
    seconds: float


@lru_cache
def surrogate_of(experiment: str) -> Surrogate:
    return Surrogate(METHOD, Table(experiment, METHOD).rows())


@lru_cache
def best_configuration(experiment: str, target: float) -> dict[str, Any]:
    """Return the configuration with the surrogate's highest expected accuracy at the target's sparsity.

    Sobol points are tried first. Then, several times, parameters are exchanged among the best hundredth.
    """
    surrogate, rng = surrogate_of(experiment), np.random.default_rng(0)
    tried = [{**point(METHOD, index), SPARSITY: target} for index in range(TRIED)]
    tried += [{**load_space(METHOD, target).centre(), SPARSITY: target, "drop": "ramp"}]
    best: tuple[float, dict[str, Any]] = 0.0, {}
    for _ in range(REFINED):
        values = surrogate.means(tried)[:, -1]
        leading = [tried[place] for place in np.argsort(-values)[: len(tried) // 100]]
        best = max(best, (float(values.max()), leading[0]), key=lambda one: one[0])
        tried = [_mixed(*(leading[k] for k in rng.integers(len(leading), size=2)), rng) for _ in range(TRIED)]
    return best[1]


def highest(experiment: str, target: float) -> float:
    """Return the surrogate's highest expected accuracy at the target's sparsity."""
    return float(surrogate_of(experiment).means([best_configuration(experiment, target)])[0, -1])


def _mixed(one: dict[str, Any], other: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Return the first configuration with about half of the values that the second has for the same parameters. Which
    parameters apply stays as it is."""
    deciding = ("drop", "feedback")
    return {
        name: other[name] if name in other and name not in deciding and rng.random() < 0.5 else value
        for name, value in one.items()
    }


class Simulated:
    """A trial whose epochs come from the surrogate."""

    def __init__(self, surrogate: Surrogate, number: int, params: dict[str, Any], rng: np.random.Generator) -> None:
        self.number, self.params, self.epoch = number, params, 0
        self.expected = float(surrogate.means([params])[0, -1])
        self.curve, self.seconds = surrogate.curve(params, rng), surrogate.epoch_seconds

    @property
    def finished(self) -> bool:
        return self.epoch == len(self.curve)

    def train(self) -> Epoch:
        """Return the measures of one more epoch. Zeros are there from the last epoch on."""
        self.epoch += 1
        value, sparsity = self.curve[self.epoch - 1], self.params[SPARSITY]
        return Epoch(
            self.epoch,
            {
                "train_loss": 1 - value,
                "val_accuracy": value,
                "val_accuracy_at_target": value,
                "sparsity": sparsity if self.finished else 0.0,
                "sparsity_total": sparsity,
                "hoyer": 0.5,
                "nonzero_weights": 1 - sparsity,
                "epoch_seconds": self.seconds,
            },
        )


class Ours:
    """This project's search of one target."""

    def __init__(
        self,
        target: float,
        trials: int,
        seed: int,
        epochs: int,
        folder: Path,
        *,
        change: Callable[[Space], Space] = lambda space: space,
        scheduler: str = "asha",
        rule: Rule | None = None,
        **options: Any,
    ) -> None:
        self.now, goal, space = 0.0, at_targets(target), change(load_space(METHOD, target))
        config = make_config({"target": target, "trials": trials, "storage": folder, "study": "simulated"}).resolved()
        self._study = StudyRun(
            config,
            goal,
            OptunaSearcher([space], target, seed=seed, **options),
            halving=rule.halving(epochs, target) if rule else halving_for(scheduler, goal, epochs),
            clock=lambda: self.now,
        )

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        asked = self._study.ask()
        return None if asked is None else (asked.number, asked.params)

    def goes_on(self, trial: Simulated, epoch: Epoch) -> bool:
        """Record an epoch. Return whether the trial goes on."""
        return reported(self._study, trial.number, epoch, trial.params[SPARSITY], last=trial.finished)


class Rays:
    """Ray's OptunaSearch and its AsyncHyperBandScheduler, called directly."""

    def __init__(self, target: float, trials: int, seed: int, epochs: int, folder: Path) -> None:
        from ray.tune.schedulers import AsyncHyperBandScheduler
        from ray.tune.search.optuna import OptunaSearch

        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        self.now, self._left, self._space = 0.0, trials, load_space(METHOD, target)
        self._search = OptunaSearch(dict(self._space.distributions), metric="score", mode="max", seed=seed)
        self._asha = AsyncHyperBandScheduler(metric="score", mode="max", max_t=epochs)

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        if not self._left:
            return None
        self._left -= 1
        params = self._search.suggest(str(self._left))
        self._asha.on_trial_add(None, self._trial(self._left))  # type: ignore[arg-type]
        values: dict[str, Any] = {}
        for name in self._space.distributions:  # without those that do not apply
            if self._space.applies(name, values):
                values[name] = params[name]  # type: ignore[index]
        return self._left, values

    def goes_on(self, trial: Simulated, epoch: Epoch) -> bool:
        """Report an epoch. Return whether the trial goes on."""
        result = {"score": trial.curve[epoch.number - 1], "training_iteration": epoch.number}
        about: Any = (None, self._trial(trial.number), result)
        if not trial.finished and self._asha.on_trial_result(*about) == "CONTINUE":
            return True
        self._asha.on_trial_complete(*about)
        self._search.on_trial_complete(str(trial.number), result)
        return False

    def _trial(self, number: int) -> Any:
        return SimpleNamespace(trial_id=str(number), status="RUNNING")


Search = Callable[..., Any]


def searches() -> dict[str, Search]:
    """Return the searches by the names of the table's rows."""

    def with_options(**options: Any) -> Search:
        return lambda *about: Ours(*about, **options)

    return {
        "default": with_options(),
        "Ray": Rays,
        "no early stopping": with_options(scheduler="none"),
        **{str(rule): with_options(rule=rule) for rule in RULES[1:]},
        "no priors, no first points": with_options(change=without_priors),
        "ramp alone": with_options(change=partial(with_fixed, drop="ramp")),
        "what matters alone": with_options(change=partial(with_fixed, names=UNIMPORTANT, drop="ramp")),
        **{name: with_options(sampler=name) for name in SAMPLERS if name != DEFAULT_SAMPLER},
    }


def with_fixed(space: Space, names: Collection[str] = (), **values: Any) -> Space:
    """Return a space in which parameters are not searched, without the first points that differ.

    Args:
        space: the space.
        names: the parameters that are fixed at the centres of their priors.
        values: the values of other parameters that are fixed.
    """
    centre = space.centre()
    fixed = {**{name: centre[name] for name in names}, **values}
    searched = {
        name: distribution
        for name, distribution in space.distributions.items()
        if name not in fixed and space.applies(name, {**centre, **fixed})
    }
    agreeing = [
        place
        for place, one in enumerate(space.first)
        if fixed.items() >= {n: one[n] for n in fixed if n in one}.items()
    ]
    return replace(
        space,
        distributions=searched,
        fixed={**space.fixed, **fixed},
        first=tuple({n: value for n, value in space.first[place].items() if n in searched} for place in agreeing),
        near=tuple(space.near[place] for place in agreeing),
        priors={name: prior for name, prior in space.priors.items() if name in searched},
        when={name: when for name, when in space.when.items() if name in searched},
    )


def course(experiment: str, target: float, trials: int, seed: int, make: Search) -> list[Ended]:
    """Return a study after each of its trials."""
    surrogate, rng, top = surrogate_of(experiment), np.random.default_rng([seed, 1]), highest(experiment, target)
    running: list[tuple[float, int, Simulated]] = []
    found, epochs, named = list[Ended](), 0, (-1.0, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        study = make(target, trials, seed, surrogate.epochs, Path(folder))
        while True:
            while len(running) < SLOTS and (asked := study.ask()) is not None:
                trial = Simulated(surrogate, *asked, rng)
                heapq.heappush(running, (study.now + trial.seconds, trial.number, trial))
            if not running:
                return found
            study.now, _, trial = heapq.heappop(running)
            epochs += 1
            epoch = trial.train()
            if study.goes_on(trial, epoch):
                heapq.heappush(running, (study.now + trial.seconds, trial.number, trial))
                continue
            if trial.finished and trial.params[SPARSITY] >= target:
                named = max(named, (trial.curve[-1], trial.expected))
            found.append(Ended(top - named[1], epochs, study.now))


def _row(name: str, courses: list[list[Ended]], whole: int) -> Iterator[str]:
    """Yield the cells of a search's row."""
    yield name
    near = [next((k for k, one in enumerate(some, 1) if one.regret <= NEAR), float("inf")) for some in courses]
    yield f"{statistics.median(near):g}"
    for trials in (8, 16, 32, 64, 128):
        if trials <= len(courses[0]):
            regrets = [100 * some[trials - 1].regret for some in courses]
            spread = statistics.stdev(regrets) / len(regrets) ** 0.5 if len(regrets) > 1 else 0.0
            yield f"{statistics.mean(regrets):.2f} ± {spread:.2f}"
    yield f"{1 - statistics.mean(some[-1].epochs for some in courses) / whole:.2f}"
    yield f"{statistics.mean(some[-1].seconds for some in courses):.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=list(searches()), default=[])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    surrogate = surrogate_of(options.experiment)
    print(f"Highest expected accuracy: {100 * highest(options.experiment, options.target):.2f} %\n")
    at = [f"regret after {trials}" for trials in (8, 16, 32, 64, 128) if trials <= options.trials]
    header = ["search", f"median trials to {100 * NEAR:g} points", *at, "epochs saved", "seconds"]
    print(f"| {' | '.join(header)} |\n|" + " --- |" * len(header))
    for name in options.only or searches():
        about = options.experiment, options.target, options.trials
        courses = [course(*about, seed, searches()[name]) for seed in range(options.seeds)]
        print(f"| {' | '.join(_row(name, courses, options.trials * surrogate.epochs))} |", flush=True)


if __name__ == "__main__":
    main()
