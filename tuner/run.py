"""Runs a study from its configuration to its files: prepare, search, judge the best, write."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from experiments import Data, DataUnavailable, Experiment, find
from experiments.registry import BUILT_IN as EXPERIMENTS
from search_spaces import BUILT_IN as SPACES
from search_spaces import Space, load_space
from tuner.config import StudyConfig, UsageError, unknown
from tuner.display import Progress
from tuner.final_seeds import Retrained, best_of_each, jobs, summarise
from tuner.mlflow_store import StudyIdentity
from tuner.records import TrialState
from tuner.results import StudyOutcome, StudySeconds, write_atomically, write_results
from tuner.tracking import Tracker
from tuner.tracking_uri import check_tracking_uri, redact

STUDY_YAML = "study.yaml"
_JOURNAL = "optuna.journal"
_PACKAGES = ("tune-sparsity", "torch", "torchvision", "ray", "optuna", "mlflow", "numpy")


@dataclass(frozen=True)
class Prepared:
    """A study whose every input has been checked, before anything is written."""

    config: StudyConfig
    experiment: Experiment
    data: Data
    spaces: list[Space]

    @property
    def epochs(self) -> int:
        return self.config.epochs or self.experiment.recipe.epochs

    @cached_property
    def checksum(self) -> str:
        """The data's; read once, since the data may be large and several records name it."""
        return self.data.checksum()


@dataclass(frozen=True)
class Finished:
    """A study's outcome and how it ended."""

    outcome: StudyOutcome
    interrupted: bool
    problems: list[str]  # what MLflow did not get
    first_failure: str  # the first failed trial's reason, if any
    ray_states: dict[str, str]  # Ray's own state of every trial that it ran, by its name
    optuna_states: dict[str, str]  # Optuna's, of every trial that was begun


def prepare(config: StudyConfig, *, resume: bool = False) -> Prepared:
    """Checks everything that a study needs and loads its data; writes nothing.

    Raises:
        UsageError: with one line about the first thing that is wrong.
    """
    if ":" not in config.experiment and config.experiment not in EXPERIMENTS:
        raise UsageError(
            unknown("experiment", config.experiment, EXPERIMENTS) + ", path/to/file.py:name or module:name"
        )
    try:
        check_tracking_uri(config.tracking_uri)
        experiment = find(config.experiment)
        spaces = _spaces(config)
    except (ValueError, OSError) as error:  # BadFile is a ValueError, a name too long for a path an OSError
        raise UsageError(str(error)) from None
    check_address(config.address)
    check_storage(config.storage)
    if config.folder.exists() != resume:
        raise UsageError(
            f"no study {config.study!r} in {config.storage}"
            if resume
            else f"study {config.study!r} exists in {config.storage}: choose another --study, or go on with it: "
            f"tune-sparsity resume {config.study}"
        )
    try:
        data = experiment.load(config.data_dir)
    except DataUnavailable as error:
        raise UsageError(str(error)) from None
    return Prepared(config, experiment, data, spaces)


def _spaces(config: StudyConfig) -> list[Space]:
    """One space for each method: its own, or the one of --space."""
    if config.space is None:
        return [load_space(method, config.target) for method in config.method]
    if config.space not in SPACES and Path(config.space).suffix not in {".yaml", ".yml"}:
        raise UsageError(unknown("space", config.space, SPACES) + ", or a .yaml file")
    space = load_space(config.space, config.target)
    if config.method != [space.method]:
        raise UsageError(f"--space {config.space} is for --method {space.method}, not {','.join(config.method)}")
    return [space]


def check_address(address: str | None) -> None:
    """Raises UsageError unless something answers at HOST:PORT or ray://HOST:PORT: Ray itself would try for minutes."""
    if address in (None, "auto"):
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise UsageError(f"--address {address!r}: accepted are auto, HOST:PORT and ray://HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"--address {address!r}: nothing answers there ({error})") from None


def check_storage(folder: Path) -> None:
    """Raises UsageError unless files can be made in `folder`; leaves no trace."""
    try:
        existing = folder
        while not existing.exists():
            existing = existing.parent
        probe = existing / f".tune-sparsity-{os.getpid()}"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise UsageError(
            f"--storage {folder}: cannot write there ({error.strerror}): give a folder that can be written to"
        ) from None


def run_study(prepared: Prepared, *, resume: bool = False, quiet: bool = False) -> Finished:
    """Searches, judges the best network on the test data, and writes all files of the study.

    Args:
        prepared: from `prepare`.
        resume: go on with the study in its folder instead of beginning one.
        quiet: no progress on the terminal.

    Raises:
        UsageError: if the cluster cannot be reached or cannot hold a trial.
    """
    # Imported here: they take seconds, and bad input should be told before that.
    from tuner import ray_run

    config, began = prepared.config, time.monotonic()
    with ray_run.ray_cluster(config):
        gpus = ray_run.gpus_per_trial(config)
        concurrency = ray_run.slots(config, gpus)
        config.folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            write_study_yaml(prepared, device="cuda" if gpus else "cpu")
        tracker = _start_tracker(prepared)
        try:
            return _search(prepared, tracker, began, gpus=gpus, concurrency=concurrency, quiet=quiet)
        finally:
            tracker.close()


def _start_tracker(prepared: Prepared) -> Tracker:
    config = prepared.config
    identity = StudyIdentity(
        study=config.study, experiment=prepared.experiment.name, target=config.target, method=",".join(config.method)
    )
    tracker = Tracker(config.tracking_uri, identity)
    options = {name: value for name, value in config.model_dump(mode="json").items() if value is not None}
    options["tracking_uri"] = redact(config.tracking_uri)
    tracker.start_study({**options, "epochs": prepared.epochs}, {"data_checksum": prepared.checksum})
    return tracker


def _search(
    prepared: Prepared, tracker: Tracker, began: float, *, gpus: float, concurrency: int, quiet: bool
) -> Finished:
    from tuner import ray_run
    from tuner.best import test_accuracy
    from tuner.searcher import OptunaSearcher
    from tuner.study import StudyRun
    from tuner.trial import TrialSetup, shared_arrays, weights_file

    config = prepared.config
    weights_folder = config.folder / ".weights"
    searcher = OptunaSearcher(
        prepared.spaces,
        config.target,
        sampler=config.sampler,
        seed=config.seed,
        journal=config.folder / _JOURNAL,
        name=config.study,
    )
    deadline = None if config.time_budget is None else began + config.time_budget
    stop = ray_run.StopWhen(deadline)
    finished_before = len(searcher.finished())
    progress = Progress(config.trials, config.target, quiet=quiet, deadline=deadline, finished_before=finished_before)
    study = StudyRun(config, searcher, tracker, progress, weights_folder, weights_file)
    setup = TrialSetup(prepared.experiment, prepared.epochs, config.seed, "cuda" if gpus else "cpu", weights_folder)
    ray_states: dict[str, str] = {}
    with progress, _interruptible(stop):
        if len(study.records) < config.trials:
            ray_states = ray_run.run_trials(
                study, setup, shared_arrays(prepared.data), gpus=gpus, concurrency=concurrency, stop=stop
            )
    if stop.out_of_time:
        for record in study.running():
            study.end(record.number, TrialState.PRUNED, "the time budget was used up")
    retrained: list[Retrained] = []
    if config.final_seeds and not stop.asked:
        chosen = best_of_each(study.records.values(), config.method, config.target)
        arrays = shared_arrays(prepared.data)
        start = time.monotonic()
        networks = ray_run.train_again(
            setup, arrays, jobs(chosen, config.final_seeds), cpus=config.cpus_per_trial, gpus=gpus
        )
        study.training_seconds += (time.monotonic() - start) * concurrency
        accuracies = [test_accuracy(prepared.experiment, prepared.data, network) for network in networks]
        retrained = summarise(chosen, accuracies, config.final_seeds)
    finished = _conclude(prepared, study, stop, began, concurrency, retrained)
    states = searcher.states()
    optuna_states = {record.name: states[number] for number, record in study.records.items()}
    return replace(finished, ray_states=ray_states, optuna_states=optuna_states)


@contextmanager
def _interruptible(stop: Any) -> Iterator[None]:
    """Ctrl-C once ends the search cleanly; twice at once."""

    def ask(signum: int, frame: Any) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        print("Interrupted: ending the running trials. Again to end at once.", file=sys.stderr)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _conclude(
    prepared: Prepared, study: Any, stop: Any, began: float, concurrency: int, retrained: list[Retrained]
) -> Finished:
    """Judges the best network, writes the files, and tells MLflow how the study ended."""
    from tuner.best import write_best
    from tuner.pareto import hypervolume, points_of
    from tuner.pictures import front_figure, write_html

    config, tracker = prepared.config, study.tracker
    records = [record for record in study.records.values() if record.state is not TrialState.RUNNING]
    best = None
    if (record := study.best()) is not None and not stop.asked:
        best = write_best(study.best_weights(), config.folder, prepared.experiment, prepared.data, record)
    outcome = StudyOutcome(
        study=config.study,
        target=config.target,
        experiment=prepared.experiment.name,
        method=",".join(config.method),
        records=records,
        folder=config.folder,
        test_accuracy=None if best is None else best.test_accuracy,
        weights=None if best is None else best.weights,
        tracking_uri=config.tracking_uri,
        retrained=retrained,
    )
    title = f"{prepared.experiment.name}: accuracy against sparsity"
    write_html(front_figure(records, config.target, title), config.folder / "pareto.html")
    written = write_results(outcome)
    metrics = {
        "hypervolume": hypervolume(points_of(outcome.front), (config.target, 0.0)),
        "feasible_trials": float(sum(record.feasible(config.target) for record in records)),
    }
    if outcome.best is not None and outcome.best.val_accuracy is not None:
        metrics["best_val_accuracy"] = outcome.best.val_accuracy
    if best is not None:
        metrics["best_test_accuracy"] = best.test_accuracy
    all_failed = bool(records) and all(record.state is TrialState.FAILED for record in records)
    artifacts = [*written, config.folder / "pareto.html", config.folder / STUDY_YAML]
    tracker.finish_study(
        status="KILLED" if stop.asked else "FAILED" if all_failed else "FINISHED",
        metrics=metrics,
        pareto={record.number for record in outcome.front},
        artifacts=[*artifacts, *([config.folder / "best"] if best is not None else [])],
    )
    tracker.close()
    total = time.monotonic() - began
    seconds = StudySeconds(
        total=total,
        training=study.training_seconds / concurrency,
        sampling=study.sampling_seconds,
        tracking=tracker.seconds,
    )
    outcome = replace(
        outcome, seconds=seconds, mlflow_experiment_id=tracker.experiment_id, mlflow_run_id=tracker.run_id
    )
    write_results(outcome)
    if best is not None:
        shutil.rmtree(config.folder / ".weights", ignore_errors=True)
    first_failure = next((record.reason for record in records if record.state is TrialState.FAILED), "")
    return Finished(outcome, stop.asked, tracker.problems, first_failure, {}, {})


def write_study_yaml(prepared: Prepared, device: str) -> None:
    """The whole resolved configuration, enough to run the study again with --config, and what it ran on."""
    config = prepared.config.model_dump(mode="json")
    if redact(config["tracking_uri"]) != config["tracking_uri"]:
        del config["tracking_uri"]  # it holds a password: a resume takes it from the environment or the command line
    config["epochs"] = prepared.epochs
    about = {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "device": device,
        "data_sha256": prepared.checksum,
    }
    text = yaml.safe_dump({**config, "about": about}, sort_keys=False)
    write_atomically(prepared.config.folder / STUDY_YAML, text)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
