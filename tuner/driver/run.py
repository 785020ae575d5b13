"""Runs a prepared study: starts the tracker, runs the trials, trains the best trials again, and concludes the study."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from subprocess import Popen
from typing import TYPE_CHECKING, Any

from tune_sparsity.sparsity.patterns import UNSTRUCTURED
from tune_sparsity.tuner.cluster.connection import Connection
from tune_sparsity.tuner.config.files import keep_extent, write_study_yaml
from tune_sparsity.tuner.driver.finish import Finished, Times, conclude
from tune_sparsity.tuner.driver.prepare import Prepared
from tune_sparsity.tuner.errors import redact
from tune_sparsity.tuner.reports.progress import Progress
from tune_sparsity.tuner.results.retraining import Retraining
from tune_sparsity.tuner.search.asha import halving_for
from tune_sparsity.tuner.search.planner import planner_for
from tune_sparsity.tuner.storage.lease import TakenOver
from tune_sparsity.tuner.storage.sync import Mirror
from tune_sparsity.tuner.study.layout import JOURNAL, WEIGHTS
from tune_sparsity.tuner.study.objective import ACCURACY
from tune_sparsity.tuner.study.trial import TrialState
from tune_sparsity.tuner.system.signals import interruptible, terminable
from tune_sparsity.tuner.tracking.dataset import dataset_note
from tune_sparsity.tuner.tracking.outbox import StudyIdentity
from tune_sparsity.tuner.tracking.tracker import Tracker
from tune_sparsity.tuner.worker.checkpoints import sweep

if TYPE_CHECKING:
    from tune_sparsity.tuner.driver.ray_tune import StopWhen
    from tune_sparsity.tuner.driver.study_run import StudyRun
    from tune_sparsity.tuner.worker.trainable import TrialSetup

_DENSE_IN_TAG = 40  # at most so many dense weight matrices are named in a tag, which holds 5,000 characters in MLflow
AT_ONCE = 5.0  # seconds to finish writing to MLflow when a study ends unexpectedly; `resume` writes the rest


class DiskFull(Exception):
    """The study's folder can no longer be written to. The message is the reason, in one line. The study can be resumed,
    and no ended trial is lost."""


def run_study(
    prepared: Prepared,
    ray: Connection,
    *,
    resume: bool = False,
    quiet: bool = False,
    launched: float | None = None,
    writer: Popen[str] | None = None,
) -> Finished:
    """Search, measure the best network on the test data, and write all files of the study.

    Args:
        prepared: the result of `prepare`.
        ray: the connection to Ray. This function waits until Ray is ready, and ends the connection after the trials.
        resume: whether to continue an existing study, instead of beginning a new study.
        quiet: whether to show no progress on the terminal.
        launched: the value of time.monotonic() when the study's total time began. If None, this time begins now.
        writer: the process that writes to MLflow, if it has been started already.

    Raises:
        UsageError: if the cluster cannot be reached or has no room for a trial, or if another process runs the study.
        DiskFull: if the study's folder cannot be written to; the study can be resumed.
        TakenOver: if another process took over the study while this process could not reach the object store.
        KeyboardInterrupt: at the second Ctrl-C; the study can be resumed.
    """
    config, began = prepared.config, time.monotonic()
    launched = began if launched is None else launched
    with ExitStack() as stack:
        if resume:  # before any process is started
            mirror = stack.enter_context(config.storage.claim(config.study, resume=True))
        # Ray prints a node's death on standard output, which must hold the result of --json alone.
        stack.enter_context(redirect_stdout(sys.stderr))
        ray.begin()
        from tune_sparsity.tuner.cluster.node_data import for_workers
        from tune_sparsity.tuner.driver import ray_tune  # this import takes seconds, while a private Ray starts

        ray.wait()
        gpus = ray_tune.gpus_per_trial(config)
        concurrency = ray_tune.slots(config, gpus)
        arrays = for_workers(config, prepared.experiment, prepared.data, lambda: prepared.checksum)
        if not resume:
            mirror = stack.enter_context(config.storage.claim(config.study, resume=False))
        with terminable(ray), _disk_errors_told():
            if resume:
                keep_extent(config)
            else:
                _write_study_yaml(prepared, "cuda" if gpus else "cpu")
            with _tracked(prepared, writer) as tracker:
                return _search(
                    prepared,
                    tracker,
                    ray,
                    arrays,
                    Times(launched, began),
                    gpus=gpus,
                    concurrency=concurrency,
                    quiet=quiet,
                    mirror=mirror,
                )


def _write_study_yaml(prepared: Prepared, device: str) -> None:
    own = prepared.config
    write_study_yaml(own, epochs=prepared.epochs, checksum=prepared.checksum, device=device, goal=prepared.goal)


@contextmanager
def _tracked(prepared: Prepared, writer: Popen[str] | None) -> Iterator[Tracker]:
    """Return a context manager. It yields a tracker that logs the study to MLflow. After the block, the tracker is
    closed. If the block fails, the tracker gets AT_ONCE seconds to finish."""
    tracker = _start_tracker(prepared, writer)
    try:
        yield tracker
    except BaseException:
        tracker.close(AT_ONCE)
        raise
    tracker.close()


def _start_tracker(prepared: Prepared, writer: Popen[str] | None) -> Tracker:
    config = prepared.config
    identity = StudyIdentity(
        study=config.study,
        experiment=prepared.experiment.name,
        target=prepared.goal.option,
        method=",".join(config.method),
    )
    tracker = Tracker(
        config.tracking_uri,
        identity,
        config.folder,
        system_metrics=config.system_metrics,
        writer=writer,
        size=prepared.size,
    )
    options = {name: value for name, value in config.model_dump(mode="json").items() if value is not None}
    options |= {"tracking_uri": redact(config.tracking_uri), "method": identity.method}
    if (pattern := prepared.size.pattern) != UNSTRUCTURED:
        options["pattern"] = str(pattern)
    objective = prepared.goal.objective
    metric = {} if objective == ACCURACY else {"metric": str(objective)}
    tags = {"data_checksum": prepared.checksum, "dense_weights": prepared.size.dense_text(_DENSE_IN_TAG)}
    tracker.start_study(
        {**options, "epochs": prepared.epochs, **metric},
        {name: text for name, text in tags.items() if text},
        dataset=_dataset(prepared),
    )
    return tracker


def _dataset(prepared: Prepared) -> dict[str, Any]:
    """Return MLflow's description of the data; an empty dict if the user's own loop loads the data."""
    checksum = prepared.checksum
    return dataset_note(prepared.experiment.name, prepared.data, checksum) if checksum else {}


@dataclass(frozen=True)
class _Built:
    """A study that is ready to run.

    Attributes:
        study: the study with its searcher and its listeners.
        setup: the settings that all trials share.
        stop: ends the study early.
    """

    study: StudyRun
    setup: TrialSetup
    stop: StopWhen


def _build(
    prepared: Prepared, tracker: Tracker, times: Times, *, gpus: float, quiet: bool, mirror: Mirror | None
) -> _Built:
    """Build the study with its searcher and listeners, the settings of its trials, and the object that ends it
    early."""
    from tune_sparsity.tuner.driver import listeners
    from tune_sparsity.tuner.driver.live_plots import live_pictures
    from tune_sparsity.tuner.driver.ray_tune import StopWhen
    from tune_sparsity.tuner.driver.study_run import StudyRun
    from tune_sparsity.tuner.search.searcher import OptunaSearcher
    from tune_sparsity.tuner.worker.shipping import write_packed

    config, goal = prepared.config, prepared.goal
    weights_folder = config.folder / WEIGHTS
    searcher = OptunaSearcher(
        prepared.spaces,
        goal.lowest,
        sampler=config.sampler,
        seed=config.seed,
        journal=config.folder / JOURNAL,
        name=config.study,
        planner=planner_for(prepared.spaces, goal, config.trials),
        earlier=prepared.earlier,
        objective=goal.objective,
    )
    ended = searcher.finished()
    spent = max((record.elapsed for record in ended), default=0.0)  # the seconds that earlier processes spent
    deadline = None if config.time_budget is None else times.began + config.time_budget - spent
    stop = StopWhen(deadline, (lambda: mirror.lost) if mirror else str)
    progress = Progress(
        config.trials, goal, quiet=quiet, deadline=deadline, finished_before=len(ended), epochs=prepared.epochs
    )
    halving = halving_for(config.scheduler, goal, prepared.epochs)
    checkpoints = config.storage.checkpoints(config.study)
    told = [
        listeners.TrackTrials(tracker),
        listeners.LogEpochs(config.folder),
        listeners.KeepNetworks(weights_folder),
        *([listeners.SweepCheckpoints(checkpoints)] if mirror is None else []),
        listeners.ShowProgress(progress),
        listeners.WriteTables(config.folder, prepared.size),
        live_pictures(prepared, tracker),
    ]
    study = StudyRun(config, goal, searcher, told, halving)
    if mirror is not None:  # in an object store, the mirror's thread removes old checkpoints
        mirror.also = lambda: sweep(checkpoints, searcher.running)
    setup = _setup(prepared, gpus=gpus, mirror=mirror, rungs=halving.rungs)
    write_packed(config.folder, prepared.experiment, config.experiment)
    return _Built(study, setup, stop)


def _setup(prepared: Prepared, *, gpus: float, mirror: Mirror | None, rungs: tuple[int, ...]) -> TrialSetup:
    """Return the settings that all trials share."""
    from tune_sparsity.tuner.driver.ray_tune import with_ranks
    from tune_sparsity.tuner.worker.trainable import TrialSetup

    config = prepared.config
    setup = TrialSetup(
        prepared.experiment,
        prepared.epochs,
        config.seed,
        device="cuda" if gpus else "cpu",
        weights_folder=config.folder / WEIGHTS if mirror is None else None,
        source=config.experiment,
        limit=prepared.limit,
        spread=config.ensemble is not None,
        uses=prepared.uses,
        checkpoints=config.storage.checkpoints(config.study),
        rungs=rungs,
        loads=not prepared.data.in_memory,
    )
    return with_ranks(setup, config, gpus)


def _run_trials(built: _Built, ray: Connection, arrays: Any, *, gpus: float, concurrency: int) -> dict[str, str]:
    """Run the remaining trials of the study. Return a dict from the name of each of these trials to the trial's state
    in Ray.

    Raises:
        DiskFull: if the study's folder cannot be written to.
        TakenOver: if another process has taken over the study.
    """
    from tune_sparsity.tuner.driver.ray_tune import run_trials

    study, stop = built.study, built.stop
    ray_states: dict[str, str] = {}
    with interruptible(stop, ray), study.lasting():
        if not study.why_ended and not stop.stop_all():
            ray_states = run_trials(study, built.setup, arrays, gpus=gpus, concurrency=concurrency, stop=stop)
    if stop.disk:
        raise DiskFull(stop.disk)
    if stop.lost:
        raise TakenOver(stop.lost)
    if stop.out_of_time:
        for record in study.running():
            study.end(record.number, TrialState.PRUNED, "the time budget was used up")
    return ray_states


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
    """Run the study's trials, train the best trials again if --final-seeds is given, and conclude the study."""
    from tune_sparsity.tuner.driver.retrain import train_best_again

    built = _build(prepared, tracker, times, gpus=gpus, quiet=quiet, mirror=mirror)
    ray_states = _run_trials(built, ray, arrays, gpus=gpus, concurrency=concurrency)
    study, stop = built.study, built.stop
    retrained = Retraining()
    if prepared.config.final_seeds and not stop.asked:
        start = time.monotonic()
        retrained = train_best_again(prepared, study, built.setup, arrays, gpus, concurrency)
        study.training_seconds += (time.monotonic() - start) * concurrency
    ray.end()
    if mirror is not None or prepared.goal.max_latency is not None:
        ray.ended()  # workers must not write while the mirror settles, or disturb the timing of networks
    if mirror is not None:
        mirror.settle()
    finished = conclude(prepared, study, tracker, stop, times, concurrency, retrained)
    states = study.searcher.states()
    optuna_states = {record.name: states[number] for number, record in study.records.items()}
    return replace(finished, ray_states=ray_states, optuna_states=optuna_states)


@contextmanager
def _disk_errors_told() -> Iterator[None]:
    """Return a context manager. If a full or failing disk causes an error in its block, it raises DiskFull instead,
    with a message in one line."""
    from tune_sparsity.tuner.errors import disk_error, one_line

    try:
        yield
    except Exception as error:
        if not disk_error(error):
            raise
        raise DiskFull(one_line(error)) from error
