"""Run whole studies of several sparsities on the surrogates, in seconds, on a simulated clock.

    python -m benchmarks.curves.fronts [--experiment digits] [--trials 10 40] [--seeds 20] [--only NAME ...]

How a study is simulated stands in benchmarks/curves/studies.py. The first figure is that of benchmarks.front: the mean
over the sparsities from .5 to .99 of the accuracy of the best network with at least this sparsity. The study chooses
this network by its noisy validation accuracy. Its expected accuracy counts.

A study's regret at a sparsity is the highest expected accuracy of the surrogates of all methods there, minus that of
the network that the study chooses for this sparsity. A study without such a network has an accuracy of 0. The table has
the regrets at `SPARSITIES`, and their mean at the four `TARGETS`. Above .98 there are no regrets, because the surrogate
is too far from the truth there: it expects 88 % of a recipe at .99 that really has 96 %.

`grid` trains the default recipe, the first point of lpss's space, at sparsities that are even in the logarithm of the
density. `four studies` has a quarter of the trials for each target. `Ray` is Ray's OptunaSearch with two metrics.
`MOASHA` is that of Syne Tune; its row stands in the table if `syne_tune` is installed. Both are called directly, with
lpss's ranges.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution, IntDistribution

from benchmarks.curves.choosing import first_point, percent
from benchmarks.curves.points import SPARSITY, applying
from benchmarks.curves.studies import METHOD, Make, Ours, Simulated, ended_trials, highest, surrogate_of
from benchmarks.front import FRONT, TARGETS, even_in_log
from tune_sparsity.tuner.search.samplers import DEFAULT_SAMPLER, SAMPLERS
from tune_sparsity.tuner.search.searcher import Asked
from tune_sparsity.tuner.search.spaces import space_for
from tune_sparsity.tuner.study.goal import Goal, at_targets
from tune_sparsity.tuner.study.trial import Epoch, TrialRecord, TrialState

SPARSITIES = (0.5, 0.7, *TARGETS)
METHODS = (METHOD, "gmp", "rigl")


class FrontSearch(ABC):
    """The base of other searches of a front. It counts the trials, and stops none of them early."""

    def __init__(self, goal: Goal, trials: int, seed: int, epochs: int, folder: Path) -> None:
        self.now, self._trials, self._begun = 0.0, trials, 0
        self.goal, self.seed, self.epochs = goal, seed, epochs

    def ask(self) -> Asked | None:
        if self._begun == self._trials:
            return None
        self._begun += 1
        return Asked(self._begun - 1, METHOD, self.params(self._begun - 1))

    @abstractmethod
    def params(self, number: int) -> dict[str, Any]:
        """Return the parameters of a trial."""

    def goes_on(self, trial: Simulated, epoch: Epoch) -> bool:
        return not trial.finished


class Grid(FrontSearch):
    """The default recipe, at sparsities that are even in the logarithm of the density."""

    def params(self, number: int) -> dict[str, Any]:
        return first_point(float(even_in_log(self.goal, self._trials)[number]))


class RayFront(FrontSearch):
    """Ray's OptunaSearch, called directly, which maximises the accuracy and the sparsity."""

    def __init__(self, *about: Any) -> None:
        from ray.tune.search.optuna import OptunaSearch

        super().__init__(*about)
        self._space = space_for(METHOD, self.goal)
        own: dict[str, Any] = {"metric": ["score", SPARSITY], "mode": ["max", "max"], "seed": self.seed}
        self._search = OptunaSearch(dict(self._space.distributions), **own)

    def params(self, number: int) -> dict[str, Any]:
        params = self._search.suggest(str(number))
        assert isinstance(params, dict)
        return applying(self._space, params)

    def goes_on(self, trial: Simulated, epoch: Epoch) -> bool:
        if trial.finished:
            self._search.on_trial_complete(str(trial.number), _score(trial, epoch))
        return not trial.finished


class Moasha(FrontSearch):
    """Syne Tune's MOASHA, called directly: random parameters, and early stopping by the rank in the front."""

    def __init__(self, *about: Any) -> None:
        from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

        super().__init__(*about)
        np.random.seed(self.seed)  # MOASHA draws from NumPy's global generator
        self._space = space_for(METHOD, self.goal)
        ranges = {name: _range(distribution) for name, distribution in self._space.distributions.items()}
        own: dict[str, Any] = {"metrics": ["score", SPARSITY], "do_minimize": False, "max_t": self.epochs}
        self._search = MOASHA(ranges, **own)

    def params(self, number: int) -> dict[str, Any]:
        self._search.on_trial_add(_trial(number))
        return applying(self._space, self._search.suggest().config)

    def goes_on(self, trial: Simulated, epoch: Epoch) -> bool:
        about = _trial(trial.number), _score(trial, epoch)
        if not trial.finished:
            return bool(self._search.on_trial_result(*about) == "CONTINUE")
        self._search.on_trial_complete(*about)
        return False


def _trial(number: int) -> Any:
    from syne_tune.backend.trial_status import Trial

    return Trial(number, {}, datetime.min)


def _range(distribution: Any) -> Any:
    from syne_tune import config_space

    if isinstance(distribution, CategoricalDistribution):
        return config_space.choice(list(distribution.choices))
    kind = ("log" if distribution.log else "") + ("randint" if isinstance(distribution, IntDistribution) else "uniform")
    return getattr(config_space, kind)(distribution.low, distribution.high)


def _score(trial: Simulated, epoch: Epoch) -> dict[str, Any]:
    score = trial.curve[epoch.number - 1]
    return {"score": score, SPARSITY: trial.params[SPARSITY], "training_iteration": epoch.number}


@dataclass(frozen=True)
class Searched:
    """A row of the table: a search, and the goals among which it divides the trials."""

    make: Make
    goals: tuple[Goal, ...] = (FRONT,)


def searches() -> dict[str, Searched]:
    """Return the searches by the names of the table's rows."""
    return {
        "front": Searched(Ours),
        "front, three methods": Searched(partial(Ours, methods=METHODS)),
        "front, no early stopping": Searched(partial(Ours, scheduler="none")),
        **{
            f"front, {name}": Searched(partial(Ours, sampler=name))
            for name, kind in SAMPLERS.items()
            if kind.front and name != DEFAULT_SAMPLER
        },
        "grid": Searched(Grid),
        "Ray": Searched(RayFront),
        **({"MOASHA": Searched(Moasha)} if importlib.util.find_spec("syne_tune") else {}),
        "four targets": Searched(Ours, (at_targets(*TARGETS),)),
        "four targets, three methods": Searched(partial(Ours, methods=METHODS), (at_targets(*TARGETS),)),
        "four studies": Searched(Ours, tuple(map(at_targets, TARGETS))),
    }


@cache
def top(experiment: str, sparsity: float) -> float:
    """Return the highest expected accuracy of all methods at a sparsity."""
    return max(highest(experiment, sparsity, method) for method in METHODS)


@dataclass(frozen=True)
class Result:
    """A study at its end: the mean accuracy over the front, the regrets by sparsity, the epochs, and the simulated
    seconds."""

    accuracy: float
    regrets: dict[float, float]
    epochs: int
    seconds: float


def result_of(experiment: str, trials: int, seed: int, searched: Searched) -> Result:
    """Run the studies of a row under one seed."""
    finished, epochs, seconds = list[Simulated](), 0, 0.0
    for goal in searched.goals:
        ended = list(ended_trials(experiment, goal, trials // len(searched.goals), seed, searched.make))
        finished += [one.trial for one in ended if one.trial.finished]
        epochs, seconds = epochs + ended[-1].epochs, seconds + ended[-1].seconds
    regrets = {sparsity: top(experiment, sparsity) - _named(finished, sparsity) for sparsity in SPARSITIES}
    places = [(one.params[SPARSITY], one.curve[-1], one.expected) for one in finished]
    return Result(mean_accuracy(places), regrets, epochs, seconds)


def mean_accuracy(trials: Sequence[tuple[float, float, float]]) -> float:
    """Return the mean accuracy of a front over its sparsities.

    Args:
        trials: for each trial its sparsity, the accuracy by which the front is chosen, and the accuracy that counts.
    """

    def records(which: Iterable[int], column: int) -> Iterator[TrialRecord]:
        for number in which:
            own = trials[number]
            yield TrialRecord(number, METHOD, {}, TrialState.COMPLETED, own[column], own[0])

    front = [record.number for record in FRONT.front(records(range(len(trials)), 1))]
    return FRONT.mean_value(FRONT.hypervolume(records(front, 2)))


def _named(finished: Sequence[Simulated], sparsity: float) -> float:
    """Return the expected accuracy of the trial that a study names at a sparsity."""
    some = [trial for trial in finished if trial.params[SPARSITY] >= sparsity]
    return max(((trial.curve[-1], trial.expected) for trial in some), default=(0.0, 0.0))[1]


def _row(name: str, trials: int, results: Sequence[Result], epochs: int) -> Iterator[str]:
    """Yield the cells of a row."""
    yield from (name, f"{trials}", f"{statistics.mean(one.epochs for one in results) / epochs:.1f}")
    yield percent([one.accuracy for one in results])
    yield percent([statistics.mean(one.regrets[target] for target in TARGETS) for one in results])
    yield from (f"{100 * statistics.mean(one.regrets[sparsity] for one in results):.2f}" for sparsity in SPARSITIES)
    yield f"{statistics.mean(one.seconds for one in results):.0f}"


def main() -> None:
    known = searches()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="digits")
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 40])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=list(known), default=[])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    best = (f"{sparsity:g}: {100 * top(options.experiment, sparsity):.2f} %" for sparsity in SPARSITIES)
    print(f"Highest expected accuracy at {', '.join(best)}\n", flush=True)
    header = ["search", "trials", "trainings' worth", "mean accuracy", "mean regret", *map(str, SPARSITIES), "seconds"]
    print(f"| {' | '.join(header)} |\n|" + " --- |" * len(header))
    epochs = surrogate_of(options.experiment).epochs
    for trials in options.trials:
        for name in options.only or known:
            results = [result_of(options.experiment, trials, seed, known[name]) for seed in range(options.seeds)]
            print(f"| {' | '.join(_row(name, trials, results, epochs))} |", flush=True)


if __name__ == "__main__":
    main()
