"""Schedules have known values at the beginning, at the end and between them."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tune_sparsity.sparsity.schedules import KINDS, PiecewiseLinear, Schedule, published_learning_rate, warmup_cosine

units = st.floats(0, 1)
values = st.floats(-10, 10)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    begin, end = sorted((draw(units), draw(units)))
    return Schedule(draw(st.sampled_from(KINDS)), draw(values), draw(values), begin, end)


@pytest.mark.parametrize(
    ("kind", "progress", "value"),
    [
        ("constant", 0.5, 0.8),
        ("constant", 1.0, 0.8),
        ("linear", 0.25, 0.65),
        ("linear", 0.5, 0.5),
        ("cosine", 0.5, 0.5),
        ("cosine", 0.25, 0.2 + 0.6 * (1 + math.sqrt(0.5)) / 2),
        ("cosine", 1 / 3, 0.2 + 0.6 * 0.75),
        ("cubic", 0.5, 0.2 + 0.6 / 8),
        ("cubic", 0.75, 0.2 + 0.6 / 64),
        # With x = e^-2.5, the shape (e^-2.5 - e^-5)/(1 - e^-5) is (x - x^2)/(1 - x^2) = x/(1 + x) = 1/(1 + e^2.5).
        ("exponential", 0.5, 0.2 + 0.6 / (1 + math.exp(2.5))),
    ],
)
def test_schedules_have_known_values_between_their_ends(kind: str, progress: float, value: float) -> None:
    assert Schedule(kind, 0.8, 0.2)(progress) == pytest.approx(value, rel=1e-12)
    # The same curve, with its begin at progress .2 and its end at progress .6.
    assert Schedule(kind, 0.8, 0.2, 0.2, 0.6)(0.2 + 0.4 * progress) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_has_exact_values_before_its_begin_and_after_its_end(kind: str) -> None:
    schedule = Schedule(kind, 0.3, 0.1, 0.2, 0.7)
    stop = 0.3 if kind == "constant" else 0.1
    assert [schedule(x) for x in (0.0, 0.1, 0.2)] == [0.3] * 3
    assert [schedule(x) for x in (0.7, 0.8, 1.0)] == [stop] * 3


def test_gradual_pruning_rises_as_published() -> None:
    # Zhu and Gupta: while the time t goes from t0 to t0 + n dt, the sparsity goes from s_i to s_f. It is
    # s = s_f + (s_i - s_f) (1 - (t - t0)/(n dt))^3. Here t0 = .1 and n dt = .6.
    schedule = Schedule("cubic", 0.2, 0.9, 0.1, 0.7)
    for t in np.linspace(0.1, 0.7, 20):
        assert schedule(float(t)) == pytest.approx(0.9 + (0.2 - 0.9) * (1 - (t - 0.1) / 0.6) ** 3, abs=1e-12)


@given(schedules(), units, units)
def test_a_schedule_is_monotone_from_start_to_stop(schedule: Schedule, one: float, other: float) -> None:
    one, other = sorted((one, other))
    low, high = sorted((schedule.start, schedule.stop))
    rounding = 1e-12
    assert low - rounding <= schedule(one) <= high + rounding
    if schedule.start <= schedule.stop:
        assert schedule(one) <= schedule(other) + rounding
    else:
        assert schedule(one) >= schedule(other) - rounding


@given(st.sampled_from([kind for kind in KINDS if kind != "constant"]), units)
def test_a_schedule_is_continuous_at_its_begin_and_end(kind: str, begin: float) -> None:
    assume(begin < 0.9)
    schedule = Schedule(kind, 1.0, 0.0, begin, 1.0)
    assert schedule(begin + 1e-9) == pytest.approx(1.0, abs=1e-6)
    assert schedule(1.0 - 1e-9) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("begin", "end"), [(-0.1, 1.0), (0.0, 1.1), (0.6, 0.5), (math.nan, 1.0)])
def test_impossible_spans_are_refused(begin: float, end: float) -> None:
    with pytest.raises(ValueError, match="0 <= begin <= end <= 1"):
        Schedule("linear", 1.0, 0.0, begin, end)


def test_the_error_about_an_unknown_schedule_lists_the_known_schedules() -> None:
    with pytest.raises(ValueError, match=r"unknown schedule 'square': choose one of constant, linear, cosine"):
        Schedule("square", 1.0)


@given(st.lists(st.tuples(units, values), min_size=1, max_size=6, unique_by=lambda knot: knot[0]), st.floats(-1, 2))
def test_piecewise_linear_is_numpys_interpolation(knots: list[tuple[float, float]], progress: float) -> None:
    knots = sorted(knots)
    x, y = zip(*knots, strict=True)
    assume(all(b - a > 1e-6 for a, b in pairwise(x)))
    schedule = PiecewiseLinear(tuple(knots))
    assert schedule(progress) == pytest.approx(float(np.interp(progress, x, y)), abs=1e-6)
    for at, value in knots:
        assert schedule(at) == pytest.approx(value, abs=1e-9)


def test_piecewise_linear_jumps_where_two_knots_meet() -> None:
    schedule = PiecewiseLinear(((0.0, 1.0), (0.5, 2.0), (0.5, 4.0), (1.0, 5.0)))
    assert schedule(0.499999) == pytest.approx(2.0, abs=1e-4)
    assert schedule(0.5) == 4.0


@pytest.mark.parametrize("knots", [(), ((0.5, 1.0), (0.2, 2.0))])
def test_bad_knots_are_refused(knots: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(ValueError, match="needs at least one knot"):
        PiecewiseLinear(knots)


def test_published_learning_rate_goes_through_its_knots() -> None:
    rate = published_learning_rate(40)
    published = {0: 0.04, 40 / 6: 2.0, 40 / 3: 0.5, 37: 0.004, 40: 0.0002}
    for epoch, value in published.items():
        assert 2 * rate(epoch / 40) == pytest.approx(value, rel=1e-9)
    assert 2 * rate(10 / 40) == pytest.approx((2.0 + 0.5) / 2)  # half-way between the knots at 40/6 and 40/3


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5])
def test_the_published_learning_rate_works_for_trainings_of_one_to_five_epochs(epochs: int) -> None:
    rate = published_learning_rate(epochs)
    shares = [rate(k / 1000) for k in range(1001)]
    assert max(shares) == pytest.approx(1.0, abs=0.01)
    assert min(shares) > 0
    assert shares[-1] == pytest.approx(0.0001)
    falling = shares[170:]
    assert all(later <= earlier for earlier, later in pairwise(falling))


def test_warmup_cosine_rises_linearly_and_then_falls_as_a_cosine() -> None:
    assert warmup_cosine(0.0) == 0.01  # not 0, because the first step would then change nothing
    assert warmup_cosine(0.025) == pytest.approx(0.5)
    assert warmup_cosine(0.05) == pytest.approx(1.0)
    assert warmup_cosine(0.525) == pytest.approx(0.5)
    assert warmup_cosine(1.0) == pytest.approx(0.0, abs=1e-12)
    assert warmup_cosine(0.6, warmup=0.2) == pytest.approx(0.5)
