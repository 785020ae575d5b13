"""The configurations that `collect` trains: number i is point i of a Sobol sequence over a method's search space."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch.quasirandom import SobolEngine

from tune_sparsity.search_spaces import Space, load_space
from tune_sparsity.search_spaces.priors import from_unit

SPARSITY = "final_sparsity"
LEAST, MOST = 0.5, 0.995
"""The ends of the final sparsities. A study of the targets .5 to .99 searches within them."""
INFILL = 1 << 16
"""From this number on, configurations are no points of the Sobol sequence (see `benchmarks.curves.infill`)."""


@cache
def space_of(method: str) -> Space:
    """Return a method's space. `point` does not use its range of final sparsities, but LEAST to MOST."""
    return load_space(method, LEAST)


@cache
def _sobol(method: str, count: int) -> list[list[float]]:
    engine = SobolEngine(1 + len(space_of(method).distributions), scramble=True, seed=0)
    return engine.draw(count).double().tolist()  # type: ignore[no-any-return]


def point(method: str, index: int) -> dict[str, Any]:
    """Return the parameters of configuration `index`, without those that do not apply.

    The density, 1 minus the final sparsity, is uniform in its logarithm. The other parameters are uniform in their
    ranges, logarithmic where the space says so. Priors are not used.
    """
    space = space_of(method)
    place, *places = _sobol(method, 1 << max(10, index.bit_length()))[index]
    values: dict[str, Any] = {}
    for (name, distribution), at in zip(space.distributions.items(), places, strict=True):
        if name == SPARSITY:
            low, high = math.log(1 - MOST), math.log(1 - LEAST)
            values[name] = 1 - math.exp(low + place * (high - low))
        elif space.applies(name, values):
            values[name] = _value(distribution, at)
    return values


def _value(distribution: Any, at: float) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[min(int(at * len(distribution.choices)), len(distribution.choices) - 1)]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return from_unit(distribution, at)


def applying(space: Space, params: dict[str, Any]) -> dict[str, Any]:
    """Return `params` without the parameters that do not apply.

    Raises:
        KeyError: if a parameter that applies is missing.
    """
    values: dict[str, Any] = {}
    for name in space.distributions:
        if space.applies(name, values):
            values[name] = params[name]
    return values


def whole(method: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return all parameters that the method needs: `values`, and the space's fixed parameters that apply with them."""
    return {**space_of(method).fixed_for(values), **values}
