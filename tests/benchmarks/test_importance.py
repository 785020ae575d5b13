"""Test the share of each parameter in the variance of the results, with a function whose shares are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.curves.importance import drawn, held, shares
from benchmarks.curves.simulate import with_fixed
from tune_sparsity.search_spaces import load_space

A, B = 7.0, 0.1
PARTS = {  # the terms whose sum is the variance of Ishigami's function (Ishigami and Homma, 1990)
    ("x1",): (1 + B * math.pi**4 / 5) ** 2 / 2,
    ("x2",): A**2 / 8,
    ("x1", "x3"): B**2 * math.pi**8 * (1 / 18 - 1 / 50),
}


def ishigami(points: list[dict[str, float]]) -> np.ndarray:
    x1, x2, x3 = (np.array([point[name] for point in points]) for name in ("x1", "x2", "x3"))
    return np.asarray(np.sin(x1) + A * np.sin(x2) ** 2 + B * x3**4 * np.sin(x1))


def uniform(seed: int, count: int = 1 << 14) -> list[dict[str, float]]:
    values = np.random.default_rng(seed).uniform(-math.pi, math.pi, (count, 3))
    return [dict(zip(("x1", "x2", "x3"), row, strict=True)) for row in values]


def test_the_variance_shares_of_the_parameters_equal_their_closed_form() -> None:
    found, whole = shares(ishigami, uniform(0), uniform(1)), sum(PARTS.values())
    close = {"abs": 0.03}
    assert found.alone == pytest.approx({"x1": PARTS["x1",] / whole, "x2": PARTS["x2",] / whole, "x3": 0}, **close)
    total = {"x1": 1 - PARTS["x2",] / whole, "x2": PARTS["x2",] / whole, "x3": PARTS["x1", "x3"] / whole}
    assert found.total == pytest.approx(total, **close)
    pairs = {("x1", "x2"): 0, ("x1", "x3"): PARTS["x1", "x3"] / whole, ("x2", "x3"): 0}
    assert found.pairs == pytest.approx(pairs, abs=0.05)


def test_fixing_a_parameter_gains_accuracy_only_at_the_best_value() -> None:
    points = [{"x": x} for x in np.linspace(0, 1, 640)]
    assert held(lambda some: np.array([point["x"] for point in some]), points, "x", 1.0) < 0
    assert held(lambda some: np.array([point["x"] for point in some]), points, "x", 0.5) == pytest.approx(
        0.493, abs=0.001
    )


def test_configurations_with_drop_threshold_have_four_more_parameters() -> None:
    space = load_space("lpss", 0.9)
    (ramp,) = drawn(space, {"drop": "ramp"}, 1, 0, uniform=False)
    (threshold,) = drawn(space, {"drop": "threshold"}, 1, 0, uniform=True)
    assert threshold.keys() - ramp.keys() == {"feedback", "feedback_gain", "threshold.shape", "threshold.start"}
    assert ramp.keys() < threshold.keys()


def test_fixed_and_inapplicable_parameters_are_removed_from_a_space() -> None:
    space = with_fixed(load_space("lpss", 0.9), ("momentum",), drop="ramp")
    assert space.fixed["drop"] == "ramp"
    assert space.fixed["momentum"] == 0.9
    assert not {"drop", "momentum", "feedback", "threshold.start"} & space.distributions.keys()
    assert "threshold.end" in space.distributions
    assert space.near == (0.7, 0.95, 0.995)
    assert all(point.keys() <= space.distributions.keys() for point in space.first)
