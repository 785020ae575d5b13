"""The controllers of the sparsity: the published formula, and control of a simulated network."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_sparsity.sparsity.schedules import Schedule
from tune_sparsity.sparsity.topology.controller import PaperFeedback, ProportionalIntegral

# ---- published


def test_paper_feedback_equals_the_published_formula() -> None:
    feedback = PaperFeedback(0.8, delta=0.1)
    # The target is .8 and rho is .2. The factor changes from .9 to 1.1 at the sparsity .8 (1 - .2/2) = .72.
    assert feedback.update(0.6, 0.1, 0.2, 0.5) == pytest.approx(0.9 * 0.6 / 0.8)
    assert feedback.update(0.7199, 0.1, 0.2, 0.5) == pytest.approx(0.9 * 0.7199 / 0.8)
    assert feedback.update(0.7201, 0.1, 0.2, 0.5) == pytest.approx(1.1 * 0.7201 / 0.8)
    assert feedback.update(0.9, 0.1, 0.2, 0.5) == pytest.approx(1.1 * 0.9 / 0.8)


def test_paper_feedback_equals_the_published_formula_for_another_delta() -> None:
    assert PaperFeedback(0.5, delta=0.3).update(0.25, 0.1, 0.0, 0.0) == pytest.approx(0.7 * 0.5)
    assert PaperFeedback(0.5, delta=0.3).update(0.5, 0.1, 0.0, 0.0) == pytest.approx(1.3)


@given(st.floats(0, 0.99), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_paper_feedback_lies_in_0_to_2_and_never_raises_the_threshold(
    target: float, sparsity: float, dropped: float, rho: float
) -> None:
    feedback = PaperFeedback(target)
    assert 0.0 <= feedback.update(sparsity, dropped, rho, 0.5) <= 2.0
    assert feedback.raised == 0.0


# ---- proportional-integral


def plant(
    controller: ProportionalIntegral, share: float, steps: int = 60, start: float = 0.2, leak: float = 0.0
) -> list[float]:
    """Simulate a network and return its sparsities. At each update, the fraction `share` x rho of the active weights is
    dropped. The controller may raise rho, and makes some weights active again. As a disturbance, the fraction `leak` of
    all weights becomes active again. Without the controller, rho falls from .2 to 0."""
    rho, sparsity, series = Schedule("cosine", 0.2, 0.0, 0.0, 0.7), start, []
    for k in range(steps):
        progress = k / steps
        dropped = min(1.0, share * (rho(progress) + controller.raised)) * (1 - sparsity)
        gamma = controller.update(sparsity, dropped, rho(progress), progress)
        sparsity += dropped - min(gamma * dropped, sparsity) - min(leak, sparsity)
        series.append(sparsity)
    return series


@pytest.mark.parametrize("share", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_the_sparsity_follows_its_schedule_whether_few_or_many_weights_drop(kind: str, share: float) -> None:
    reference = Schedule(kind, 0.2, 0.9, 0.0, 0.7)
    series = plant(ProportionalIntegral(reference), share)
    late = [abs(s - reference((k + 1) / 60)) for k, s in enumerate(series) if k > 20]
    assert max(late) < 0.06
    assert series[-1] == pytest.approx(0.9, abs=0.015)


def test_without_a_raised_threshold_the_sparsity_misses_its_target() -> None:
    class Scheduled(ProportionalIntegral):
        raised = property(lambda self: 0.0, lambda self, value: None)  # type: ignore[assignment]

    assert plant(Scheduled(Schedule("cubic", 0.2, 0.9, 0.0, 0.7)), 0.3)[-1] < 0.8


def test_the_integral_term_reduces_the_error_left_by_a_constant_disturbance() -> None:
    reference = Schedule("constant", 0.8)
    left = [0.8 - plant(ProportionalIntegral(reference, ki=ki), 2.0, leak=0.02)[40] for ki in (0.0, 0.3)]
    assert left[0] > 0.015
    assert abs(left[1]) < 0.3 * left[0]


def test_proportional_integral_equals_its_formula() -> None:
    controller = ProportionalIntegral(Schedule("constant", 0.5), kp=1.0, ki=0.5)
    # The sparsity .4 is e = .1 below the target. In the first update u = kp e + ki e = .15, and .2 of the weights are
    # dropped, so gamma = 1 - .15/.2. In the second update the sum of e is .2, so u = kp e + ki .2 = .2.
    assert controller.update(0.4, 0.2, 0.2, 0.0) == pytest.approx(1 - 0.15 / 0.2)
    assert controller.update(0.4, 0.2, 0.2, 0.0) == pytest.approx(1 - 0.20 / 0.2)
    assert controller.raised == 0.0
    # The network is too sparse, so more weights grow than were dropped.
    assert ProportionalIntegral(Schedule("constant", 0.5), ki=0.5).update(0.4 + 0.2, 0.2, 0.2, 0.0) == pytest.approx(
        1.75
    )


def test_the_threshold_rises_if_too_few_weights_drop_and_is_halved_otherwise() -> None:
    controller = ProportionalIntegral(Schedule("constant", 0.9), ki=0.0)
    assert controller.update(0.5, 0.1, 0.2, 0.0) == 0.0
    assert controller.raised == pytest.approx(2 * (0.4 - 0.1))
    controller.update(0.9, 0.1, 0.2, 0.0)
    assert controller.raised == pytest.approx(0.3)


def test_the_controller_does_not_divide_by_zero_if_nothing_was_dropped() -> None:
    assert ProportionalIntegral(Schedule("constant", 0.5)).update(0.4, 0.0, 0.0, 0.0) == 0.0


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=60), st.floats(0, 20), st.floats(0, 10)
)
def test_gamma_and_the_integral_are_bounded_for_any_measurements(
    measured: list[tuple[float, float]], kp: float, ki: float
) -> None:
    controller = ProportionalIntegral(Schedule("cubic", 0.2, 0.9), kp=kp, ki=ki)
    for k, (sparsity, dropped) in enumerate(measured):
        assert 0.0 <= controller.update(sparsity, dropped, 0.2, k / len(measured)) <= 2.0
        assert 0.0 <= controller.raised <= 1.0
        # Anti-windup: an error e is added to the integral only if |kp e + ki integral| < dropped <= 1, or if it makes
        # the integral smaller. Because |e| <= 1, |ki integral| stays below 1 + kp.
        assert ki * abs(controller.integral) <= 1.0 + (kp + ki) + 1e-9


def test_the_controller_recovers_soon_after_a_long_saturation() -> None:
    controller = ProportionalIntegral(Schedule("constant", 0.5))
    for _ in range(1000):
        assert controller.update(0.0, 0.05, 0.2, 0.5) == 0.0
    assert controller.update(0.9, 0.05, 0.2, 0.5) == 2.0
    for _ in range(12):
        controller.update(0.9, 0.05, 0.2, 0.5)
    assert controller.raised < 0.001


def test_a_controller_with_a_loaded_state_continues_like_the_original() -> None:
    one, other, fresh = (ProportionalIntegral(Schedule("cubic", 0.2, 0.9)) for _ in range(3))
    for _ in range(5):
        one.update(0.25, 0.2, 0.2, 0.1)
    other.load_state_dict(one.state_dict())
    expected = one.update(0.25, 0.2, 0.2, 0.1)
    assert (other.update(0.25, 0.2, 0.2, 0.1), other.raised) == (expected, one.raised)
    assert fresh.update(0.25, 0.2, 0.2, 0.1) != expected
