"""Feedback: the published formula, and a controller that follows a ramp without winding up."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsity.feedback import ProportionalIntegral, Published
from sparsity.schedules import Schedule

# ---- published


def test_published_formula_on_both_sides_of_its_threshold() -> None:
    feedback = Published(0.8, delta=0.1)
    # S (1 - rho/2) = 0.72 for rho = 0.2.
    assert feedback.update(0.6, 0.2, 0.5) == (pytest.approx(0.9 * 0.6 / 0.8), 1.0)
    assert feedback.update(0.7199, 0.2, 0.5) == (pytest.approx(0.9 * 0.7199 / 0.8), 1.0)
    assert feedback.update(0.7201, 0.2, 0.5) == (pytest.approx(1.1 * 0.7201 / 0.8), 1.0)
    assert feedback.update(0.9, 0.2, 0.5) == (pytest.approx(1.1 * 0.9 / 0.8), 1.0)


def test_published_formula_with_another_delta() -> None:
    assert Published(0.5, delta=0.3).update(0.25, 0.0, 0.0)[0] == pytest.approx(0.7 * 0.5)
    assert Published(0.5, delta=0.3).update(0.5, 0.0, 0.0)[0] == pytest.approx(1.3)


@given(st.floats(0, 0.99), st.floats(0, 1), st.floats(0, 1))
def test_published_share_is_a_share(target: float, sparsity: float, rho: float) -> None:
    gamma, boost = Published(target).update(sparsity, rho, 0.5)
    assert 0.0 <= gamma <= 2.0
    assert boost == 1.0


def test_published_state_is_what_it_starts_from_and_last_answered() -> None:
    feedback = Published(0.8)
    assert feedback.state_dict() == {"gamma": 0.95}
    gamma, _ = feedback.update(0.4, 0.2, 0.1)
    other = Published(0.8)
    other.load_state_dict(feedback.state_dict())
    assert other.gamma == gamma == pytest.approx(0.45)


# ---- proportional-integral


def plant(controller: ProportionalIntegral, drops: float, steps: int = 300, start: float = 0.2) -> list[float]:
    """The sparsities of a network in which `drops` of the active weights fall below the threshold at every update."""
    sparsity, series = start, []
    for k in range(steps):
        gamma, boost = controller.update(sparsity, 0.2, k / steps)
        dropped = min(1.0, drops * boost) * (1 - sparsity)
        sparsity += dropped - min(gamma * dropped, sparsity)
        series.append(sparsity)
    return series


@pytest.mark.parametrize(("drops", "end"), [(0.03, 0.02), (0.1, 0.005), (0.3, 0.005)])
@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_follows_a_ramp(kind: str, drops: float, end: float) -> None:
    reference = Schedule(kind, 0.2, 0.9, 0.0, 0.7)
    series = plant(ProportionalIntegral(reference), drops)
    late = [abs(s - reference((k + 1) / 300)) for k, s in enumerate(series) if k > 150]
    assert max(late) < 0.03
    assert series[-1] == pytest.approx(0.9, abs=end)


def test_without_an_integral_it_lags_behind() -> None:
    reference = Schedule("linear", 0.2, 0.9)
    lag = [reference(1.0) - plant(ProportionalIntegral(reference, ki=ki), 0.1)[-1] for ki in (0.0, 1.0)]
    assert abs(lag[1]) < 0.2 * lag[0]


def test_formula() -> None:
    controller = ProportionalIntegral(Schedule("constant", 0.5), kp=2.0, ki=0.5)
    # e = .1: u = 2 x .1 + .5 x .1 = .25; the second time the sum of errors is .2.
    assert controller.update(0.4, 0.2, 0.0) == (pytest.approx(0.75), pytest.approx(1.25))
    assert controller.update(0.4, 0.2, 0.0) == (pytest.approx(0.70), pytest.approx(1.30))
    # Too sparse: more comes back than is dropped, and the threshold is not raised.
    gamma, boost = ProportionalIntegral(Schedule("constant", 0.5), kp=2.0, ki=0.5).update(0.6, 0.2, 0.0)
    assert gamma == pytest.approx(1.25)
    assert boost == 1.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.floats(0, 20), st.floats(0, 10))
def test_answers_are_bounded_whatever_is_measured(measured: list[float], kp: float, ki: float) -> None:
    controller = ProportionalIntegral(Schedule("cubic", 0.2, 0.9), kp=kp, ki=ki)
    for k, sparsity in enumerate(measured):
        gamma, boost = controller.update(sparsity, 0.2, k / len(measured))
        assert 0.0 <= gamma <= 2.0
        assert 1.0 <= boost < math.inf
        # Anti-windup: the integral term alone never exceeds what moves gamma from one bound to the other, but by one
        # error's share.
        assert ki * abs(controller.integral) <= 1.0 + (kp + ki) + 1e-9


@pytest.mark.parametrize(("stuck", "then"), [(0.0, 1.0), (1.0, 0.0)])
def test_recovers_at_once_after_a_long_saturation(stuck: float, then: float) -> None:
    controller = ProportionalIntegral(Schedule("constant", 0.5))
    for _ in range(1000):
        saturated, _ = controller.update(stuck, 0.2, 0.5)
    assert saturated == (0.0 if stuck == 0.0 else 2.0)
    for _ in range(3):
        gamma, _ = controller.update(then, 0.2, 0.5)
    assert gamma == (0.0 if then == 0.0 else 2.0)


def test_state_is_complete() -> None:
    one = ProportionalIntegral(Schedule("cubic", 0.2, 0.9))
    for _ in range(5):
        one.update(0.25, 0.2, 0.0)
    other = ProportionalIntegral(Schedule("cubic", 0.2, 0.9))
    other.load_state_dict(one.state_dict())
    fresh = ProportionalIntegral(Schedule("cubic", 0.2, 0.9))
    expected = one.update(0.25, 0.2, 0.1)
    assert other.update(0.25, 0.2, 0.1) == expected
    assert fresh.update(0.25, 0.2, 0.1) != expected
