"""Tests how a study covers a range of sparsities: gaps, the expected gain of the front, and the order of methods."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.examples import examples
from tune_sparsity.search_spaces.priors import from_log, log_sparsity
from tune_sparsity.tuner.search.cover import Cover, Range, Turn, most_to_gain, widest_gap
from tune_sparsity.tuner.study.goal import along_front, at_targets
from tune_sparsity.tuner.study.pareto import hypervolume

FRONT = along_front(0.5, 0.99)
WHOLE = Range(0.5, 0.99)


def gaps(placed: list[float], low: float, high: float) -> list[float]:
    """Return the gaps as shares of the range in log density, with the gaps to the ends of the range."""
    positions = [math.log(1 - low), *sorted((math.log(1 - s) for s in placed), reverse=True), math.log(1 - high)]
    return [(first - second) / (positions[0] - positions[-1]) for first, second in pairwise(positions)]


@given(st.floats(0, 0.9999))
def test_log_sparsity_is_the_negative_logarithm_of_the_density(sparsity: float) -> None:
    assert math.exp(-log_sparsity(sparsity)) == pytest.approx(1 - sparsity)
    assert from_log(log_sparsity(sparsity)) == pytest.approx(sparsity, abs=1e-12)


@examples(25)
@given(
    low=st.floats(0, 0.9),
    width=st.floats(0.01, 0.99),
    seed=st.integers(0, 100),
    trials=st.integers(3, 120),
    fails=st.floats(0, 0.3),
)
def test_no_gap_of_a_front_is_wide(low: float, width: float, seed: int, trials: int, fails: float) -> None:
    """After n trials no gap in the log density is wider than 3/n of the range. It does not matter where the
    front gains most, and which trials failed or were stopped."""
    goal = along_front(low, low + width * (0.999 - low))
    rng = np.random.default_rng(seed)
    knee = rng.uniform(goal.lowest, goal.highest)
    cover = Cover(goal, {"lpss": Range(0.0, 1 - 1e-6)})
    placed: list[float] = []
    completed: list[tuple[float, float]] = []
    for number in range(trials):
        turn = cover.next(number, {"lpss": placed}, completed)
        assert turn is not None
        assert goal.lowest <= turn.sparsity <= goal.highest
        placed.append(turn.sparsity)
        if rng.random() > fails:
            completed.append((turn.sparsity, float(0.97 - 0.5 * (turn.sparsity > knee) + 0.01 * rng.normal())))
        if number >= 2:
            assert max(gaps(placed, goal.lowest, goal.highest)) <= 3 / len(placed) + 1e-9


def test_the_ends_of_the_range_are_covered_first_and_then_the_middles() -> None:
    cover, placed = Cover(FRONT, {"lpss": WHOLE}), []
    for number in range(5):
        turn = cover.next(number, {"lpss": placed}, [])
        assert turn is not None
        placed.append(turn.sparsity)
    extent = log_sparsity(0.99) - log_sparsity(0.5)
    shares = [(log_sparsity(sparsity) - log_sparsity(0.5)) / extent for sparsity in placed]
    assert shares[:3] == pytest.approx([1, 0, 0.5])
    assert sorted(shares[3:]) == pytest.approx([0.25, 0.75])


def test_methods_cover_the_range_each_for_itself() -> None:
    cover = Cover(FRONT, {"lpss": WHOLE, "gmp": WHOLE})
    placed: dict[str, list[float]] = {"lpss": [], "gmp": []}
    for number in range(60):
        turn = cover.next(number, placed, [(0.99, 0.5), (0.6, 0.9)])
        assert turn is not None
        placed[turn.method or "lpss"].append(turn.sparsity)  # where the sampler may choose the method, it takes lpss
    for own in placed.values():
        assert max(gaps(own, 0.5, 0.99)) <= 3 / 30


def test_no_next_trial_is_planned_if_no_method_searches_a_final_sparsity() -> None:
    assert Cover(FRONT, {}).next(0, {}, []) is None


def test_targets_alternate_and_every_third_round_leaves_the_method_open() -> None:
    cover = Cover(at_targets(0.8, 0.9), {"lpss": Range(0.8, 0.9), "gmp": Range(0.8, 0.9)})
    placed: dict[str, list[float]] = {"lpss": [], "gmp": []}
    turns = []
    for number in range(12):
        turn = cover.next(number, placed, [])
        assert turn is not None
        turns.append(turn)
        placed[turn.method or "gmp"].append(turn.sparsity)
    assert [turn.sparsity for turn in turns] == [0.8, 0.9] * 6
    assert [turn.method for turn in turns] == [*["lpss"] * 2, *["gmp"] * 2, *[None] * 2, *["lpss"] * 4, *[None] * 2]


@pytest.mark.parametrize(
    ("own", "placed", "expected"),
    [
        (WHOLE, [], (math.inf, 0.99)),
        (WHOLE, [0.7, 0.99], (math.inf, 0.5)),
        (Range(0.6, 0.7), [], (math.inf, 0.7)),
        (Range(0.6, 0.6), [0.6, 0.6], (0.5, 0.6)),
        (Range.of([0.5, 0.9, 0.99]), [0.99, 0.5], (1.0, 0.9)),
        (Range.of([0.5, 0.9, 0.99]), [0.99, 0.5, 0.9, 0.99, 0.5], (0.2, 0.9)),
        (Range.of([0.5, 0.9, 0.99]), [0.99, 0.5, 0.9], (1 / 3, 0.99)),
    ],
)
def test_the_widest_gap_and_its_next_sparsity_match_known_values(
    own: Range, placed: list[float], expected: tuple[float, float]
) -> None:
    assert widest_gap(own, placed) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (Range(0.6, 0.7), Range(0.6, 0.7)),
        (Range(0.0, 0.8), Range(0.5, 0.8)),
        (Range(0.1, 0.2), Range(0.1, 0.2)),  # this range has no part within the goal's, so all of it stays
        (Range.of([0.1, 0.6, 0.995]), Range(0.6, 0.6, (0.6,))),
    ],
)
def test_the_sparsities_of_a_method_are_limited_to_the_range_of_the_goal(own: Range, expected: Range) -> None:
    assert own.within(0.5, 0.99) == expected


def expected_gain(sparsity: float, mean: float, deviation: float, completed: list[tuple[float, float]]) -> float:
    """The mean gain in hypervolume of many simulated trials."""
    accuracies = np.random.default_rng(0).normal(mean, deviation, 4000)
    before = hypervolume(completed, (0.5, 0.0))
    return float(np.mean([hypervolume([*completed, (sparsity, a)], (0.5, 0.0)) - before for a in accuracies]))


def test_the_expected_gain_is_that_of_simulated_trials() -> None:
    from tune_sparsity.tuner.search.cover import _gain, _steps

    completed = [(0.6, 0.95), (0.9, 0.9), (0.97, 0.6), (0.7, 0.5)]
    for sparsity, mean, deviation in [(0.95, 0.8, 0.1), (0.65, 0.95, 0.02), (0.99, 0.3, 0.05), (0.55, 0.7, 0.01)]:
        closed = _gain(sparsity, mean, deviation, 0.5, _steps(FRONT, completed))
        assert closed == pytest.approx(expected_gain(sparsity, mean, deviation, completed), rel=0.05, abs=1e-6)


def test_the_next_sparsity_lies_in_the_gap_of_the_front_with_the_largest_possible_gain() -> None:
    between = most_to_gain(FRONT, [(0.5, 0.98), (0.6, 0.979), (0.95, 0.5), (0.99, 0.49)])
    assert 0.6 < between < 0.95
    uncovered = most_to_gain(FRONT, [(0.5, 0.98), (0.6, 0.979), (0.7, 0.978)])
    assert uncovered == pytest.approx(0.99)


def test_a_turn_without_a_method_lets_the_sampler_choose_the_method() -> None:
    assert Turn(0.9).method is None
