"""Fits merit as a falling function of sparsity. The function gives the expected merit of a trial at any sparsity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

NOISE = 0.003  # the smallest standard deviation of merits, in units of Goal.scale: few trials may be equal by chance
_NORMAL = 1.4826  # the standard deviation of a normal distribution divided by its median absolute deviation


class FallingFit:
    """Fits a non-increasing function to points by least squares, with the pool-adjacent-violators algorithm (Ayer et
    al. 1955). The function is linear between the points and constant outside their range.

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
    """Return for each point the difference of its y from the falling fit of all other points.

    The point itself is left out of the fit. If it were included, the fit would pass through most points of a falling
    curve.

    Args:
        points: (x, y) pairs in any order, at least two.
    """
    return [y - FallingFit([*points[:i], *points[i + 1 :]])(x) for i, (x, y) in enumerate(points)]


def deviation(values: Iterable[float], noise: float = NOISE) -> float:
    """Return the standard deviation of the values, estimated from their median absolute deviation. Trainings that
    diverged therefore have almost no influence. The result is at least `noise`."""
    known = np.fromiter(values, dtype=float)
    return max(noise, _NORMAL * float(np.median(np.abs(known - np.median(known)))))
