"""Draw values from priors. A prior is a distribution around the expected best value of a parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

WIDTH = 0.2
_DRAWS = 100  # attempts to draw a normal variate within the range; two suffice on average with a centre at the edge


@dataclass(frozen=True)
class Prior:
    """Describes a normal distribution that is truncated at the ends of the parameter's range.

    Attributes:
        centre: the expected best value. It must lie in the parameter's range.
        width: the standard deviation as a share of the range, in (0, 1]. If the range is logarithmic, the logarithm of
            the parameter is normally distributed, and the width is a share of the range of this logarithm. For a
            categorical parameter, the width is the probability that any other choice than the centre is drawn.
    """

    centre: Any
    width: float = WIDTH


def draw(distribution: BaseDistribution, prior: Prior | None, rng: np.random.Generator) -> Any:
    """Draw a value of a parameter.

    Args:
        distribution: the parameter's distribution.
        prior: the prior to draw from. If None, the value is drawn uniformly from the distribution. If the range is
            logarithmic, the logarithm of the value is drawn uniformly.
        rng: the random generator.
    """
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
    """Return the middle of a range, or the first choice of a categorical distribution. The middle of a logarithmic
    range is the geometric mean of its ends."""
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
    """Return the position of a value in its range: 0 at the low end, 1 at the high end, linear between them. In a
    logarithmic range, the position is linear in the logarithm."""
    low, high = _ends(distribution)
    return ((math.log(value) if distribution.log else value) - low) / (high - low) if high > low else 0.0


def from_unit(distribution: FloatDistribution | IntDistribution, at: float) -> float | int:
    """Return the value at a position in its range. The position lies in [0, 1]; `to_unit` defines it."""
    low, high = _ends(distribution)
    value = low + at * (high - low)
    return nearest(distribution, math.exp(value) if distribution.log else value)


def between(
    distribution: FloatDistribution | IntDistribution, centres: Mapping[float, float], target: float
) -> float | int:
    """Return the centre of a prior for one target sparsity: a linear interpolation between the centres of the next
    lower and the next higher target in `centres`.

    The interpolation uses positions: `log_sparsity` returns the position of a target, and `to_unit` returns the
    position of a centre. Below the smallest target and above the largest target the centre is constant.

    Args:
        distribution: the parameter's range.
        centres: a dict from target sparsities in [0, 1) to centres in the range. It has at least one entry.
        target: the study's target, in [0, 1).
    """
    targets = sorted(centres)
    positions = [to_unit(distribution, centres[one]) for one in targets]
    return from_unit(distribution, float(np.interp(log_sparsity(target), list(map(log_sparsity, targets)), positions)))


def log_sparsity(sparsity: float) -> float:
    """Return the position of a sparsity: -log(1 - sparsity). The distance between two sparsities is the distance
    between their positions. Sparsity 0 has the position 0, .5 has .69, and .99 has 4.6."""
    return -math.log1p(-sparsity)


def from_log(position: float) -> float:
    """Return the sparsity at a position, where position = -log(1 - sparsity). This is the inverse function of
    `log_sparsity`."""
    return -math.expm1(-position)


def _ends(distribution: FloatDistribution | IntDistribution) -> tuple[float, float]:
    low, high = float(distribution.low), float(distribution.high)
    return (math.log(low), math.log(high)) if distribution.log else (low, high)


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal. Unlike Python's ==, this function does not treat True as equal to 1."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def nearest(distribution: FloatDistribution | IntDistribution, value: float) -> float | int:
    """Return the value of the distribution that is nearest to `value`, which may lie outside the range."""
    low, high, step = distribution.low, distribution.high, distribution.step
    value = min(max(value, low), high)
    if step is not None and not distribution.log:
        value = min(low + round((value - low) / step) * step, high)
    elif isinstance(distribution, IntDistribution):
        value = round(value)
    return type(low)(value)
