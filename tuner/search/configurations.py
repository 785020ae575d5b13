"""Which parameters are worth a trial at another sparsity: configurations, judged by all of their trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from tune_sparsity.tuner.search.cover import log_sparsity
from tune_sparsity.tuner.search.monotone import NOISE, deviation, residuals

NEIGHBOURS = 64  # completed trials that configurations are judged by
FIRST = "first "
"""What the names of configurations that are a space's first points begin with."""
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
    """A trial of a configuration that has ended.

    Attributes:
        configuration: its name.
        sparsity: that the trial was to end on.
        merit: None if the trial was stopped early, as one that was clearly worse than others.
    """

    configuration: str
    sparsity: float
    merit: float | None


def best_configuration(outcomes: Sequence[Outcome], sparsity: float, noise: float = NOISE) -> str | None:
    """Return the configuration to repeat at a sparsity; None if there is no outcome.

    A trial's lead is by how much its merit is above the monotone fit of the others. A configuration's lead is the
    mean of its trials', those of like sparsity counting more. A first point is judged by the upper end of what it may
    be worth (one standard error above its mean), a configuration that the sampler found by the lower end (two below):
    else the luckiest of many that had one trial each would be ahead of a good one. A trial that was stopped early
    counts as two standard deviations below the fit.

    Args:
        noise: the least standard deviation of merits.
    """
    at = log_sparsity(sparsity)
    near = sorted(outcomes, key=lambda one: abs(log_sparsity(one.sparsity) - at))[:NEIGHBOURS]
    points = [(log_sparsity(one.sparsity), one.merit) for one in near if one.merit is not None]
    if len(points) < 3:
        return next((one.configuration for one in near if one.merit is not None), None)
    known = iter(residuals(points))
    leads = [None if one.merit is None else next(known) for one in near]
    noise = deviation((lead for lead in leads if lead is not None), noise)
    weights: dict[str, float] = {}
    sums: dict[str, float] = {}
    for one, found in zip(near, leads, strict=True):
        lead = -2 * noise if found is None else found
        weight = math.exp(-abs(log_sparsity(one.sparsity) - at) / LIKE)
        weights[one.configuration] = weights.get(one.configuration, 0.0) + weight
        sums[one.configuration] = sums.get(one.configuration, 0.0) + weight * lead

    def worth(name: str) -> float:
        errors = 1 if name.startswith(FIRST) else -2
        return sums[name] / weights[name] + errors * noise / math.sqrt(weights[name])

    return max(weights, key=worth)
