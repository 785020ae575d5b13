"""Simulate studies: the learning curves of their trials come from a surrogate, and the clock is simulated.

A simulated study (`Ours`) has the searcher, the early stopping and the records of `tune-sparsity`, but no Ray and no
files. Ray's search (`Rays`) is called directly. `SLOTS` trials run at a time. A simulated epoch takes as long as the
median epoch of the collected trainings, which ran on one thread.
"""

from __future__ import annotations

import heapq
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from benchmarks.curves.points import SPARSITY, applying
from benchmarks.curves.surrogate import Surrogate, accuracies
from benchmarks.curves.table import Table
from benchmarks.driver import option_of, reported
from benchmarks.search import Rule
from tune_sparsity.search_spaces import Space, load_space
from tune_sparsity.tuner.config.study_config import make_config
from tune_sparsity.tuner.driver.study_run import StudyRun
from tune_sparsity.tuner.search.asha import halving_for
from tune_sparsity.tuner.search.planner import planner_for
from tune_sparsity.tuner.search.searcher import Asked, OptunaSearcher
from tune_sparsity.tuner.search.spaces import spaces_of
from tune_sparsity.tuner.study.goal import Goal
from tune_sparsity.tuner.study.trial import Epoch

SLOTS, METHOD = 2, "lpss"


@lru_cache
def surrogate_of(experiment: str, method: str = METHOD) -> Surrogate:
    return Surrogate(method, Table(experiment, method).rows())


@lru_cache
def best_configuration(experiment: str, target: float, method: str = METHOD) -> dict[str, Any]:
    """Return the configuration with the surrogate's highest expected accuracy at the target's sparsity."""
    return surrogate_of(experiment, method).best(target)


@lru_cache
def highest(experiment: str, target: float, method: str = METHOD) -> float:
    """Return the surrogate's highest expected accuracy at the target's sparsity."""
    best = best_configuration(experiment, target, method)
    return float(surrogate_of(experiment, method).means([best])[0, -1])


class Simulated:
    """A trial whose epochs come from the surrogate."""

    def __init__(self, surrogate: Surrogate, asked: Asked, rng: np.random.Generator) -> None:
        self.number, self.params, self.epoch = asked.number, asked.params, 0
        (errors,) = surrogate.expected_errors([asked.params])
        self.expected = float(accuracies(errors)[-1])
        self.curve, self.seconds = surrogate.curve(errors, rng), surrogate.epoch_seconds

    @property
    def finished(self) -> bool:
        return self.epoch == len(self.curve)

    def train(self) -> Epoch:
        """Return the measures of one more epoch. The sparsity is 0 until the last epoch."""
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


class Search(Protocol):
    """A search that a simulated study asks for trials.

    Attributes:
        now: the simulated seconds since the study's start. `ended_trials` sets it.
    """

    now: float

    def ask(self) -> Asked | None:
        """Return the next trial, or None if all trials have begun."""

    def goes_on(self, trial: Simulated, epoch: Epoch) -> bool:
        """Record an epoch. Return whether the trial goes on."""


Make = Callable[[Goal, int, int, int, Path], Search]
"""A function that makes a search from the goal, the number of trials, the seed, the epochs of a trial and a folder."""


class Ours:
    """This project's search."""

    def __init__(
        self,
        goal: Goal,
        trials: int,
        seed: int,
        epochs: int,
        folder: Path,
        *,
        methods: Sequence[str] = (METHOD,),
        change: Callable[[Space], Space] = lambda space: space,
        scheduler: str = "asha",
        rule: Rule | None = None,
        **options: Any,
    ) -> None:
        self.now = 0.0
        about = {**option_of(goal), "trials": trials, "storage": folder, "study": "simulated", "method": list(methods)}
        config = make_config(about).resolved()
        spaces = [change(space) for space in spaces_of(config, goal)]
        self._study = StudyRun(
            config,
            goal,
            OptunaSearcher(spaces, goal.lowest, seed=seed, planner=planner_for(spaces, goal, trials), **options),
            halving=rule.halving(epochs, goal.lowest) if rule else halving_for(scheduler, goal, epochs),
            clock=lambda: self.now,
        )

    def ask(self) -> Asked | None:
        return self._study.ask()

    def goes_on(self, trial: Simulated, epoch: Epoch) -> bool:
        return reported(self._study, trial.number, epoch, trial.params[SPARSITY], last=trial.finished)


class Rays:
    """Ray's OptunaSearch and its AsyncHyperBandScheduler, called directly, for one target.

    The search has the ranges of lpss's space, and its score is the validation accuracy at the target. The scheduler has
    its default rungs, up to the epochs of a trial.
    """

    def __init__(self, goal: Goal, trials: int, seed: int, epochs: int, folder: Path) -> None:
        from ray.tune.schedulers import AsyncHyperBandScheduler
        from ray.tune.search.optuna import OptunaSearch

        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        self.now, self._left, self._space = 0.0, trials, load_space(METHOD, goal.lowest)
        self._search = OptunaSearch(dict(self._space.distributions), metric="score", mode="max", seed=seed)
        self._asha = AsyncHyperBandScheduler(metric="score", mode="max", max_t=epochs)

    def ask(self) -> Asked | None:
        if not self._left:
            return None
        self._left -= 1
        params = self._search.suggest(str(self._left))
        assert isinstance(params, dict)
        self._asha.on_trial_add(None, self._trial(self._left))  # type: ignore[arg-type]
        return Asked(self._left, METHOD, applying(self._space, params))

    def goes_on(self, trial: Simulated, epoch: Epoch) -> bool:
        result = {"score": trial.curve[epoch.number - 1], "training_iteration": epoch.number}
        about: Any = (None, self._trial(trial.number), result)
        if not trial.finished and self._asha.on_trial_result(*about) == "CONTINUE":
            return True
        self._asha.on_trial_complete(*about)
        self._search.on_trial_complete(str(trial.number), result)
        return False

    def _trial(self, number: int) -> Any:
        return SimpleNamespace(trial_id=str(number), status="RUNNING")


@dataclass(frozen=True)
class Ended:
    """A trial that was completed or stopped in a simulated study.

    Attributes:
        trial: the trial.
        epochs: the epochs of all trials of the study until this trial ended, added up.
        seconds: the simulated time from the study's start until this trial ended.
    """

    trial: Simulated
    epochs: int
    seconds: float


def ended_trials(experiment: str, goal: Goal, trials: int, seed: int, make: Make) -> Iterator[Ended]:
    """Run a study, and yield its trials in the order in which they end."""
    rng, epochs = np.random.default_rng([seed, 1]), 0
    running: list[tuple[float, int, Simulated]] = []
    with tempfile.TemporaryDirectory() as folder:
        study = make(goal, trials, seed, surrogate_of(experiment).epochs, Path(folder))
        while True:
            while len(running) < SLOTS and (asked := study.ask()) is not None:
                trial = Simulated(surrogate_of(experiment, asked.method), asked, rng)
                heapq.heappush(running, (study.now + trial.seconds, trial.number, trial))
            if not running:
                return
            study.now, _, trial = heapq.heappop(running)
            epochs += 1
            if study.goes_on(trial, trial.train()):
                heapq.heappush(running, (study.now + trial.seconds, trial.number, trial))
            else:
                yield Ended(trial, epochs, study.now)
