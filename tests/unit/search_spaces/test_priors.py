"""Values drawn from priors have the expected distribution and stay within their ranges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from tune_sparsity.search_spaces import Prior
from tune_sparsity.search_spaces.priors import draw, from_unit, to_unit


def draws(distribution, prior, count=4000):
    rng = np.random.default_rng(0)
    return [draw(distribution, prior, rng) for _ in range(count)]


def test_a_float_is_normal_around_its_centre() -> None:
    values = np.array(draws(FloatDistribution(0.0, 10.0), Prior(5.0, 0.05)))
    assert values.mean() == pytest.approx(5.0, abs=0.05)
    assert values.std() == pytest.approx(0.5, rel=0.05)


def test_a_logarithmic_range_is_normal_in_its_logarithm() -> None:
    logs = np.log10(draws(FloatDistribution(1e-4, 1.0, log=True), Prior(0.01, 0.1)))
    assert logs.mean() == pytest.approx(-2.0, abs=0.05)
    assert logs.std() == pytest.approx(0.4, rel=0.05)


def test_a_centre_at_the_end_of_a_range_gives_a_half_normal_distribution() -> None:
    values = np.array(draws(FloatDistribution(0.0, 1.0), Prior(0.0, 0.1)))
    assert values.min() >= 0.0
    assert values.mean() == pytest.approx(0.1 * math.sqrt(2 / math.pi), rel=0.05)


def test_the_centre_of_a_choice_has_the_probability_one_minus_width() -> None:
    values = draws(CategoricalDistribution(("a", "b", "c")), Prior("b", 0.3))
    shares = {choice: values.count(choice) / len(values) for choice in "abc"}
    assert shares == pytest.approx({"a": 0.15, "b": 0.7, "c": 0.15}, abs=0.02)


def test_without_a_prior_all_values_are_equally_likely() -> None:
    values = draws(IntDistribution(1, 4), None)
    assert [values.count(n) / len(values) for n in (2, 3)] == pytest.approx([1 / 3, 1 / 3], abs=0.03)
    choices = draws(CategoricalDistribution((True, False)), None)
    assert choices.count(True) / len(choices) == pytest.approx(0.5, abs=0.03)


@given(
    low=st.floats(1e-6, 1e3), span=st.floats(0, 1e6), log=st.booleans(), step=st.none() | st.floats(0.01, 10),
    whole=st.booleans(), at=st.floats(0, 1), width=st.floats(1e-3, 1), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_every_drawn_value_belongs_to_the_distribution_of_the_parameter(
    low, span, log, step, whole, at, width, seed
) -> None:
    if whole:
        low = math.ceil(low)
        distribution = IntDistribution(
            low, low + int(span), log=log, step=1 if log or step is None else math.ceil(step)
        )
    else:
        distribution = FloatDistribution(low, low + span, log=log, step=None if log else step)
    centre = from_unit(distribution, at)
    value = draw(distribution, Prior(centre, width), np.random.default_rng(seed))
    assert distribution._contains(distribution.to_internal_repr(value))
    assert type(value) is type(distribution.low)
    if not whole and step is None and distribution.high > distribution.low * 1.01:
        assert to_unit(distribution, centre) == pytest.approx(at, abs=1e-6)
