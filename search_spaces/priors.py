"""Priors: where in its range a parameter's best value is expected, and how sure that is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

WIDTH = 0.2
_DRAWS = 100  # until a normal variate falls into the range; a centre at its edge needs two


@dataclass(frozen=True)
class Prior:
    """A normal distribution, cut off at the ends of the range.

    Attributes:
        centre: the value that is expected to be the best; one of the distribution.
        width: in (0, 1]: the standard deviation as a share of the range, on the range's own scale (the logarithm's
            where it is logarithmic). Of a categorical parameter: the chance of another choice than the centre.
    """

    centre: Any
    width: float = WIDTH


def draw(distribution: BaseDistribution, prior: Prior | None, rng: np.random.Generator) -> Any:
    """Return a value from the prior, or an even draw from the distribution where there is none."""
    if isinstance(distribution, CategoricalDistribution):
        return _choice(distribution, prior, rng)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if prior is None or distribution.low == distribution.high:
        return from_unit(distribution, rng.random())
    centre = to_unit(distribution, prior.centre)
    for _ in range(_DRAWS):
        if 0.0 <= (at := rng.normal(centre, prior.width)) <= 1.0:
            return from_unit(distribution, at)
    return from_unit(distribution, rng.random())


def middle(distribution: BaseDistribution) -> Any:
    """Return the first choice, or the middle of the range on its own scale."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return from_unit(distribution, 0.5)


def _choice(distribution: CategoricalDistribution, prior: Prior | None, rng: np.random.Generator) -> Any:
    choices = list(distribution.choices)
    if prior is not None and len(choices) > 1:
        if rng.random() >= prior.width:
            return prior.centre
        choices.remove(prior.centre)
    return choices[int(rng.integers(len(choices)))]


def to_unit(distribution: FloatDistribution | IntDistribution, value: float) -> float:
    """Return the value's place in the range, in [0, 1], on the range's own scale."""
    low, high = _ends(distribution)
    return ((math.log(value) if distribution.log else value) - low) / (high - low) if high > low else 0.0


def from_unit(distribution: FloatDistribution | IntDistribution, at: float) -> float | int:
    """Return the value at a place of the range in [0, 1]."""
    low, high = _ends(distribution)
    value = low + at * (high - low)
    return nearest(distribution, math.exp(value) if distribution.log else value)


def _ends(distribution: FloatDistribution | IntDistribution) -> tuple[float, float]:
    low, high = float(distribution.low), float(distribution.high)
    return (math.log(low), math.log(high)) if distribution.log else (low, high)


def same(one: Any, other: Any) -> bool:
    """Equality, but true is not the number 1, which it is in Python."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def nearest(distribution: FloatDistribution | IntDistribution, value: float) -> float | int:
    """Return the value that the distribution has nearest to `value`."""
    low, high, step = distribution.low, distribution.high, distribution.step
    value = min(max(value, low), high)
    if step is not None and not distribution.log:
        value = min(low + round((value - low) / step) * step, high)
    elif isinstance(distribution, IntDistribution):
        value = round(value)
    return type(low)(value)
