"""Whole studies in this process, without Ray and MLflow: a second or two for the tests of what is made of a study."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from experiments import Training
from experiments.training import NotFinite
from tuner.conclusion import Times, conclude
from tuner.config import make_config
from tuner.display import Progress
from tuner.layout import layout_of
from tuner.prepare import prepare
from tuner.records import TrialState
from tuner.run import halving_for
from tuner.searcher import OptunaSearcher
from tuner.study import StudyRun
from tuner.study_yaml import write_study_yaml
from tuner.trial import save_weights, trial_seed, weights_file
from tuner.warm_start import JOURNAL


class NoTracker:
    """Takes all that a tracker takes, and keeps nothing."""

    seconds = 0.0
    experiment_id = run_id = None
    problems: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def run_in_process(storage: Path, name: str, *, tracker: Any = None, **options: Any) -> Path:
    """Runs a study and returns its folder; its trials train here, one after the other, as a worker would train them."""
    uri = f"sqlite:///{storage.parent / 'mlflow.db'}"
    given = {"target": 0.8, "trials": 6, "epochs": 4, **options}
    config = make_config({"storage": storage, "study": name, "tracking_uri": uri, **given}).resolved()
    prepared = prepare(config)
    config.folder.mkdir(parents=True)
    write_study_yaml(prepared, device="cpu")
    goal, times = prepared.goal, Times(time.monotonic(), time.monotonic())
    searcher = OptunaSearcher(
        prepared.spaces,
        goal.lowest,
        layout=layout_of(prepared.spaces, goal),
        journal=config.folder / JOURNAL,
        name=name,
    )
    progress = Progress(config.trials, goal, quiet=True)
    halving = halving_for(config, goal, prepared.epochs)
    weights = config.folder / ".weights"
    study = StudyRun(config, goal, searcher, tracker or NoTracker(), progress, weights, weights_file, halving)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    while (asked := study.ask()) is not None:
        _train(study, prepared, asked, weights)
    torch.set_num_threads(threads)
    conclude(prepared, study, SimpleNamespace(asked=False, out_of_time=False), times, 1, [])
    return config.folder


def _train(study: StudyRun, prepared: Any, asked: Any, weights: Path) -> None:
    """One trial, stopped early where the study says so, as tuner.ray_run does it."""
    training = Training(
        prepared.experiment,
        prepared.data.train,
        prepared.data.val,
        asked.method,
        asked.params,
        epochs=prepared.epochs,
        seed=trial_seed(prepared.config.seed, asked.number),
    )
    while not training.finished:
        try:
            metrics = training.epoch()
        except NotFinite as error:
            study.end(asked.number, TrialState.FAILED, str(error))
            return
        study.epoch(asked.number, metrics)
        if training.finished:
            break
        accuracy, final = metrics["val_accuracy_at_target"], training.sparse.final_sparsity
        if not study.goes_on(asked.number, epoch=training.epochs_done, accuracy=accuracy, final_sparsity=final):
            study.end(asked.number, TrialState.PRUNED)
            return
    save_weights(training, weights_file(weights, asked.number))
    study.end(asked.number, TrialState.COMPLETED)
