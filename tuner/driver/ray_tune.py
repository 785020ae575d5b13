"""Runs a study's trials with Ray Tune: what Ray reports is passed on to the StudyRun, which decides."""

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
LOST_WORKERS = 3  # times that a trial whose process was lost is begun again, from its checkpoint


def gpus_per_trial(config: StudyConfig) -> float:
    """Return the share that each trial gets. "auto": a whole GPU where the cluster has any, else none.

    Raises:
        UsageError: if more is asked for than any cluster node has.
    """
    if config.gpus_per_trial == "auto":
        return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
    return float(config.gpus_per_trial)


def slots(config: StudyConfig, gpus: float) -> int:
    """Return how many trials run at once: as many as fit into the cluster, or --concurrency where that is less.

    Raises:
        UsageError: if not even one fits.
    """
    there, workers = nodes(), config.workers_per_trial
    fit = trials_at_once(there, config.cpus_per_trial, gpus, workers)
    if fit < 1:
        have = f"{sum(node.cpus for node in there):g} and {sum(node.gpus for node in there):g}"
        each, option = (f"{workers} times ", "--workers-per-trial, ") if workers > 1 else ("", "")
        raise UsageError(
            f"a trial needs {each}{config.cpus_per_trial:g} CPUs and {gpus:g} GPUs of one node, and Ray has {have} on "
            f"{len(there)}: lower {option}--cpus-per-trial or --gpus-per-trial"
        )
    return min(fit, config.concurrency or fit)


def with_ranks(setup: TrialSetup, config: StudyConfig, gpus: float) -> TrialSetup:
    """Return the setup for trials of as many processes as --workers-per-trial says."""
    workers = config.workers_per_trial
    if workers == 1:
        return setup
    return replace(setup, ranks=RankPlan(workers, config.cpus_per_trial, gpus, ray.put(setup)))


class _NotPickled:
    """Ray pickles what it is given into snapshots to restore from. Ours restore from Optuna's journal instead, and hold
    threads and files that cannot be pickled: the snapshot gets an empty object."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Searcher(_NotPickled, Searcher):
    """Asks the study for trials on Ray's behalf. How they end is told by the callback, which knows why."""

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
        states: Ray's own state of every trial, by its name, when all have ended.
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
        """Makes a trial that reported its failure an error in Ray's own books, now that its process is free. Of a trial
        that has ended the books keep no measures: they are in ours, and Ray's are ten times as large."""
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
    """Why a trial failed that took its process with it, in one line: the exception that Ray has for it."""
    # Ray has just written it on this machine, for itself; it reaches the storage (trial.get_pickled_error) only later.
    file = trial.pickled_error_file
    if file is None or not Path(file).is_file():
        return "unknown error"
    error = cloudpickle.loads(Path(file).read_bytes())
    return one_line(getattr(error, "cause", None) or error)


class StopWhen(_NotPickled, tune.Stopper):
    """Ends the whole study when the time budget is used up, when it was asked to, or when it cannot be written.

    Args:
        deadline: by time.monotonic().
        lost: why the study is no more this process's to go on with, "" while it is.
    """

    def __init__(self, deadline: float | None, lost: Callable[[], str] = str) -> None:
        self._deadline, self._lost = deadline, lost
        self.asked = False
        self.out_of_time = False
        self.disk = ""  # why the study's folder cannot be written to, if so

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        self.out_of_time = self._deadline is not None and time.monotonic() >= self._deadline
        return self.asked or self.out_of_time or bool(self.disk or self.lost)

    @property
    def lost(self) -> str:
        return self._lost()

    def unless_disk_full(self, call: Callable[..., R], *args: Any) -> R | None:
        """Return the call's result. If it fails for want of room on the disk the study ends, and from then on nothing
        is called: a journal's line behind one that was cut off would make both unreadable."""
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
    """Runs trials until the study has had all of them, or `stop` says so.

    Returns:
        Ray's own state of every trial, by its name: TERMINATED or ERROR.
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
        stop.disk = stop.disk or one_line(error)  # Ray itself writes there too
        return {}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
