"""Runs a study from its configuration to its files: prepare, search, judge the best, write."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Any

from tuner.checkpoints import sweep
from tuner.conclusion import Finished, Times, conclude
from tuner.config import StudyConfig
from tuner.connection import Connection
from tuner.display import Progress
from tuner.final_seeds import Retrained, best_of_each, jobs, summarise
from tuner.goal import Goal
from tuner.halving import Halving, LikeStopping, rung_epochs
from tuner.interruption import interruptible, terminable
from tuner.keeping import held
from tuner.layout import layout_of
from tuner.mirror import Mirror
from tuner.mlflow_parts import dataset_note
from tuner.outbox import StudyIdentity
from tuner.prepare import Prepared
from tuner.records import TrialState
from tuner.store_owner import TakenOver
from tuner.study_yaml import write_study_yaml
from tuner.tracking import Tracker
from tuner.tracking_uri import redact
from tuner.warm_start import JOURNAL

if TYPE_CHECKING:
    from tuner.study import StudyRun
    from tuner.trial import TrialSetup

AT_ONCE = 5.0  # seconds that MLflow has when a study ends unexpectedly; what it lacks then, resuming brings it


class DiskFull(Exception):
    """The study's folder cannot be written to: why, in one line. Nothing of the study is lost."""


def run_study(
    prepared: Prepared,
    ray: Connection,
    *,
    resume: bool = False,
    quiet: bool = False,
    launched: float | None = None,
    writer: Popen[str] | None = None,
) -> Finished:
    """Searches, judges the best network on the test data, and writes all files of the study.

    Args:
        prepared: from `prepare`.
        ray: to run the trials with; waited for here, and ended when it is no longer needed.
        resume: go on with the study in its folder instead of beginning one.
        quiet: no progress on the terminal.
        launched: when the command was started, by time.monotonic(), from which its seconds count; now by default.
        writer: the process that tells MLflow, if it has been started already.

    Raises:
        UsageError: if the cluster cannot be reached or cannot hold a trial, or if another process runs the study.
        DiskFull: if the study's folder cannot be written to; the study can be resumed.
        TakenOver: if another process runs the study in the object store, which this one could not reach for a while.
        KeyboardInterrupt: at the second Ctrl-C; so it can then.
    """
    config, began = prepared.config, time.monotonic()
    launched = began if launched is None else launched
    with ExitStack() as stack:
        if resume:  # before anything is started
            mirror = stack.enter_context(held(config, resume=True))
        # Ray says on standard output that a node has died: what is there is for --json alone.
        stack.enter_context(redirect_stdout(sys.stderr))
        ray.begin()
        from tuner import ray_run  # takes seconds, in which a Ray of our own starts
        from tuner.node_data import for_workers

        ray.wait()
        gpus = ray_run.gpus_per_trial(config)
        concurrency = ray_run.slots(config, gpus)
        arrays = for_workers(prepared)
        if not resume:
            mirror = stack.enter_context(held(config, resume=False))
        with terminable(ray), _disk_errors_told():
            if not resume:
                write_study_yaml(prepared, device="cuda" if gpus else "cpu")
            tracker = _start_tracker(prepared, writer)
            try:
                times = Times(launched, began)
                finished = _search(
                    prepared,
                    tracker,
                    ray,
                    arrays,
                    times,
                    gpus=gpus,
                    concurrency=concurrency,
                    quiet=quiet,
                    mirror=mirror,
                )
            except BaseException:
                tracker.close(AT_ONCE)
                raise
            tracker.close()
            return finished


def _start_tracker(prepared: Prepared, writer: Popen[str] | None) -> Tracker:
    config = prepared.config
    identity = StudyIdentity(
        study=config.study,
        experiment=prepared.experiment.name,
        target=prepared.goal.option,
        method=",".join(config.method),
    )
    tracker = Tracker(config.tracking_uri, identity, config.folder, system_metrics=config.system_metrics, writer=writer)
    options = {name: value for name, value in config.model_dump(mode="json").items() if value is not None}
    options["tracking_uri"] = redact(config.tracking_uri)
    tracker.start_study(
        {**options, "epochs": prepared.epochs},
        {"data_checksum": prepared.checksum},
        dataset=dataset_note(prepared.experiment.name, prepared.data, prepared.checksum),
    )
    return tracker


def _search(
    prepared: Prepared,
    tracker: Tracker,
    ray: Connection,
    arrays: Any,
    times: Times,
    *,
    gpus: float,
    concurrency: int,
    quiet: bool,
    mirror: Mirror | None,
) -> Finished:
    from tuner import ray_run
    from tuner.live_pictures import pictures_of
    from tuner.searcher import OptunaSearcher
    from tuner.study import StudyRun
    from tuner.trial import CHECKPOINTS, TrialSetup, weights_file

    config, goal = prepared.config, prepared.goal
    weights_folder = config.folder / ".weights"
    searcher = OptunaSearcher(
        prepared.spaces,
        goal.lowest,
        sampler=config.sampler,
        seed=config.seed,
        journal=config.folder / JOURNAL,
        name=config.study,
        layout=layout_of(prepared.spaces, goal),
        earlier=prepared.earlier,
    )
    ended = searcher.finished()
    spent = max((record.elapsed for record in ended), default=0.0)  # by earlier processes
    deadline = None if config.time_budget is None else times.began + config.time_budget - spent
    stop = ray_run.StopWhen(deadline, (lambda: mirror.lost) if mirror else str)
    progress = Progress(
        config.trials, goal, quiet=quiet, deadline=deadline, finished_before=len(ended), epochs=prepared.epochs
    )
    halving = halving_for(config, goal, prepared.epochs)
    checkpoints = config.storage / config.study / CHECKPOINTS
    if isinstance(checkpoints, Path):
        checkpoints.mkdir(exist_ok=True)
    study = StudyRun(
        config,
        goal,
        searcher,
        tracker,
        progress,
        weights_folder,
        weights_file,
        halving,
        checkpoints=checkpoints if isinstance(checkpoints, Path) else None,
    )
    if mirror is not None:
        mirror.also = lambda: sweep(checkpoints, searcher.running)
    setup = TrialSetup(
        prepared.experiment,
        prepared.epochs,
        config.seed,
        device="cuda" if gpus else "cpu",
        weights_folder=weights_folder if mirror is None else None,
        source=config.experiment,
        checkpoints=checkpoints,
        rungs=halving.rungs,
    )
    ray_states: dict[str, str] = {}
    with progress, interruptible(stop, ray), pictures_of(prepared, study):
        if not (study.full or study.out_of_patience):
            ray_states = ray_run.run_trials(study, setup, arrays, gpus=gpus, concurrency=concurrency, stop=stop)
    if stop.disk:
        raise DiskFull(stop.disk)
    if stop.lost:
        raise TakenOver(stop.lost)
    if stop.out_of_time:
        for record in study.running():
            study.end(record.number, TrialState.PRUNED, "the time budget was used up")
    retrained: list[Retrained] = []
    if config.final_seeds and not stop.asked:
        start = time.monotonic()
        retrained = _train_best_again(prepared, study, setup, arrays, gpus)
        study.training_seconds += (time.monotonic() - start) * concurrency
    ray.end()
    if mirror is not None:
        ray.ended()  # and nobody writes any more
        mirror.settle()
    finished = conclude(prepared, study, stop, times, concurrency, retrained)
    states = searcher.states()
    optuna_states = {record.name: states[number] for number, record in study.records.items()}
    return replace(finished, ray_states=ray_states, optuna_states=optuna_states)


def _train_best_again(
    prepared: Prepared, study: StudyRun, setup: TrialSetup, arrays: Any, gpus: float
) -> list[Retrained]:
    """Each method's best under fresh seeds, with its accuracies on the test data."""
    from tuner.best import measuring_device, test_accuracy
    from tuner.ray_run import train_again

    config = prepared.config
    chosen = best_of_each(study.records.values(), config.method, prepared.goal)
    networks = train_again(setup, arrays, jobs(chosen, config.final_seeds), cpus=config.cpus_per_trial, gpus=gpus)
    device = measuring_device(config)
    accuracies = [
        None if network is None else test_accuracy(prepared.experiment, prepared.data, network, device)
        for network in networks
    ]
    return summarise(chosen, accuracies, config.final_seeds)


def halving_for(config: StudyConfig, goal: Goal, epochs: int) -> Halving:
    """Early stopping as the study wants it."""
    if config.scheduler == "none":
        return Halving((), target=None)
    if goal.spans:
        return LikeStopping(rung_epochs(epochs), low=goal.lowest, high=goal.highest)
    return Halving(rung_epochs(epochs), target=goal.lowest)


@contextmanager
def _disk_errors_told() -> Iterator[None]:
    """A disk that is full, wherever that is found out, is no fault of this program's."""
    from tuner.trial import disk_error, one_line

    try:
        yield
    except Exception as error:
        if not disk_error(error):
            raise
        raise DiskFull(one_line(error)) from error
