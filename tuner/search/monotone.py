"""Fits a non-increasing function of the sparsity to the merits of trials. The function gives the expected merit of a
trial at any sparsity. The merit is the metric, negated if it is minimised."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

NOISE = 0.003  # a lower bound of merits' standard deviation, in units of Goal.scale: merits may be equal by chance
_NORMAL = 1.4826  # the standard deviation of a normal distribution divided by its median absolute deviation


class FallingFit:
    """Fits a non-increasing function to points by least squares, with the pool-adjacent-violators algorithm (Ayer et
    al. 1955). The function is linear between neighbouring x, and constant outside the range of x.

    Args:
        points: (x, y) pairs in any order. There must be at least one pair. Several pairs may have the same x.

    Raises:
        ValueError: if there is no point.
    """

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        if not points:
            raise ValueError("a fit needs at least one point")
        x, y = np.array(points, dtype=float).T
        self._x, where, weights = np.unique(x, return_inverse=True, return_counts=True)
        means = np.bincount(where, weights=y) / weights
        blocks: list[tuple[float, float, int]] = []  # (mean of y, number of points, number of different x)
        for mean, weight in zip(means.tolist(), weights.tolist(), strict=True):
            block = (mean, weight, 1)
            while blocks and blocks[-1][0] <= block[0]:
                before = blocks.pop()
                weight = before[1] + block[1]
                block = ((before[0] * before[1] + block[0] * block[1]) / weight, weight, before[2] + block[2])
            blocks.append(block)
        self._y = np.repeat([mean for mean, _, _ in blocks], [count for _, _, count in blocks])

    def __call__(self, x: float) -> float:
        return float(np.interp(x, self._x, self._y))


def residuals(points: Sequence[tuple[float, float]]) -> list[float]:
    """Return for each point its y minus the value of a falling fit (`FallingFit`) of all other points.

    If the fit included the point itself, it would pass through most points of a falling curve, and most differences
    would be 0.

    Args:
        points: (x, y) pairs in any order, at least two.
    """
    return [y - FallingFit([*points[:i], *points[i + 1 :]])(x) for i, (x, y) in enumerate(points)]


def deviation(values: Iterable[float], noise: float = NOISE) -> float:
    """Return a robust estimate of the standard deviation of the values, from their median absolute deviation. A few
    values far away, such as those of diverged trainings, have almost no influence. The result is at least `noise`."""
    known = np.fromiter(values, dtype=float)
    return max(noise, _NORMAL * float(np.median(np.abs(known - np.median(known)))))
