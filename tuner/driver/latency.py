"""Converts the limit of --max-latency into a limit of multiply-adds for the search. At the end of a study, measures
which network meets the limit of milliseconds."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tune_sparsity.experiments import Data, Experiment
from tune_sparsity.experiments.base import in_evaluation
from tune_sparsity.experiments.user_code import described
from tune_sparsity.sparsity.cost.multiply_adds import Uses
from tune_sparsity.sparsity.layers import Layer
from tune_sparsity.sparsity.neurons.groups import NeuronGroups
from tune_sparsity.sparsity.neurons.removal import smaller
from tune_sparsity.sparsity.neurons.selection import sparsity_of_macs
from tune_sparsity.sparsity.patterns import Neurons, Pattern
from tune_sparsity.tuner.config.files import MAX_MACS
from tune_sparsity.tuner.config.study_config import StudyConfig
from tune_sparsity.tuner.errors import UsageError, one_line
from tune_sparsity.tuner.results.inference_cost import Timing, timed
from tune_sparsity.tuner.results.tables import latencies_in
from tune_sparsity.tuner.search.monotone import FallingFit
from tune_sparsity.tuner.study.goal import Goal, GoalKind
from tune_sparsity.tuner.study.layout import RESULT_JSON, WEIGHTS, weights_file
from tune_sparsity.tuner.study.trial import TrialRecord

_SHARES = (0.7, 0.5, 0.35, 0.2, 0.1, 0.0)  # the share of the removable multiply-adds that each smaller network keeps
_MARGIN = 0.95  # the allowed expected time, divided by the limit: with this margin, most networks meet the limit
_SECONDS = 2.0  # the time to measure all networks of a curve together
_LAST_SECONDS = 1.0  # the time to measure one network at the end of a study


class LatencyCurve:
    """Estimates the milliseconds of a forward pass from the number of multiply-adds for one example.

    The curve is a least-squares fit to measured points. It never falls, and is linear between the points.

    Args:
        measured: a dict from multiply-adds for one example to milliseconds, with an entry for the dense network and for
            each smaller network.
    """

    def __init__(self, measured: Mapping[int, float]) -> None:
        self.fewest, self.dense = min(measured), max(measured)
        self._fit = FallingFit([(macs, -ms) for macs, ms in measured.items()])

    def __call__(self, macs: int) -> float:
        return -self._fit(macs)

    def most_macs(self, limit: float) -> int | None:
        """Return the largest number of multiply-adds whose expected time is at most 95 % of a limit of milliseconds.
        Because of this margin of 5 %, most networks of the search meet the limit. The margin is smaller if the expected
        time of the smallest network is more than 95 % of the limit.

        Args:
            limit: the limit in milliseconds.

        Returns:
            The number of multiply-adds. If the expected time of the dense network is at most the limit, this is the
            number of the dense network. The margin has no effect in this case. None if the expected time of the
            smallest network is above the limit.
        """
        if self(self.dense) <= limit:
            return self.dense
        if self(self.fewest) > limit:
            return None
        within, numbers = max(_MARGIN * limit, self(self.fewest)), range(self.fewest, self.dense + 1)
        return numbers[bisect_right(numbers, within, key=self) - 1]


def goal_within(config: StudyConfig, pattern: Pattern, layers: Sequence[Layer], most: int | None) -> Goal:
    """Return the goal of --max-macs or --max-latency. Until `tuner.driver.prepare` has found which neurons of the
    network can be removed, the target sparsity of the goal is 0.

    Args:
        config: the study's configuration.
        pattern: the pattern of the zeros.
        layers: the prunable layers of the network.
        most: the largest allowed number of multiply-adds; None if this number is not known yet.

    Raises:
        UsageError: if the pattern of the zeros is not `neurons`, or if the smallest network needs more than `most`
            multiply-adds.
    """
    given = f"--max-macs {config.max_macs}" if config.max_latency is None else _given(config)
    if not isinstance(pattern, Neurons):
        raise UsageError(f"{given}: only whole neurons save multiply-adds on all hardware: add --pattern neurons")
    goal = Goal((0.0,), max_macs=most, max_latency=config.max_latency, latency_batch=config.latency_batch or 1)
    if most is None or pattern.groups is None or not isinstance(pattern.uses, Uses):
        return goal
    fewest = pattern.uses.macs({layer.name: kept for layer, kept in zip(layers, pattern.groups.fewest, strict=True)})
    if most < fewest:
        raise UsageError(
            f"{given}: even with the fewest neurons in each layer this network needs {fewest:,} multiply-adds"
        )
    return replace(goal, targets=(sparsity_of_macs(pattern.uses, layers, most),))


def expected_macs(
    config: StudyConfig,
    about: Mapping[str, Any],
    experiment: Experiment,
    data: Data,
    model: nn.Module,
    layers: Sequence[Layer],
) -> tuple[int | None, str]:
    """Return the largest number of multiply-adds that is expected to meet the limit of the study.

    For --max-latency, measure the network. For --max-macs, or for a resumed study, measure nothing.

    Args:
        config: the study's configuration.
        about: for a resumed study, the result of `read_about`; otherwise an empty dict.
        experiment: the experiment. Its pattern contains the neurons that can be removed.
        data: the experiment's data.
        model: an untrained network.
        layers: the prunable layers of the network.

    Returns:
        Two values: the number of multiply-adds, and a line for the user about the measurement. The line is "" if
        nothing was measured.

    Raises:
        UsageError: if the smallest network does not meet the limit, or if the network cannot be timed.
    """
    if config.max_latency is None or MAX_MACS in about:
        return about.get(MAX_MACS, config.max_macs), ""
    batch = config.latency_batch or 1
    try:
        curve = measured_curve(experiment, data, model, layers, batch)
    except (Exception, SystemExit) as error:  # the user's network may raise anything
        raise UsageError(
            f"{_given(config)}: the network cannot be timed with a batch size of {batch}: {described(error)}"
        ) from None
    most = curve.most_macs(config.max_latency)
    if most is None:
        raise UsageError(
            f"{_given(config)}: even with the fewest neurons in each layer this network needs "
            f"{curve(curve.fewest):.3g} ms at batch size {batch} on this machine"
        )
    allowed = f"allows about {most:,} of {curve.dense:,} multiply-adds (dense: {curve(curve.dense):.3g} ms)"
    return most, f"latency: {config.max_latency:g} ms at batch size {batch} {allowed}"


def measured_curve(
    experiment: Experiment, data: Data, model: nn.Module, layers: Sequence[Layer], batch: int
) -> LatencyCurve:
    """Measure the forward passes of an untrained network, and of smaller copies of this network. The copies lack the
    least important neurons.

    Args:
        experiment, data, model, layers: as for `expected_macs`.
        batch: the number of examples in a forward pass.
    """
    pattern = experiment.layers.pattern
    assert isinstance(pattern, Neurons)
    groups, uses = pattern.groups, pattern.uses
    assert isinstance(groups, NeuronGroups)
    assert isinstance(uses, Uses)

    def macs_of(kept: Sequence[int]) -> int:
        return uses.macs({layer.name: count for layer, count in zip(layers, kept, strict=True)})

    logs = [layer.weight.detach().abs().log2() for layer in layers]
    dense, fewest = macs_of([log.numel() for log in logs]), macs_of(groups.fewest)
    networks = {dense: in_evaluation(model)}
    for share in _SHARES:
        most = fewest + share * (dense - fewest)
        masks = groups.masks_until(logs, lambda kept, most=most: macs_of(kept) <= most)  # type: ignore[misc]
        macs = macs_of([int(mask.sum()) for mask in masks])
        if macs not in networks:
            networks[macs] = in_evaluation(smaller(model, groups, masks))
    times = timed(networks, _inputs(experiment, data, batch), batch, experiment.forward, seconds=_SECONDS)
    return LatencyCurve({macs: time.ms for macs, time in times.items()})


class Decision(NamedTuple):
    """The result of measuring latencies at the end of a study.

    Attributes:
        goal: the study's goal. `max_macs` is now the number of multiply-adds of the best network that meets the limit
            of milliseconds.
        latencies: a dict from the name of each measured trial to the latency of the trial's network.
        problems: a line for each network that could not be measured.
    """

    goal: Goal
    latencies: Mapping[str, Timing]
    problems: Sequence[str] = ()


def decide(
    goal: Goal, records: Iterable[TrialRecord], folder: Path, experiment: Experiment, data: Data, *, measure: bool
) -> Decision:
    """Measure the best network of an ended search, and then smaller networks, until one meets the limit. If the goal
    has no limit of milliseconds, measure nothing.

    Args:
        goal: the study's goal.
        records: the study's ended trials.
        folder: the study's folder.
        experiment: the experiment. Its pattern contains the neurons that can be removed.
        data: the experiment's data.
        measure: whether to measure networks. If False, the decision contains only the latencies that an earlier process
            of the study has measured.
    """
    known = _earlier(folder) if goal.kind is GoalKind.MAX_LATENCY else {}
    if goal.kind is not GoalKind.MAX_LATENCY or not measure:
        return Decision(goal, known)
    problems = list[str]()

    def latency(record: TrialRecord) -> Timing | None:
        if record.name in known:
            return known[record.name]
        file = weights_file(folder / WEIGHTS, record.number)
        if not file.exists():  # an earlier process ended the study, and kept only the reported network
            return None
        try:
            return exported_latency(file, experiment, data, goal.latency_batch)
        except (Exception, SystemExit) as error:  # the user's network may raise anything
            problems.append(f"the latency of {record.name} was not measured: {one_line(error)}")
            return None

    decided, measured = choose(goal, records, latency)
    return Decision(decided, {**known, **measured}, problems)


def choose(
    goal: Goal, records: Iterable[TrialRecord], latency: Callable[[TrialRecord], Timing | None]
) -> tuple[Goal, dict[str, Timing]]:
    """Choose the best network that meets the goal's limit of milliseconds.

    Args:
        goal: a goal with a limit of milliseconds.
        records: the trials.
        latency: a function that returns the latency of a trial's network, or None if it cannot be measured.

    Returns:
        Two values. The first value is the goal, whose `max_macs` is now the number of multiply-adds of the chosen
        network. If no network meets the limit, `max_macs` excludes all networks. The second value is a dict from the
        name of each measured trial to the latency of the trial's network.
    """
    measured = {}
    for record in goal.candidates(records):
        found = latency(record)
        if found is not None:
            measured[record.name] = found
            if goal.max_latency is not None and found.ms <= goal.max_latency:
                return replace(goal, max_macs=record.macs), measured
        goal = goal.below(record)
    return goal, measured


def exported_latency(file: Path, experiment: Experiment, data: Data, batch: int) -> Timing:
    """Measure the forward pass of a network without its removed neurons, in the form in which it is exported.

    Args:
        file: the file of the network's weights.
        experiment: the experiment. Its pattern contains the neurons that can be removed.
        data: the experiment's data.
        batch: the number of examples in a forward pass.
    """
    from tune_sparsity.tuner.results.networks import network_in, without_neurons

    model = without_neurons(experiment, data, network_in(experiment, file))
    inputs = _inputs(experiment, data, batch)
    return timed({"network": model}, inputs, batch, experiment.forward, seconds=_LAST_SECONDS)["network"]


def _earlier(folder: Path) -> dict[str, Timing]:
    """Return the latencies in the result.json of a resumed study, as a dict from trial names to latencies. Return an
    empty dict if there is no such file."""
    try:
        return latencies_in(json.loads((folder / RESULT_JSON).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _inputs(experiment: Experiment, data: Data, batch: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        return experiment.prepare(data.val.first(batch).x)


def _given(config: StudyConfig) -> str:
    return f"--max-latency {config.max_latency:g}ms"
