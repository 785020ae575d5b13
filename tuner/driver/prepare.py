"""Check everything that a study needs before it begins: experiment, data, search spaces, goal, storage and options."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import nn

from tune_sparsity.experiments import Data, Experiment, OwnLoop
from tune_sparsity.experiments.base import evaluate
from tune_sparsity.experiments.checks import Finding, Subject
from tune_sparsity.experiments.checks.shapes import builds
from tune_sparsity.experiments.user_code import described
from tune_sparsity.experiments.user_reads import watching
from tune_sparsity.search_spaces import Space
from tune_sparsity.sparsity import NetworkSize, network_size, prunable_layers
from tune_sparsity.sparsity.cost.layout import Layout
from tune_sparsity.sparsity.cost.multiply_adds import Uses, count_uses
from tune_sparsity.sparsity.few_bits import ALL_BITS, BITS, EXACT
from tune_sparsity.sparsity.layers import Layer
from tune_sparsity.sparsity.neurons.finding import with_neurons
from tune_sparsity.sparsity.neurons.groups import NeuronGroups
from tune_sparsity.sparsity.patterns import UNSTRUCTURED, Neurons
from tune_sparsity.tuner.config.experiment import check_group, experiment_of, objective_of, sound_data
from tune_sparsity.tuner.config.files import judged, read_about
from tune_sparsity.tuner.config.study_config import GOALS, StudyConfig
from tune_sparsity.tuner.config.tracking_uri import check_driver, check_tracking_uri
from tune_sparsity.tuner.driver.checks import check_address, check_binary, check_gpus, check_pattern, check_workers
from tune_sparsity.tuner.driver.latency import expected_macs, goal_within
from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.search.byte_spaces import roomiest, searches_width, spaces_within, too_many_neurons
from tune_sparsity.tuner.search.samplers import check_sampler
from tune_sparsity.tuner.search.spaces import fewest_bits, spaces_of
from tune_sparsity.tuner.search.warm_start import WarmStart, warm_start
from tune_sparsity.tuner.study.goal import Goal, sparsity_of
from tune_sparsity.tuner.worker.sizes import ByteLimit, layout_of

_A_WHILE = 20.0  # seconds to wait for the data


@dataclass(frozen=True)
class Prepared:
    """A study that is ready to run: its checked configuration, experiment, data, search spaces and goal."""

    config: StudyConfig
    experiment: Experiment
    data: Data
    spaces: list[Space]
    goal: Goal
    size: NetworkSize
    earlier: WarmStart = field(default_factory=WarmStart)
    warnings: tuple[Finding, ...] = ()  # what the checks found in a user's experiment
    uses: Uses | None = None  # how often the network uses each weight for an example; None if this cannot be counted
    limit: ByteLimit | None = None  # the largest size of a network's packed file (--max-bytes)
    latency: str = ""  # a line for the user about the measurement for --max-latency; "" if nothing was measured

    @property
    def epochs(self) -> int:
        return self.config.epochs or self.experiment.recipe.epochs

    @cached_property
    def checksum(self) -> str:
        """Return the checksum of the data, or "" if a user's own loop loads the data. The checksum is computed only
        once, because the data may be large."""
        return "" if isinstance(self.experiment, OwnLoop) else self.data.checksum()


def prepare(
    config: StudyConfig,
    *,
    resume: bool = False,
    named: bool = True,
    share: Callable[[Callable[[], bool]], object] = bool,
) -> Prepared:
    """Check everything that a study needs, and load its data. Write nothing.

    Args:
        config: the study's configuration.
        resume: whether to continue an existing study, instead of beginning a new study.
        named: whether the user has given the study's name. If True, this function checks that no study has this name,
            or, to continue a study, that there is a study of this name.
        share: the method `share` of a Connection to Ray. For a private Ray, `share` loads libraries and forks this
            process, which takes a second. For a user's experiment, `share` is called before the user's code runs. For a
            built-in experiment, `share` is called after the quick checks, so that a user's mistakes are reported
            without this delay. Another thread then loads the data while `share` runs.

    Raises:
        UsageError: if a check fails. The message is one line about the first mistake.
    """
    try:
        check_tracking_uri(config.tracking_uri)
        check_driver(config.tracking_uri)
    except ValueError as error:
        raise UsageError(f"--tracking-uri: {error}") from None
    own = ":" not in config.experiment
    if not own:  # a user's code, which begins to run here
        share(lambda: True)
    experiment = experiment_of(config)
    check_workers(config, experiment)
    network = _network(experiment)
    check_pattern(config, experiment)
    check_binary(config, experiment, network.model)
    goal, spaces = network.sought(config, experiment, config.max_macs)
    check_address(config.address)
    config.storage.check()
    if named:
        _check_name(config, resume)
    loading = _Loading(lambda: experiment.load(config.data_dir)) if own else None
    if loading is not None:
        share(loading.over)
    check_gpus(config)  # after `share`, because the check may initialise CUDA, and later forks could not use a GPU
    warnings = list[Finding]()
    data = sound_data(config, experiment, loading.data if loading else None, None if own else warnings.append)
    sought = _Sought(network, experiment, goal, spaces).with_neurons(config, data, resume=resume)
    network, experiment, goal, spaces, latency = sought
    goal = _as_before(goal, config) if resume else _with_baseline(goal, experiment, data)
    earlier = WarmStart()
    if config.warm_start and not resume:  # a resumed study has the earlier trials in its journal
        alike = {"experiment": config.experiment, "epochs": config.epochs or experiment.recipe.epochs}
        earlier = warm_start(config.warm_start, config.storage, spaces, goal.lowest, alike, goal.objective)
    check_group(config, experiment, data, costs_known=(uses := _uses(experiment, network, data)) is not None)
    about = (earlier, tuple(warnings), uses, network.limit(config), latency)
    prepared = Prepared(config, experiment, data, spaces, goal, network.size, *about)
    if resume:
        _check_data(prepared)
    threading.Thread(target=getattr, args=(prepared, "checksum"), daemon=True).start()  # hashes while Ray starts
    return prepared


def _check_name(config: StudyConfig, resume: bool) -> None:
    """Raise UsageError if a study that is to be resumed does not exist, or if the name of a new study is taken."""
    if config.storage.exists(config.study) == resume:
        return
    if resume:
        raise UsageError(f"there is no study {config.study!r} in {config.storage}")
    raise UsageError(
        f"study {config.study!r} exists in {config.storage}: choose another --study, or continue this study: "
        f"tune-sparsity resume {config.study} --storage {shlex.quote(str(config.storage))}"
    )


def _check_data(prepared: Prepared) -> None:
    """Raise UsageError if the data of a resumed study have changed since the study began. Its trials could not be
    compared any more, and a former training example might now be a test example."""
    before = read_about(prepared.config).get("data_sha256")
    if before and before != prepared.checksum:
        raise UsageError(
            f"the data of {prepared.config.experiment} have changed since study {prepared.config.study!r} began: "
            "restore the earlier data, or begin a new study"
        )


def _as_before(goal: Goal, config: StudyConfig) -> Goal:
    """Return the goal of a resumed study with the baseline that study.yaml contains. Raise UsageError if the metric of
    the experiment has changed since the study began."""
    before = judged(goal, read_about(config))
    if (was := before.objective) != (now := goal.objective):
        raise UsageError(
            f"--experiment: study {config.study} has the metric {was}, and {config.experiment} now has {now}: restore "
            "the earlier metric of the experiment, or begin a new study"
        )
    return before


def _with_baseline(goal: Goal, experiment: Experiment, data: Data) -> Goal:
    """Return the goal with a baseline: 0 if this is the metric's worst value, otherwise the metric of an untrained
    network. A user's own loop must have this metric as its attribute `baseline`.

    Raises:
        UsageError: if the metric cannot be measured or is not finite, or if a loop does not have the attribute.
    """
    if goal.objective.bounded:
        return goal
    if isinstance(experiment, OwnLoop):
        if experiment.baseline is None:
            name, metric = experiment.name, goal.objective.name
            raise UsageError(
                f"--experiment: the study needs a baseline, because the metric {metric} has no known worst value: set "
                f"the attribute baseline of {name} to the {metric} of an untrained network"
            )
        return replace(goal, baseline=experiment.baseline)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return replace(goal, baseline=evaluate(experiment, experiment.network(), data.val))
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise UsageError(
            f"--experiment: the metric of {experiment.name} cannot be measured for the untrained network on the "
            f"validation data: {described(error)}"
        ) from None


class _Loading:
    """Calls the function `load` in a thread. It returns the data."""

    def __init__(self, load: Callable[[], Data]) -> None:
        self._executor = ThreadPoolExecutor(1)
        self._loaded = self._executor.submit(load)

    def data(self) -> Data:
        """Wait for the data and return them. If `load` has raised an error, raise this error."""
        return self._loaded.result()

    def over(self) -> bool:
        """Wait for the thread, but at most _A_WHILE seconds, because a download may take longer. Return whether the
        thread has ended."""
        if wait([self._loaded], _A_WHILE).not_done:
            return False
        self._executor.shutdown()
        return True


def _uses(experiment: Experiment, network: _Network, data: Data) -> Uses | None:
    """Return how often a forward pass uses each weight of the network. Return None if this cannot be counted."""
    try:
        with torch.random.fork_rng(devices=[]):
            example = experiment.prepare(data.val.first(2).x)
            return count_uses(network.model, network.layers, example, experiment.forward)
    except (Exception, SystemExit):  # the user's code fails: the trials will report it
        return None


class _Network(NamedTuple):
    """An untrained network of the experiment, with its prunable layers and their sizes."""

    model: nn.Module
    layers: list[Layer]
    size: NetworkSize
    neurons: NeuronGroups | None = None  # groups of neurons that a new trial may lack; None if it has all neurons

    def few_bits(self, config: StudyConfig) -> bool:
        """Return whether the default search spaces also contain weights with few bits. They do so if --max-bytes is
        given and the data types of all prunable weights allow it."""
        return config.max_bytes is not None and all(layer.weight.dtype in EXACT for layer in self.layers)

    def sought(self, config: StudyConfig, experiment: Experiment, most: int | None) -> tuple[Goal, list[Space]]:
        """Return the goal and the search spaces of the study. `most` is the largest allowed number of multiply-adds;
        None if there is no limit, or if it is not known yet. Raise UsageError if no trial can reach the goal, or if the
        search spaces do not fit the study."""
        try:
            goal = replace(self.goal(config, most), objective=objective_of(experiment))
            suited = (experiment.space, experiment.optimizer)
            spaces = spaces_of(config, goal, *suited, few_bits=self.few_bits(config))
            if self.size.pattern != UNSTRUCTURED and any(map(searches_width, spaces)):
                raise UsageError(
                    f"--pattern {self.size.pattern}: the space {config.space or experiment.space} has the parameter "
                    "width, so trials may begin with fewer neurons, and this does not work with a pattern: leave out "
                    "the pattern, or remove width from the space"
                )
            if config.space is None and (limit := self.limit(config)):
                spaces = spaces_within(limit, spaces)
            check_sampler(config.sampler, front=goal.multi_objective, methods=len(spaces))
        except (ValueError, OSError) as error:  # BadFile is a ValueError; a path that is too long raises OSError
            raise UsageError(str(error)) from None
        return goal, spaces

    def goal(self, config: StudyConfig, most: int | None) -> Goal:
        """Return the goal of the study. Raise UsageError if the network cannot meet the goal, and ValueError or OSError
        if the space of --space cannot be read. `most` is as for `sought`."""
        if config.max_macs is not None or config.max_latency is not None:
            return goal_within(config, self.size.pattern, self.layers, most)
        layout: Layout | None = None
        if limit := self.limit(config):
            layout = roomiest(limit) if limit.neurons else limit.layouts[limit.bits]
        goal = config.goal(self.size.layers, self.size.prunable, layout)
        self._check_reach(config, goal)
        return goal

    def _check_reach(self, config: StudyConfig, goal: Goal) -> None:
        """Raise UsageError if the pattern of the zeros makes one of the goal's sparsities impossible."""
        name = next(name for name in GOALS if getattr(config, name) is not None)
        option, pattern = f"--{name.replace('_', '-')}", self.size.pattern
        shapes = [layer.turned(layer.weight).shape for layer in self.layers]
        low, high = pattern.least, sparsity_of(pattern.most_zeros(shapes), self.size.prunable)
        for sparsity in (goal.lowest, goal.highest):
            if not low - 1e-12 <= sparsity <= high:
                raise UsageError(
                    f"{option}: with the pattern {pattern} this network can have a sparsity from {low:.6g} to "
                    f"{high:.6g}, but not {sparsity:.6g}"
                )

    def with_neurons(self, config: StudyConfig, goal: Goal, experiment: Experiment, data: Data) -> _Network:
        """If the pattern is `neurons`, find which neurons can be removed, and add them to the network's pattern. Return
        the network. Raise UsageError if the goal cannot be reached by removing neurons."""
        if not isinstance(self.size.pattern, Neurons):
            return self
        with torch.random.fork_rng(devices=[]):
            example = experiment.prepare(data.val.first(2).x)
            try:
                rules = with_neurons(experiment.layers, self.model, example, experiment.forward)
            except ValueError as error:
                raise UsageError(f"--pattern neurons: {str(error).removeprefix('pattern neurons: ')}") from None
        network = self._replace(size=replace(self.size, pattern=rules.pattern))
        if config.max_macs is None and config.max_latency is None:
            network._check_reach(config, goal)
        return network

    def with_fewer(self, config: StudyConfig, experiment: Experiment, data: Data, *, asked: bool) -> _Network:
        """If trials of the study can begin with fewer neurons, find these neurons. Return the network with them.

        Trials can begin with fewer neurons if the user's space has the parameter `width` (then `asked` is true), or if
        the neurons of the whole network take a large part of --max-bytes.

        Raises:
            UsageError: if `asked` is true, and no neuron can be left out.
        """
        limit = self.limit(config)
        needed = limit is not None and self.size.pattern == UNSTRUCTURED and too_many_neurons(limit)
        if not asked and (config.space or not needed):
            return self
        with torch.random.fork_rng(devices=[]):
            example = experiment.prepare(data.val.first(2).x)
            try:
                found = with_neurons(experiment.layers, self.model, example, experiment.forward, width=0.5).neurons
            except ValueError as error:
                if asked:
                    raise UsageError(f"--space {config.space or experiment.space}: {error}") from None
                return self
        assert isinstance(found, NeuronGroups)
        return self._replace(neurons=found)

    def limit(self, config: StudyConfig) -> ByteLimit | None:
        """Return the limit of --max-bytes. Return None if the option is not given, or if a packed file cannot hold some
        tensors of the network. Raise ValueError or OSError if the space of --space cannot be read."""
        if config.max_bytes is None:
            return None
        bits = fewest_bits(config, few_bits=self.few_bits(config))
        try:
            layouts = {bits: layout_of(self.model, self.layers, bits) for bits in (ALL_BITS, *BITS)}
        except ValueError:
            return None
        return ByteLimit(config.max_bytes, layouts, bits, self.neurons)


class _Sought(NamedTuple):
    """The network, the experiment, the goal and the search spaces of a study, while `prepare` completes them."""

    network: _Network
    experiment: Experiment
    goal: Goal
    spaces: list[Space]
    latency: str = ""  # as in Prepared

    def with_neurons(self, config: StudyConfig, data: Data, *, resume: bool) -> _Sought:
        """If trials of the study remove neurons, find these neurons, and complete the goal and the spaces. Write the
        neurons into the experiment, so that no trial has to find them again. Raise UsageError if no trial can reach the
        goal."""
        network = self.network.with_neurons(config, self.goal, self.experiment, data)
        if isinstance(pattern := network.size.pattern, Neurons):
            experiment = self.experiment.with_pattern(pattern)
            found = self._replace(network=network, experiment=experiment)
            if not pattern.by_macs:
                return found
            before = read_about(config) if resume else {}
            most, latency = expected_macs(config, before, experiment, data, network.model, network.layers)
            goal, spaces = network.sought(config, experiment, most)
            return found._replace(goal=goal, spaces=spaces, latency=latency)
        # A space that has the parameter `width` here is the user's. Built-in spaces get this parameter only later,
        # after the neurons are known.
        asked = any(map(searches_width, self.spaces))
        network = network.with_fewer(config, self.experiment, data, asked=asked)
        if network.neurons is None:
            return self
        experiment = self.experiment.with_layers(replace(self.experiment.layers, neurons=network.neurons))
        return _Sought(network, experiment, *network.sought(config, experiment, None))


def _network(experiment: Experiment) -> _Network:
    """Make an untrained network of the experiment.

    Raises:
        UsageError: if the network cannot be made, or if it has nothing that can be pruned.
    """
    try:
        with torch.random.fork_rng(devices=[]), watching():
            if (problem := next(builds(Subject(experiment)), None)) is not None:
                raise UsageError(f"--experiment: the network of {experiment.name} cannot be used: {problem.text}")
            model = experiment.network()
        size = network_size(model, experiment.layers)
        return _Network(model, prunable_layers(model, experiment.layers, sphere=False), size)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"--experiment: the network of {experiment.name} cannot be used: {described(error)}"
        ) from error
