"""Search spaces: named parameters with their distributions, conditions and priors, and the points to try first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution

from tune_sparsity.search_spaces.priors import Prior, middle, same

NEAREST = 3
"""So many of the first points that say which target they are for are tried in a study of one target."""


@dataclass(frozen=True)
class Space:
    """A method's search space for one target.

    A schedule's parts are parameters named SCHEDULE.PART, such as threshold.start; the method takes them as one value.

    Attributes:
        name: of the space: a built-in name or the file it was read from.
        method: the method whose parameters it searches.
        distributions: the searched parameters, as Optuna's distributions; those that others depend on come first.
        fixed: parameters with one value.
        first: points to try first, within the distributions and without parameters that do not apply to them.
        near: for each first point the target that it is for, None where it is for any.
        priors: of those searched parameters that have one.
        when: by the name of a parameter that applies only sometimes: the parameters that decide, each with the values
            at which it applies.
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
        """Return whether a parameter applies, given the values of all searched ones that apply among those it depends
        on."""
        condition = self.when.get(name, {})
        return applies(condition, {**self.fixed, **values}) and all(
            self.applies(parent, values) for parent in condition
        )

    def fixed_for(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fixed parameters that apply beside the searched ones' values."""
        return {name: value for name, value in self.fixed.items() if self.applies(name, values)}

    def first_for(self, target: float) -> list[dict[str, Any]]:
        """Return the first points that a study of one target tries, in their order.

        They are all that do not say which target they are for, and of the others those for the nearest three.
        """
        apart = self.apart_from(target)
        left_out = sorted(apart, key=lambda index: apart[index])[NEAREST:]
        return [point for index, point in enumerate(self.first) if index not in left_out]

    def apart_from(self, target: float) -> dict[int, float]:
        """Return by the index of each first point that says its target how far that is from this one, in the logarithm
        of the density."""
        said = {index: near for index, near in enumerate(self.near) if near is not None}
        return {index: abs(math.log1p(-near) - math.log1p(-target)) for index, near in said.items()}

    def centre(self) -> dict[str, Any]:
        """Return every searched parameter, applying or not, at its prior's centre, else in the middle of its range."""
        return {
            name: self.priors[name].centre if name in self.priors else middle(distribution)
            for name, distribution in self.distributions.items()
        }


def applies(condition: Mapping[str, tuple[Any, ...]], values: Mapping[str, Any]) -> bool:
    """Return whether every parameter that decides is there with one of its accepted values."""
    return all(
        parent in values and any(same(values[parent], value) for value in accepted)
        for parent, accepted in condition.items()
    )
