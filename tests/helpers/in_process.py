"""Run whole studies in the process of the tests, without Ray and MLflow. A study then takes only a second or two."""

from __future__ import annotations

import json
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tune_sparsity.experiments import OwnLoop, OwnTraining, Training
from tune_sparsity.experiments.training import NotFinite
from tune_sparsity.tuner.cli import main
from tune_sparsity.tuner.config.files import write_study_yaml
from tune_sparsity.tuner.config.study_config import GOALS, make_config
from tune_sparsity.tuner.driver.finish import Times, conclude
from tune_sparsity.tuner.driver.listeners import KeepNetworks, LogEpochs, ShowProgress, TrackTrials
from tune_sparsity.tuner.driver.prepare import prepare
from tune_sparsity.tuner.driver.study_run import StudyRun
from tune_sparsity.tuner.reports.progress import Progress
from tune_sparsity.tuner.results.retraining import Retraining
from tune_sparsity.tuner.search.asha import halving_for
from tune_sparsity.tuner.search.planner import planner_for
from tune_sparsity.tuner.search.searcher import OptunaSearcher
from tune_sparsity.tuner.study.layout import JOURNAL, WEIGHTS, weights_file
from tune_sparsity.tuner.study.trial import Epoch, TrialState
from tune_sparsity.tuner.worker.sizes import network_cost, spiking_cost
from tune_sparsity.tuner.worker.trainable import trial_seed
from tune_sparsity.tuner.worker.weights import save_weights


class NoTracker:
    """Replaces a tracker: it has all methods of a tracker, but they do nothing."""

    seconds = 0.0
    experiment_id = run_id = None
    problems: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def run_in_process(storage: Path, name: str, *, tracker: Any = None, **options: Any) -> Path:
    """Run a study and return its folder. The trials are trained in this process, one after the other."""
    uri = f"sqlite:///{storage.parent / 'mlflow.db'}"
    goal_given = options.keys() & GOALS
    given = {**({} if goal_given else {"target": 0.8}), "trials": 6, "epochs": 4, **options}
    config = make_config({"storage": storage, "study": name, "tracking_uri": uri, **given}).resolved()
    prepared = prepare(config)
    config.folder.mkdir(parents=True)
    write_study_yaml(config, epochs=prepared.epochs, checksum=prepared.checksum, device="cpu", goal=prepared.goal)
    goal, times = prepared.goal, Times(time.monotonic(), time.monotonic())
    searcher = OptunaSearcher(
        prepared.spaces,
        goal.lowest,
        planner=planner_for(prepared.spaces, goal, config.trials),
        journal=config.folder / JOURNAL,
        name=name,
    )
    progress = Progress(config.trials, goal, quiet=True)
    halving = halving_for(config.scheduler, goal, prepared.epochs)
    weights, tracker = config.folder / WEIGHTS, tracker or NoTracker()
    listeners = [TrackTrials(tracker), LogEpochs(config.folder), KeepNetworks(weights), ShowProgress(progress)]
    study = StudyRun(config, goal, searcher, listeners, halving)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    while (asked := study.ask()) is not None:
        _train(study, prepared, asked, weights)
    torch.set_num_threads(threads)
    conclude(prepared, study, tracker, SimpleNamespace(asked=False, out_of_time=False), times, 1, Retraining())
    return config.folder


def exported(storage: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Export a study's best network with the command, which must succeed. Return the JSON document that it prints."""
    code = main(["export", name, "--storage", str(storage), "--format", kind, "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    return json.loads(said.out)


def _train(study: StudyRun, prepared: Any, asked: Any, weights: Path) -> None:
    """Train one trial. Stop it early if the study decides so, as in tuner.driver.ray_tune."""
    options = {"epochs": prepared.epochs, "seed": trial_seed(prepared.config.seed, asked.number)}
    limit = prepared.limit
    params = asked.params if limit is None else limit.met_by(asked.method, asked.params)
    if isinstance(prepared.experiment, OwnLoop):
        begun = bool if limit is None else partial(limit.hold, asked.method)
        with closing(OwnTraining(prepared.experiment, asked.method, params, begun=begun, **options)) as own:
            _train_on(study, prepared, own, asked, weights)
        return
    data = prepared.data
    training = Training(prepared.experiment, data.train, data.val, asked.method, params, **options)
    if limit is not None:
        limit.hold(asked.method, training)
    if prepared.config.ensemble is not None and training.sparse.average is not None:
        training.sparse.average.keep_spread()
    _train_on(study, prepared, training, asked, weights)


def _train_on(study: StudyRun, prepared: Any, training: Training | OwnTraining, asked: Any, weights: Path) -> None:
    while not training.finished:
        try:
            metrics = training.epoch()
            if training.sparse.fixed:
                metrics |= network_cost(training, prepared.uses)
            if training.finished:
                metrics |= spiking_cost(training, metrics.get("macs"))
        except NotFinite as error:
            study.end(asked.number, TrialState.FAILED, str(error))
            return
        epoch = Epoch(training.epochs_done, metrics)
        study.epoch(asked.number, epoch)
        if training.finished:
            break
        if not study.goes_on(asked.number, epoch, training.sparse.final_sparsity):
            study.end(asked.number, TrialState.PRUNED)
            return
    save_weights(training, weights_file(weights, asked.number))
    study.end(asked.number, TrialState.COMPLETED)
