"""Computes the Pareto front of merit and sparsity, the best feasible trial, and the hypervolume.

Both objectives are maximized. In this module, a trial is feasible if it completed with a sparsity of at least the
argument `target`. `Goal` applies other limits, such as bytes, before it calls this module. All results are exact and
take O(n log n) time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from tune_sparsity.tuner.study.trial import TrialRecord

Point = tuple[float, float]
"""A pair (sparsity, merit). The merit is the validation metric, with the opposite sign if the metric is minimized."""


def point_of(record: TrialRecord) -> Point | None:
    """Return the trial's sparsity and merit, or None if one of them is unknown or not finite."""
    if record.sparsity is None or record.merit is None:
        return None
    point = (float(record.sparsity), float(record.merit))
    return point if all(map(math.isfinite, point)) else None


def known_point(record: TrialRecord) -> Point:
    """Return the sparsity and the merit (see `Point`) of a trial. Both must be known, as they are for every completed
    trial."""
    point = point_of(record)
    assert point is not None
    return point


def points_of(records: Iterable[TrialRecord]) -> list[Point]:
    """Return the points (sparsity, merit) of the records, in the order of the records. Leave out records without a
    point (see `point_of`)."""
    return [point for record in records if (point := point_of(record)) is not None]


def _feasible(records: Iterable[TrialRecord], target: float) -> list[tuple[Point, TrialRecord]]:
    candidates = (record for record in records if record.feasible(target))
    return [(point, record) for record in candidates if (point := point_of(record)) is not None]


def pareto_front(records: Iterable[TrialRecord], target: float) -> list[TrialRecord]:
    """Return the feasible trials that no other feasible trial dominates.

    A point dominates another if it is at least as good in both objectives and better in at least one. If several trials
    have the same point, the front contains only the one with the lowest number.

    Args:
        records: trials in any order and any state.
        target: the smallest feasible sparsity, in [0, 1].

    Returns:
        The front in order of increasing sparsity, and therefore of decreasing merit.
    """
    # A trial is on the front exactly if its merit is larger than that of each trial which is at least as sparse.
    ranked = sorted(_feasible(records, target), key=lambda item: (-item[0][0], -item[0][1], item[1].number))
    front: list[TrialRecord] = []
    best = -math.inf
    for (_, merit), record in ranked:
        if merit > best:
            front.append(record)
            best = merit
    return front[::-1]


def best_trial(records: Iterable[TrialRecord], target: float) -> TrialRecord | None:
    """Return the best feasible trial, or None if no trial is feasible.

    The best trial has the largest merit. Among trials with equal merits, the best trial has the highest sparsity, then
    the smallest number of nonzero weights (an unknown number counts as infinite), then the lowest trial number.

    Args:
        records: trials in any order and any state.
        target: the smallest feasible sparsity, in [0, 1].
    """

    def rank(item: tuple[Point, TrialRecord]) -> tuple[float, float, float, int]:
        (sparsity, merit), record = item
        nonzero = math.inf if record.nonzero_weights is None else record.nonzero_weights
        return -merit, -sparsity, nonzero, record.number

    ranked = min(_feasible(records, target), key=rank, default=None)
    return None if ranked is None else ranked[1]


def hypervolume(points: Iterable[Point], reference: Point) -> float:
    """Return the area that the points dominate, measured from the reference point. Larger coordinates are better.

    A point adds area only if both its coordinates are larger than those of the reference point, and if no other point
    dominates it. A point with NaN adds nothing.

    Args:
        points: (sparsity, merit) pairs in any order. They may contain dominated points and duplicates.
        reference: the lower corner of the area, as (sparsity, merit). For example, it is (target, 0.0) for the metric
            accuracy.

    Returns:
        The exact area in units of sparsity times merit; 0.0 if no point is above the reference.
    """
    x_low, y_low = reference
    above = sorted(((x, y) for x, y in points if x > x_low and y > y_low), reverse=True)
    strips: list[float] = []
    y_covered = y_low
    for x, y in above:  # x falls: each point adds a strip from x_low to x, above the largest y so far
        if y > y_covered:
            strips.append((x - x_low) * (y - y_covered))
            y_covered = y
    return math.fsum(strips)
