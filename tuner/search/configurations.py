"""Chooses parameters to try again at another sparsity. All trials with the same parameters are judged together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from tune_sparsity.search_spaces.priors import log_sparsity
from tune_sparsity.tuner.search.monotone import NOISE, deviation, residuals

NEIGHBOURS = 64  # the number of trials by which configurations are judged: those nearest to the next trial's sparsity
FIRST = "first "
"""The prefix in the names of configurations that are first points of a space."""
# About log 2. In a mean over trials, the weight of a trial is 1 if it has the same density as the next trial, and about
# 1 / e if it has twice or half this density.
LIKE = 0.7


class Configuration(NamedTuple):
    """A set of parameters that is tried at several sparsities.

    Attributes:
        name: for a first point of the search space, "first N", where N is the index of this point in the space's list
            of first points. For other parameters, the name of the earliest trial that had them.
        params: all parameters except the final sparsity.
    """

    name: str
    params: dict[str, Any]


class Outcome(NamedTuple):
    """An ended trial of a configuration.

    Attributes:
        configuration: the configuration's name.
        sparsity: the trial's final sparsity.
        merit: the trial's metric on the validation data, negated if it is minimised; None if the trial was stopped
            early.
    """

    configuration: str
    sparsity: float
    merit: float | None


def best_configuration(outcomes: Sequence[Outcome], sparsity: float, noise: float = NOISE) -> str | None:
    """Return the name of the configuration to try again at a sparsity. Return None if no trial was completed.

    The lead of a trial is its merit minus its expected merit. The expected merit is a non-increasing function of the
    sparsity, which is fitted to the merits of the other trials (`FallingFit`). The lead of a trial that was stopped
    early is assumed to be minus two standard deviations. The lead of a configuration is a weighted mean of the leads of
    its trials. A trial has more weight if its sparsity is near to `sparsity`.

    First points of the search space (good parameters that the space lists) are judged by their lead plus one standard
    error. Other configurations are judged by their lead minus two standard errors, because otherwise a lucky
    configuration with a single trial would often beat a good configuration.

    Args:
        outcomes: the ended trials.
        sparsity: the sparsity of the next trial, in [0, 1).
        noise: the smallest standard deviation of leads that is assumed.
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
