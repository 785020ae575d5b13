"""The Pareto front of merit against sparsity, the best feasible trial, and the hypervolume.

Both objectives are maximised. Everything here is exact, O(n log n), and needs nothing but the records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from tune_sparsity.tuner.study.trial import TrialRecord

Point = tuple[float, float]
"""(sparsity, merit): the merit is the validation accuracy, or that of another objective."""


def point_of(record: TrialRecord) -> Point | None:
    """Return the trial's point in the plane of the objectives, or None while either of them is unknown or not
    finite."""
    if record.sparsity is None or record.merit is None:
        return None
    point = (float(record.sparsity), float(record.merit))
    return point if all(map(math.isfinite, point)) else None


def known_point(record: TrialRecord) -> Point:
    """Return the point of a trial that has one, as every completed trial has."""
    point = point_of(record)
    assert point is not None
    return point


def points_of(records: Iterable[TrialRecord]) -> list[Point]:
    """Return the points of the trials that have one, in the order of the records."""
    return [point for record in records if (point := point_of(record)) is not None]


def _feasible(records: Iterable[TrialRecord], target: float) -> list[tuple[Point, TrialRecord]]:
    candidates = (record for record in records if record.feasible(target))
    return [(point, record) for record in candidates if (point := point_of(record)) is not None]


def pareto_front(records: Iterable[TrialRecord], target: float) -> list[TrialRecord]:
    """Return the feasible trials that no other feasible trial dominates.

    A point dominates another if it is at least as good in both objectives and better in one. Of several trials at the
    same point only the one with the lowest number is kept.

    Args:
        records: trials in any order and any state.
        target: smallest sparsity that is feasible, in [0, 1].

    Returns:
        The front by rising sparsity, and therefore by falling merit.
    """
    # From the sparsest on, a trial is on the front exactly if it is better than everything at least as sparse.
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

    Ties go to the higher sparsity, then to fewer nonzero weights (an unknown count loses), then to the lower number.

    Args:
        records: trials in any order and any state.
        target: smallest sparsity that is feasible, in [0, 1].
    """

    def rank(item: tuple[Point, TrialRecord]) -> tuple[float, float, float, int]:
        (sparsity, merit), record = item
        nonzero = math.inf if record.nonzero_weights is None else record.nonzero_weights
        return -merit, -sparsity, nonzero, record.number

    ranked = min(_feasible(records, target), key=rank, default=None)
    return None if ranked is None else ranked[1]


def hypervolume(points: Iterable[Point], reference: Point) -> float:
    """Return the area that the points dominate above the reference point, both coordinates maximised.

    Points that are not better than the reference in both coordinates, or that are not a number, add nothing; neither
    do dominated points and duplicates. For a study of accuracy the reference is (target, 0.0): note that a trial
    exactly at the target then has an area of zero.

    Args:
        points: (sparsity, merit) pairs, in any order; they need not be a front.
        reference: the corner from which areas are measured.

    Returns:
        The exact area, in the product of the coordinates' units; 0.0 if there are no points above the reference.
    """
    x_low, y_low = reference
    above = sorted(((x, y) for x, y in points if x > x_low and y > y_low), reverse=True)
    strips: list[float] = []
    y_covered = y_low
    for x, y in above:  # by falling x: a strip of the full width x - x_low for what is new above the last one
        if y > y_covered:
            strips.append((x - x_low) * (y - y_covered))
            y_covered = y
    return math.fsum(strips)
