"""Which parameters are worth a trial at another sparsity: configurations, judged by all of their trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from tune_sparsity.tuner.search.cover import log_sparsity
from tune_sparsity.tuner.search.monotone import deviation, residuals

NEIGHBOURS = 64  # completed trials that configurations are judged by
LIKE = 0.7  # trials whose densities differ by a factor of two count e times less


class Configuration(NamedTuple):
    """Parameters that are tried at several sparsities.

    Attributes:
        name: "first N" for a first point of the space, else the name of the trial that had them first.
        params: all but the final sparsity.
    """

    name: str
    params: dict[str, Any]


class Outcome(NamedTuple):
    """A completed trial of a configuration."""

    configuration: str
    sparsity: float
    accuracy: float


def best_configuration(outcomes: Sequence[Outcome], sparsity: float) -> str | None:
    """Return the configuration that has surely done best at like sparsity; None if there is no outcome.

    A trial's merit is by how much its accuracy is above the monotone fit of the others. A configuration's merit is the
    mean of its trials', those of like sparsity counting more, less one standard error. Without the latter the luckiest
    of many configurations with one trial each would always be ahead of a good one. To repeat a lucky configuration
    shows what it is worth.
    """
    at = log_sparsity(sparsity)
    near = sorted(outcomes, key=lambda one: abs(log_sparsity(one.sparsity) - at))[:NEIGHBOURS]
    if len(near) < 3:
        return near[0].configuration if near else None
    merits = residuals([(log_sparsity(one.sparsity), one.accuracy) for one in near])
    noise = deviation(merits)
    weights: dict[str, float] = {}
    sums: dict[str, float] = {}
    for one, merit in zip(near, merits, strict=True):
        weight = math.exp(-abs(log_sparsity(one.sparsity) - at) / LIKE)
        weights[one.configuration] = weights.get(one.configuration, 0.0) + weight
        sums[one.configuration] = sums.get(one.configuration, 0.0) + weight * merit
    return max(weights, key=lambda name: sums[name] / weights[name] - noise / math.sqrt(weights[name]))
