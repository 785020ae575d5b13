"""Define a search space: parameters with their distributions, conditions and priors, and the points to try first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution

from tune_sparsity.search_spaces.priors import Prior, middle, same

NEAREST = 3
"""The number of first points with a `near` target that a study of one target tries."""


@dataclass(frozen=True)
class Space:
    """A method's search space for one target.

    The parts of a schedule are parameters with names such as threshold.start. The method gets them as one value.

    Attributes:
        name: the name of a built-in space, or the file of the space.
        method: the method whose parameters are searched.
        distributions: the searched parameters -> Optuna's distributions. A parameter comes after those that it depends
            on.
        fixed: the parameters with one value, which are not searched -> their values.
        first: the points (parameters with their values) to try first. Each point lies within the distributions and
            contains only parameters that apply.
        near: for each first point the target sparsity for which it is meant, or None if it is meant for any target.
        priors: the searched parameters that have a prior -> this prior.
        when: the parameters that apply only under a condition -> this condition. A condition consists of other
            parameters, the deciding parameters, with their accepted values. It holds if every deciding parameter has
            one of its accepted values.
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
        """Return whether a parameter applies: its condition holds, and the parameters in the condition apply
        themselves. A parameter without a condition always applies.

        Args:
            values: the values of the searched parameters that this depends on. A parameter that does not apply has no
                value.
        """
        condition = self.when.get(name, {})
        return applies(condition, {**self.fixed, **values}) and all(
            self.applies(parent, values) for parent in condition
        )

    def fixed_for(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fixed parameters whose conditions hold for these values of the searched parameters."""
        return {name: value for name, value in self.fixed.items() if self.applies(name, values)}

    def first_for(self, target: float) -> list[dict[str, Any]]:
        """Return the first points for a study of one target, in their order.

        These are all points without a `near` target, and the three points whose `near` targets are nearest.
        """
        apart = self.apart_from(target)
        left_out = sorted(apart, key=lambda index: apart[index])[NEAREST:]
        return [point for index, point in enumerate(self.first) if index not in left_out]

    def apart_from(self, target: float) -> dict[int, float]:
        """Return the index of each first point with a `near` target -> the distance of this target from `target`. The
        distance is the absolute difference of log(1 - sparsity)."""
        said = {index: near for index, near in enumerate(self.near) if near is not None}
        return {index: abs(math.log1p(-near) - math.log1p(-target)) for index, near in said.items()}

    def centre(self) -> dict[str, Any]:
        """Return a value for every searched parameter, whether or not it applies: the centre of its prior, or the
        middle of its range if it has no prior."""
        return {
            name: self.priors[name].centre if name in self.priors else middle(distribution)
            for name, distribution in self.distributions.items()
        }


def applies(condition: Mapping[str, tuple[Any, ...]], values: Mapping[str, Any]) -> bool:
    """Return whether a condition holds: every deciding parameter is in `values` and has one of its accepted values."""
    return all(
        parent in values and any(same(values[parent], value) for value in accepted)
        for parent, accepted in condition.items()
    )
