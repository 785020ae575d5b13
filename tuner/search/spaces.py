"""Makes the search spaces of a study, one for each method, with ranges that fit the study's goal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from tune_sparsity.search_spaces import BUILT_IN, Space, is_built_in, load_space, space_layout
from tune_sparsity.search_spaces.priors import from_log, log_sparsity
from tune_sparsity.sparsity.few_bits import ALL_BITS
from tune_sparsity.tuner.config.study_config import StudyConfig
from tune_sparsity.tuner.errors import UsageError, unknown
from tune_sparsity.tuner.search.cover import Range
from tune_sparsity.tuner.study.goal import Goal, GoalKind
from tune_sparsity.tuner.study.trial import BINARY, FINAL_SPARSITY, WEIGHT_BITS


def spaces_of(
    config: StudyConfig, goal: Goal, suited: str | None = None, optimizer: str = "sgd", *, few_bits: bool = False
) -> list[Space]:
    """Return one search space for each method: the method's built-in space, or the space of --space.

    Args:
        config: the study's configuration.
        goal: the study's target sparsities and limits, as a `Goal`.
        suited: the name of a search space that belongs to the experiment, if there is one. It replaces the built-in
            space of its method.
        optimizer: the experiment's optimizer. For every optimizer except "sgd", the built-in spaces have special
            ranges.
        few_bits: whether the built-in spaces also search the number of bits of weights.

    Raises:
        UsageError: if a space is unknown, belongs to another method, or cannot reach the goal.
        ValueError: if the file of --space is not a valid space.
        OSError: if the file of --space cannot be read.
    """
    if config.space is None:
        more = "+bits" * few_bits + "+averaged" * (config.ensemble is not None)

        def own_space(name: str) -> Space:
            return space_for(name + more * is_built_in(name), goal)

        suits = None if suited is None else own_space(suited)
        own = {method: method if optimizer == "sgd" else f"{method}+{optimizer}" for method in config.method}
        spaces = [suits if suits and suits.method == method else own_space(own[method]) for method in own]
        if not any(reaches(space, goal.lowest) or _small(space, goal) for space in spaces):
            other = ", --max-bytes" if BINARY in config.method else ""
            raise UsageError(
                f"--method {','.join(config.method)} never prunes: give --target 0 (no zeros){other} or another method"
            )
        return spaces
    if not is_built_in(config.space) and Path(config.space).suffix not in {".yaml", ".yml"}:
        raise UsageError("--space: " + unknown("space", config.space, BUILT_IN) + ", or a .yaml file")
    space = space_for(config.space, goal)
    if config.method != [space.method]:
        raise UsageError(f"--space {config.space} is for --method {space.method}, not {','.join(config.method)}")
    wanted = goal.highest if goal.kind is GoalKind.TARGETS else goal.lowest
    if not reaches(space, wanted) and not _small(space, goal):
        raise UsageError(
            f"--space {config.space} has no {FINAL_SPARSITY} of {wanted:g} or more, so no trial can meet the goal"
        )
    return [space]


def fewest_bits(config: StudyConfig, *, few_bits: bool) -> int:
    """Return the smallest number of bits of a prunable weight in a study's search spaces. The errors are those of
    `load_space`."""
    if config.space is None and not few_bits:
        return ALL_BITS
    space = load_space(config.space or "lpss+bits", 0.0)
    searched = space.distributions.get(WEIGHT_BITS)
    return min(getattr(searched, "choices", [space.fixed.get(WEIGHT_BITS, ALL_BITS)]))


def space_for(name: str, goal: Goal) -> Space:
    """Return the search space for a goal, from a built-in space or a file.

    A range in the space may depend on the target. If the goal has several targets, such a range is extended until it
    contains the ranges for all of them. For a front, it is extended until it contains the ranges for both ends of the
    front. In both cases, the result has no first points (good parameters that the space lists), because
    tuner.search.planner chooses them for each trial's sparsity. The priors are those for the mean of the targets, or of
    the front's two ends, on the scale of log(1 - sparsity).

    Args:
        name: the name of a built-in space, or the path of a file.
        goal: the study's target sparsities and limits, as a `Goal`.
    """
    if not goal.multi_objective:
        return load_space(name, goal.lowest)
    layout = space_layout(name)
    laid_out = [layout(target) for target in goal.ends]
    base = laid_out[0]
    distributions = {key: _union([space.distributions[key] for space in laid_out]) for key in base.distributions}
    fixed = {}
    for key, value in base.fixed.items():
        values = [space.fixed[key] for space in laid_out]
        if all(one == value for one in values):
            fixed[key] = value
        else:  # the value depends on the target, so a range covers the values for all targets
            distributions[key] = FloatDistribution(min(values), max(values))
    if (own := distributions.get(FINAL_SPARSITY)) is not None:
        distributions[FINAL_SPARSITY] = _within(own, *goal.searched)
    middle = from_log(sum(map(log_sparsity, goal.ends)) / len(goal.ends))
    return replace(base, distributions=distributions, fixed=fixed, first=(), near=(), priors=layout(middle).priors)


def reaches(space: Space, sparsity: float) -> bool:
    """Return whether a trial of the search space can have this final sparsity or a higher one."""
    searched = space.distributions.get(FINAL_SPARSITY)
    if searched is None:
        return bool(space.fixed.get(FINAL_SPARSITY, _default(space.method)) >= sparsity)
    highest = max(searched.choices) if hasattr(searched, "choices") else getattr(searched, "high", 0.0)
    return bool(highest >= sparsity)


def _small(space: Space, goal: Goal) -> bool:
    """Return whether a trial of the search space can meet a limit of bytes without any zeros, as binary networks
    can."""
    return goal.kind is GoalKind.MAX_BYTES and space.method == BINARY


def _default(method: str) -> float:
    from tune_sparsity.sparsity import METHODS

    return float(getattr(METHODS[method].settings, FINAL_SPARSITY, 0.0))


def range_of(distribution: BaseDistribution) -> Range:
    """Return the values of a distribution of final sparsities as a `Range`."""
    values = _values(distribution)
    if not values:
        assert isinstance(distribution, FloatDistribution)
        return Range(distribution.low, distribution.high)
    return Range.of(values)


def least(distribution: BaseDistribution, target: float) -> float:
    """Return the smallest value in a distribution that is at least `target`. If there is no such value, return the
    largest value."""
    if values := _values(distribution):
        return min((value for value in values if value >= target), default=max(values))
    assert isinstance(distribution, FloatDistribution)
    return min(max(target, distribution.low), distribution.high)


def _values(distribution: BaseDistribution) -> list[float]:
    """Return all values of a distribution, or an empty list if it is a continuous range."""
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        return list(getattr(distribution, "choices", ()))
    if distribution.step is None:
        return []
    steps = round((distribution.high - distribution.low) / distribution.step)
    return [distribution.low + n * distribution.step for n in range(steps)] + [distribution.high]


def _union(those: list[BaseDistribution]) -> BaseDistribution:
    """Return the smallest distribution that contains all of these distributions. If they are equal or categorical,
    return the first one."""
    first = those[0]
    if all(one == first for one in those) or not isinstance(first, FloatDistribution | IntDistribution):
        return first
    ends = [(one.low, one.high) for one in those if isinstance(one, FloatDistribution | IntDistribution)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    return type(first)(low, high, log=first.log, step=first.step)  # type: ignore[arg-type]


def _within(distribution: BaseDistribution, low: float, high: float) -> BaseDistribution:
    """Return the part of a continuous range that lies in [low, high]. Return the distribution unchanged if this part is
    empty, or if the distribution is not a continuous range."""
    if not isinstance(distribution, FloatDistribution) or distribution.step is not None:
        return distribution
    low, high = max(distribution.low, low), min(distribution.high, high)
    return FloatDistribution(low, high, log=distribution.log) if low <= high else distribution


def clipped(point: dict[str, Any], distributions: dict[str, BaseDistribution]) -> dict[str, Any]:
    """Return a point in which each number is moved into its range.

    Args:
        point: a dict from the names of parameters to their values.
        distributions: a dict from the names of these parameters to their distributions.
    """
    return {
        key: min(max(value, own.low), own.high)
        if isinstance(own := distributions[key], FloatDistribution | IntDistribution)
        else value
        for key, value in point.items()
    }
