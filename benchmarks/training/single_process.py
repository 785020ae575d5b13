"""Run a study in this process, with the search and the early stopping of the command. Use no Ray, and keep no files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.driver import option_of, reported
from tune_sparsity.experiments import Data, Experiment
from tune_sparsity.experiments.training import NotFinite, Training
from tune_sparsity.tuner.config.study_config import make_config
from tune_sparsity.tuner.driver.study_run import StudyRun
from tune_sparsity.tuner.search.asha import halving_for
from tune_sparsity.tuner.search.planner import planner_for
from tune_sparsity.tuner.search.searcher import OptunaSearcher
from tune_sparsity.tuner.search.spaces import spaces_of
from tune_sparsity.tuner.study.goal import Goal
from tune_sparsity.tuner.study.trial import Epoch, TrialState
from tune_sparsity.tuner.worker.trainable import trial_seed

SLOTS = 2  # trials that train in turn


@dataclass
class Trial:
    """A trial that is in training or has ended."""

    number: int
    params: dict[str, Any]
    training: Training
    metrics: dict[str, float]  # of its last epoch


def completed(
    experiment: Experiment,
    data: Data,
    *,
    goal: Goal,
    trials: int,
    seed: int,
    epochs: int | None = None,
    **asked: Any,
) -> Iterator[Trial]:
    """Run a study of one method, and yield each trial that was trained to its end.

    Args:
        experiment: the network and its training recipe.
        data: the training and the validation data.
        goal: a front, or one or more targets.
        trials, seed, epochs: the options of the command with these names.
        asked: further options of the command, as keyword arguments like those of `tune`.
    """
    epochs = epochs or experiment.recipe.epochs
    with tempfile.TemporaryDirectory() as folder:
        options = {**option_of(goal), "trials": trials, "seed": seed, "storage": folder, "study": "here", **asked}
        config = make_config(options).resolved()
        spaces = spaces_of(config, goal)
        searcher = OptunaSearcher(spaces, goal.lowest, seed=seed, planner=planner_for(spaces, goal, trials))
        study = StudyRun(config, goal, searcher, halving=halving_for(config.scheduler, goal, epochs))
        running: list[Trial] = []
        while True:
            while len(running) < SLOTS and (new := study.ask()) is not None:
                own: dict[str, Any] = {"epochs": epochs, "seed": trial_seed(seed, new.number)}
                training = Training(experiment, data.train, data.val, new.method, new.params, **own)
                running.append(Trial(new.number, dict(new.params), training, {}))
            if not running:
                return
            running = [one for one in running if _goes_on(study, one)]
            yield from (one for one in running if one.training.finished)
            running = [one for one in running if not one.training.finished]


def _goes_on(study: StudyRun, trial: Trial) -> bool:
    """Train one more epoch. Return False if the trial failed or was stopped early."""
    training = trial.training
    try:
        trial.metrics = training.epoch()
    except NotFinite as error:
        study.end(trial.number, TrialState.FAILED, str(error))
        return False
    last, made = training.finished, Epoch(training.epochs_done, trial.metrics)
    return reported(study, trial.number, made, training.sparse.final_sparsity, last=last) or last
