"""Finds and checks the experiment and the data of a configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from tune_sparsity.experiments import Data, DataUnavailable, Experiment, Loaded, LoopError, OwnLoop, find
from tune_sparsity.experiments.base import are_classes, in_evaluation
from tune_sparsity.experiments.checks import Finding, Level, Subject, first_look
from tune_sparsity.experiments.checks.shapes import well_formed
from tune_sparsity.experiments.metrics import ACCURACY, metric_of
from tune_sparsity.experiments.registry import BUILT_IN as EXPERIMENTS
from tune_sparsity.experiments.user_code import described
from tune_sparsity.experiments.user_reads import Reader, watching
from tune_sparsity.sparsity.neurons.graph import require_torch_pruning
from tune_sparsity.sparsity.patterns import Neurons, pattern_from
from tune_sparsity.tuner.config.study_config import StudyConfig
from tune_sparsity.tuner.errors import UsageError, unknown
from tune_sparsity.tuner.study.objective import Objective


def sound_data(
    config: StudyConfig,
    experiment: Experiment,
    load: Callable[[], Data] | None = None,
    warn: Callable[[Finding], object] | None = None,
) -> Data:
    """Load the experiment's data, check on one batch that they fit its network, loss and metric, and return the data.

    Args:
        config: the study's configuration.
        experiment: the experiment.
        load: a function that returns the data. If None, the data are loaded with `experiment.load`.
        warn: a function that is called with each warning of the checks. If None, warnings are ignored.

    Raises:
        UsageError: if the data cannot be loaded, or do not fit the network, the loss or the metric.
    """
    try:
        with watching(Reader.DATA):
            data = load() if load else experiment.load(config.data_dir)
    except DataUnavailable as error:
        raise UsageError(str(error)) from None
    except (Exception, SystemExit) as error:
        if config.experiment in EXPERIMENTS:
            raise
        raise UsageError(f"--experiment: loading the data of {config.experiment} failed: {described(error)}") from None
    for finding in first_look(experiment, data, told=warn is not None, data_dir=config.data_dir):
        if finding.level is Level.FAILED:
            raise UsageError(
                f"--experiment {config.experiment}: {finding.check}: {finding.text} "
                f"(tune-sparsity check {config.experiment} says more)"
            )
        if finding.level is Level.WARNING and warn is not None:
            warn(finding)
    return data


def experiment_of(config: StudyConfig) -> Experiment:
    """Return the experiment of a configuration. If --pattern is given, the zeros in the experiment's network get this
    pattern. If the experiment is a user's own training loop, run the loop up to its first step, because only the loop
    can make the network.

    Raises:
        UsageError: if there is no such experiment, if a part of it is missing or has a wrong type, if the pattern needs
            a package that is not installed, or if the loop fails before its first step.
    """
    experiment = find_experiment(config.experiment)
    loop = isinstance(experiment, OwnLoop)
    if not loop and (problem := next(well_formed(Subject(experiment)), None)) is not None:
        raise UsageError(f"--experiment {config.experiment}: {problem.text}")
    if config.pattern is not None:
        experiment = experiment.with_pattern(pattern_from(config.pattern))
    if isinstance(pattern := experiment.layers.pattern, Neurons):
        if config.max_macs is not None or config.max_latency is not None:
            experiment = experiment.with_pattern(replace(pattern, by_macs=True))
        try:
            require_torch_pruning()
        except ValueError as error:
            raise UsageError(f"--pattern {pattern}: {error}") from None
    if not isinstance(experiment, OwnLoop):
        return experiment
    from tune_sparsity.experiments.own.first_look import looked_at

    try:
        return looked_at(experiment, config.data_dir)
    except LoopError as error:
        raise UsageError(f"--experiment {config.experiment}: {error}") from None


def find_experiment(name: str) -> Experiment:
    """Return the experiment that the value of --experiment names.

    Raises:
        UsageError: if there is no such experiment, or if its file or module cannot be imported.
    """
    if ":" not in name and name not in EXPERIMENTS and not name.endswith(".py"):
        accepted = f"{unknown('experiment', name, EXPERIMENTS)}, path/to/file.py:name or module:name"
        raise UsageError(f"--experiment: {accepted}")
    try:
        return find(name)
    except (ValueError, OSError) as error:
        raise UsageError(f"--experiment: {error}") from None


def check_group(config: StudyConfig, experiment: Experiment, data: Data, *, costs_known: bool) -> None:
    """Check whether networks of the experiment can form a group, if the option --group is given. A group is a pair of
    networks (see tuner.results.cascade). The experiment must be a classification with accuracy as its metric.

    Args:
        config: the study's configuration.
        experiment: the experiment.
        data: the experiment's data.
        costs_known: whether the multiply-adds of the experiment's networks are known.

    Raises:
        UsageError: if the option is given, and the networks cannot form a group.
    """
    if config.group is None:
        return
    wrong, metric = "", metric_of(experiment.metric)
    if isinstance(experiment, OwnLoop):
        wrong = "is a loop of your own, so this command cannot run its networks"
    elif metric.name != ACCURACY or not metric.each:
        wrong = f"is judged by {metric.name}, but a group needs the accuracy, with a score for each example"
    elif config.group == "reflect" and isinstance(data.train, Loaded) and data.train.iterable:
        wrong = "has an IterableDataset as training data, but reflect must leave out parts of these data"
    else:
        some = data.val.first(2)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            outputs = experiment.outputs(in_evaluation(experiment.network()), some.x)
        if not are_classes(outputs, some.y) or outputs.shape[1] < 2:
            wrong = "is no classification with one label for each example and a logit for each of two or more classes"
        elif not costs_known:
            wrong = "has a network whose multiply-adds are not known"
    if wrong:
        raise UsageError(f"--group {config.group}: {experiment.name} {wrong}")


def objective_of(experiment: Experiment) -> Objective:
    """Return the objective of a study of this experiment: its metric, with direction and unit. Raise UsageError if the
    metric cannot be used."""
    try:
        metric = metric_of(experiment.metric)
    except ValueError as error:
        raise UsageError(f"--experiment: the metric of {experiment.name} cannot be used: {error}") from None
    return Objective(metric.name, metric.maximize, metric.percent)
