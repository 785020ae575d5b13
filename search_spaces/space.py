"""Define a search space: parameters with distributions, conditions and priors, and points that a study tries first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution

from tune_sparsity.search_spaces.priors import Prior, log_sparsity, middle, same

NEAREST = 3
"""The number of points with a target of their own (`Space.near`) that a study of one target tries first."""


@dataclass(frozen=True)
class Space:
    """Describes a method's search space for one target sparsity.

    Each part of a schedule is a parameter of its own, with a name such as threshold.start.

    A parameter may have a condition. A trial has the parameter only if the condition holds. The parameter then
    "applies". A condition is a dict from other parameters to their accepted values. It holds if each of these
    parameters has an accepted value.

    Attributes:
        name: the name of a built-in space, or the file of the space.
        method: the name of the method whose parameters are searched.
        distributions: a dict from searched parameters to Optuna's distributions. A parameter comes after the parameters
            in its condition.
        fixed: a dict from the parameters that are not searched to their values.
        first: the points to try first. A point is a dict from searched parameters to values. It contains only
            parameters that apply.
        near: for each point of `first`, the target sparsity for which it is meant, or None if it is meant for all
            targets.
        priors: a dict from searched parameters to their priors. Some parameters have no prior.
        when: a dict from parameters to their conditions. Parameters without a condition are not in it.
    """

    name: str
    method: str
    distributions: dict[str, BaseDistribution]
    fixed: dict[str, Any]
    first: tuple[dict[str, Any], ...]
    priors: dict[str, Prior] = field(default_factory=dict)
    when: dict[str, dict[str, tuple[Any, ...]]] = field(default_factory=dict)
    near: tuple[float | None, ...] = ()

    def applies(self, name: str, values: Mapping[str, Any]) -> bool:
        """Return whether a parameter applies: its condition holds, and all parameters in its condition also apply. A
        parameter without a condition always applies.

        Args:
            name: the parameter.
            values: a dict from searched parameters to values. Parameters that are not in any condition may be missing.
        """
        condition = self.when.get(name, {})
        return applies(condition, {**self.fixed, **values}) and all(
            self.applies(parent, values) for parent in condition
        )

    def fixed_for(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fixed parameters that apply, with their values. `values` holds the searched parameters."""
        return {name: value for name, value in self.fixed.items() if self.applies(name, values)}

    def first_for(self, target: float) -> list[dict[str, Any]]:
        """Return the points that a study of one target tries first.

        These are all points that are meant for all targets, and then the three points whose targets in `near` are
        nearest to `target`. The nearest point comes first.
        """
        apart = self.apart_from(target)
        always = [index for index in range(len(self.first)) if index not in apart]
        nearest = sorted(apart, key=lambda index: apart[index])[:NEAREST]
        return [self.first[index] for index in [*always, *nearest]]

    def apart_from(self, target: float) -> dict[int, float]:
        """Return how far the points to try first are from a target sparsity, as a dict from indices in `first` to
        distances. The distance between two sparsities s and t is |log(1 - s) - log(1 - t)|. The sparsity of a point is
        its entry in `near`. Points whose entry is None are not in the dict."""
        said = {index: near for index, near in enumerate(self.near) if near is not None}
        return {index: abs(log_sparsity(near) - log_sparsity(target)) for index, near in said.items()}

    def centre(self) -> dict[str, Any]:
        """Return a value for every searched parameter, also for parameters that do not apply. The value is the centre
        of the prior. For a parameter without a prior, see `middle`."""
        return {
            name: self.priors[name].centre if name in self.priors else middle(distribution)
            for name, distribution in self.distributions.items()
        }


def applies(condition: Mapping[str, tuple[Any, ...]], values: Mapping[str, Any]) -> bool:
    """Return whether a condition holds: each of its parameters is in `values` and has an accepted value."""
    return all(
        parent in values and any(same(values[parent], value) for value in accepted)
        for parent, accepted in condition.items()
    )
