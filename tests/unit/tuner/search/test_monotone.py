"""Tests the monotone fit against scikit-learn and against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from tune_sparsity.tuner.search.monotone import FallingFit, residuals

coarse = st.integers(0, 8).map(lambda n: n / 8)  # so that ties are common
points = st.lists(st.tuples(coarse, coarse | st.floats(0, 1)), min_size=1, max_size=25)


@given(points)
def test_the_falling_fit_equals_scikit_learns_isotonic_regression(drawn: list[tuple[float, float]]) -> None:
    x, y = np.array(drawn).T
    theirs = IsotonicRegression(increasing=False, out_of_bounds="clip").fit(x, y)
    fit = FallingFit(drawn)
    at = np.linspace(-0.5, 1.5, 41)
    assert [fit(one) for one in at] == pytest.approx(theirs.predict(at).tolist(), abs=1e-12)


def test_falling_points_are_fitted_exactly_and_a_rise_is_levelled() -> None:
    fit = FallingFit([(0, 1.0), (1, 0.5), (2, 0.7), (3, 0.1)])
    assert [fit(x) for x in (0, 1, 1.5, 2, 2.5, 3, 9)] == pytest.approx([1.0, 0.6, 0.6, 0.6, 0.35, 0.1, 0.1])


def test_points_at_the_same_x_are_fitted_by_their_mean() -> None:
    assert FallingFit([(0, 1.0), (1, 0.2), (1, 0.6)])(1) == pytest.approx(0.4)


def test_a_fit_needs_a_point() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        FallingFit([])


def test_residuals_leave_the_point_itself_out() -> None:
    line = [(x / 10, 1 - x / 10) for x in range(11)]
    assert residuals(line)[1:-1] == pytest.approx([0.0] * 9, abs=1e-12)
    raised = [*line[:5], (0.5, 0.75), *line[6:]]
    assert residuals(raised)[5] == pytest.approx(0.25)
    assert max(residuals(raised)) == residuals(raised)[5]
