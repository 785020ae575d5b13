"""Runs a study's trials with Ray Tune. This module passes Ray's events to StudyRun, which makes all decisions."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray import cloudpickle, tune
from ray.tune.error import TuneError
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from tune_sparsity.tuner.cluster.node import trials_at_once
from tune_sparsity.tuner.cluster.nodes import nodes
from tune_sparsity.tuner.cluster.ray_patches import (
    in_waiting_processes,
    lost_while_waiting,
    patched,
    tuner_here,
    without_mlflow,
)
from tune_sparsity.tuner.config.study_config import StudyConfig
from tune_sparsity.tuner.driver.scheduler import StudyScheduler
from tune_sparsity.tuner.driver.study_run import StudyRun
from tune_sparsity.tuner.errors import UsageError, disk_error, one_line
from tune_sparsity.tuner.study.trial import TrialState, trial_name
from tune_sparsity.tuner.worker.ranks import RankPlan
from tune_sparsity.tuner.worker.report import Report, take_weights
from tune_sparsity.tuner.worker.trainable import TrialSetup, TrialTrainable

R = TypeVar("R")
LOST_WORKERS = 3  # restarts of a trial, from its checkpoint, after its process was lost; then the trial fails


def gpus_per_trial(config: StudyConfig) -> float:
    """Return the number of GPUs for each worker of a trial. This number may be a fraction. "auto" gives 1 if the
    cluster has a GPU, otherwise 0."""
    if config.gpus_per_trial == "auto":
        return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
    return float(config.gpus_per_trial)


def slots(config: StudyConfig, gpus: float) -> int:
    """Return how many trials run at the same time: as many as fit on the nodes, and at most --concurrency.

    Args:
        config: the study's configuration.
        gpus: the number of GPUs of each worker.

    Raises:
        UsageError: if the nodes have not enough CPUs or GPUs for one trial.
    """
    there, workers = nodes(), config.workers_per_trial
    fit = trials_at_once(there, config.cpus_per_trial, gpus, workers)
    if fit < 1:
        need = f"{config.cpus_per_trial:g} CPUs and {gpus:g} GPUs"
        have = f"{sum(node.cpus for node in there):g} CPUs and {sum(node.gpus for node in there):g} GPUs"
        if workers == 1:
            wrong, option = f"a trial needs {need} on one node, and no node has them", ""
        else:
            wrong = f"the {workers} processes of a trial need {need} each, and the nodes have no room for all of them"
            option = "--workers-per-trial, "
        raise UsageError(f"{wrong} (all nodes together: {have}): lower {option}--cpus-per-trial or --gpus-per-trial")
    return min(fit, config.concurrency or fit)


def with_ranks(setup: TrialSetup, config: StudyConfig, gpus: float) -> TrialSetup:
    """Return the settings of trials. If --workers-per-trial is larger than 1, add to the settings a description of the
    worker processes (ranks) that train a trial together."""
    workers = config.workers_per_trial
    if workers == 1:
        return setup
    return replace(setup, ranks=RankPlan(workers, config.cpus_per_trial, gpus, ray.put(setup)))


class _NotPickled:
    """A base class of objects that are pickled without their attributes.

    Ray pickles the searcher, the callback and the stopper into its snapshots of an experiment. The attributes of these
    three objects contain threads and files, which cannot be pickled. Nothing is lost, because a study is resumed from
    Optuna's journal, and not from Ray's snapshots.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Searcher(_NotPickled, Searcher):
    """Gives Ray the study's next trial. `_Callback` reports the end of a trial to the study, because only `_Callback`
    knows why the trial ended."""

    def __init__(self, study: StudyRun, names: dict[str, int], stop: StopWhen) -> None:
        super().__init__()
        self._study, self._names, self._stop = study, names, stop

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]
        asked = self._stop.unless_disk_full(self._study.ask)
        if asked is None:
            return Searcher.FINISHED
        self._names[trial_id] = asked.number
        return {"number": asked.number, "method": asked.method, "params": asked.params}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass  # the state is in Optuna's journal

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Callback(_NotPickled, tune.Callback):
    """Passes the events of Ray's trials on to the study.

    Attributes:
        states: a dict from the name of every trial to Ray's own state of the trial. It is empty until Ray has ended all
            trials.
    """

    def __init__(self, study: StudyRun, names: dict[str, int], stop: StopWhen) -> None:
        self._study, self._names, self._stop = study, names, stop
        self.states: dict[str, str] = {}
        self._failed, self._ended = list[Trial](), list[Trial]()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        number, report = self._names[trial.trial_id], Report.from_dict(result)
        self._stop.disk = self._stop.disk or report.disk
        if (network := take_weights(result)) is not None:
            self._stop.unless_disk_full(self._study.network_sent, number, network)
        self._stop.unless_disk_full(self._study.epochs, number, report.epochs, report.again)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        number, last = self._names[trial.trial_id], Report.from_dict(trial.last_result or {})
        if last.failure:
            self._end(number, TrialState.FAILED, last.failure)
            self._failed.append(trial)
        else:
            self._end(number, TrialState.COMPLETED if last.finished else TrialState.PRUNED)
        self._ended.append(trial)

    def _end(self, number: int, state: TrialState, reason: str = "") -> None:
        self._stop.unless_disk_full(self._study.end, number, state, reason)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Update Ray's records of the trials that have just ended.

        A trial that reported its failure gets Ray's state ERROR. This is possible only after Ray has released the
        trial's process. Ray's copies of the metrics are removed, because the study has the metrics, and Ray's copies
        are ten times as large.
        """
        while self._failed:
            trial = self._failed.pop()
            trial.handle_error(TuneError(Report.from_dict(trial.last_result).failure))
            trial.set_status(Trial.ERROR)
        while self._ended:
            books = self._ended.pop().run_metadata
            books.metric_analysis, books.metric_n_steps, books.last_result = {}, {}, {}

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        tries = trial.run_metadata.num_failures
        times = f" ({tries} times)" if tries > 1 else ""
        self._end(self._names[trial.trial_id], TrialState.FAILED, failure_reason(trial) + times)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self.states = {trial_name(self._names[trial.trial_id]): trial.status for trial in trials}


def failure_reason(trial: Trial) -> str:
    """Return, in one line, the exception that Ray has stored for a failed trial."""
    # Ray has written this local file already. The copy for trial.get_pickled_error reaches the storage only later.
    file = trial.pickled_error_file
    if file is None or not Path(file).is_file():
        return "unknown error"
    error = cloudpickle.loads(Path(file).read_bytes())
    return one_line(getattr(error, "cause", None) or error)


class StopWhen(_NotPickled, tune.Stopper):
    """Ends the whole study in four cases: the time budget is used up, the user interrupts the study, the study's folder
    cannot be written to, or another process has taken over the study.

    Args:
        deadline: the end of the time budget, by time.monotonic(). If None, there is no time budget.
        lost: a function that returns the reason why this process must not continue the study, or "" as long as it may
            continue.

    Attributes:
        asked: whether the user has interrupted the study.
        out_of_time: whether the time budget was used up.
        disk: the reason why the study's folder cannot be written to, or "" if it can.
    """

    def __init__(self, deadline: float | None, lost: Callable[[], str] = str) -> None:
        self._deadline, self._lost = deadline, lost
        self.asked = False
        self.out_of_time = False
        self.disk = ""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        self.out_of_time = self._deadline is not None and time.monotonic() >= self._deadline
        return self.asked or self.out_of_time or bool(self.disk or self.lost)

    @property
    def lost(self) -> str:
        return self._lost()

    def unless_disk_full(self, call: Callable[..., R], *args: Any) -> R | None:
        """Return the result of call(*args). If the call fails with an error of the disk, set `disk` and return None.

        If `disk` or `lost` is set already, return None without calling. After a failed write, Optuna's journal may end
        in an incomplete line. A later call could write another line behind it, and both lines would be unreadable.
        """
        if self.disk or self.lost:
            return None
        try:
            return call(*args)
        except OSError as error:
            if not disk_error(error):
                raise
            self.disk = one_line(error)
            return None


def run_trials(
    study: StudyRun, setup: TrialSetup, arrays: Any, *, gpus: float, concurrency: int, stop: StopWhen
) -> dict[str, str]:
    """Run trials until the study has no further trial, or until `stop` ends it.

    Args:
        study: the study that gives the trials.
        setup: the settings that all trials share.
        arrays: the training and validation data, as tuner.cluster.node_data.for_workers returns them.
        gpus: the number of GPUs of each worker.
        concurrency: the number of trials that run at once.
        stop: decides when the study has to end early.

    Returns:
        A dict from the name of each trial to the trial's state in Ray, TERMINATED or ERROR. The dict is empty if the
        disk was full.
    """
    config = study.config
    names: dict[str, int] = {}
    callback = _Callback(study, names, stop)
    scratch = config.folder / ".ray"
    patches = (without_mlflow, lost_while_waiting, *([in_waiting_processes] if config.address is None else []))
    each = {"CPU": config.cpus_per_trial, "GPU": gpus}
    trainable = tune.with_resources(
        tune.with_parameters(TrialTrainable, shared=setup, arrays=arrays),
        tune.PlacementGroupFactory([each] * config.workers_per_trial),
    )
    try:
        with patched(*patches), tuner_here(scratch) as tuner:
            tuner(
                trainable=trainable,
                tune_config=tune.TuneConfig(
                    search_alg=_Searcher(study, names, stop),
                    scheduler=StudyScheduler(study, names),
                    num_samples=config.trials,
                    max_concurrent_trials=concurrency,
                    reuse_actors=True,
                    trial_name_creator=lambda trial: trial_name(trial.config["number"]),
                    trial_dirname_creator=lambda trial: trial_name(trial.config["number"]),
                ),
                run_config=tune.RunConfig(
                    name="trials",
                    storage_path=str(scratch),
                    callbacks=[callback],
                    stop=stop,
                    failure_config=tune.FailureConfig(max_failures=LOST_WORKERS),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                    verbose=0,
                ),
            ).fit()
        return callback.states
    except Exception as error:
        if not (stop.disk or disk_error(error)):
            raise
        stop.disk = stop.disk or one_line(error)  # a disk error of Ray, which also writes into the study's folder
        return {}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
