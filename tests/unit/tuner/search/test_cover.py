"""Tests how a study covers a range of sparsities, and the order of targets and methods."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.examples import examples
from tune_sparsity.search_spaces.priors import from_log, log_sparsity
from tune_sparsity.tuner.search.cover import Cover, Range, Turn, farthest_from
from tune_sparsity.tuner.study.goal import along_front, at_targets

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


def front_of(cover: Cover, trials: int, placed: list[float] | None = None) -> list[float]:
    """Return the sparsities of a study of lpss with so many trials. It may begin with trials of an earlier process."""
    placed = list(placed or ())
    while len(placed) < trials:
        turn = cover.next(len(placed), {"lpss": placed})
        assert turn is not None
        placed.append(turn.sparsity)
    return placed


def covering(low: float, high: float, trials: int) -> Cover:
    return Cover(along_front(low, high), {"lpss": Range(0.0, 1 - 1e-6)}, trials)


ranges = st.tuples(st.floats(0, 0.9), st.floats(0.91, 0.999))


@examples(25)
@given(ranges, st.integers(2, 120))
def test_at_the_end_the_trials_of_a_front_are_even_in_the_logarithm_of_the_density(
    ends: tuple[float, float], trials: int
) -> None:
    placed = sorted(front_of(covering(*ends, trials), trials))
    assert (placed[0], placed[-1]) == ends
    assert 1 - np.array(placed) == pytest.approx(np.geomspace(1 - ends[0], 1 - ends[1], trials))


@examples(25)
@given(ranges, st.integers(2, 120), st.integers(2, 200))
def test_no_gap_of_a_front_is_wide_while_it_grows(ends: tuple[float, float], trials: int, more: int) -> None:
    """After n trials no gap in the log density is wider than 3/n of the range, also if the study goes on with another
    number of trials."""
    placed = front_of(covering(*ends, trials), trials)
    placed = front_of(covering(*ends, trials + more), trials + more, placed)
    for number in range(2, len(placed) + 1):
        assert max(gaps(placed[:number], *ends)) <= 3 / number + 1e-9


def test_the_sparser_end_of_the_range_is_covered_first_and_then_the_other_end_and_the_middles() -> None:
    extent = log_sparsity(0.99) - log_sparsity(0.5)
    placed = front_of(covering(0.5, 0.99, 9), 5)
    shares = [(log_sparsity(sparsity) - log_sparsity(0.5)) / extent for sparsity in placed]
    assert shares == pytest.approx([1, 0, 0.5, 0.75, 0.25])


def test_methods_cover_the_range_each_for_itself() -> None:
    cover = Cover(FRONT, {"lpss": WHOLE, "gmp": WHOLE}, 59)
    placed: dict[str, list[float]] = {"lpss": [], "gmp": []}
    for number in range(60):
        turn = cover.next(number, placed)
        assert turn is not None
        assert turn.method is not None
        placed[turn.method].append(turn.sparsity)
    even = np.geomspace(0.5, 0.01, 30)
    assert all(1 - np.array(sorted(own)) == pytest.approx(even) for own in placed.values())


def test_no_next_trial_is_planned_if_no_method_searches_a_final_sparsity() -> None:
    assert Cover(FRONT, {}, 8).next(0, {}) is None


def test_targets_alternate_and_every_third_round_leaves_the_method_open() -> None:
    cover = Cover(at_targets(0.8, 0.9), {"lpss": Range(0.8, 0.9), "gmp": Range(0.8, 0.9)}, 12)
    placed: dict[str, list[float]] = {"lpss": [], "gmp": []}
    turns = []
    for number in range(12):
        turn = cover.next(number, placed)
        assert turn is not None
        turns.append(turn)
        placed[turn.method or "gmp"].append(turn.sparsity)
    assert [turn.sparsity for turn in turns] == [0.8, 0.9] * 6
    assert [turn.method for turn in turns] == [*["lpss"] * 2, *["gmp"] * 2, *[None] * 2, *["lpss"] * 4, *[None] * 2]


@pytest.mark.parametrize(
    ("sparsities", "placed", "expected"),
    [
        ((0.5, 0.9, 0.99), [], (math.inf, 0.99)),
        ((0.5, 0.9, 0.99), [0.99], (1.0, 0.5)),
        ((0.5, 0.75, 0.875, 0.9375), [0.5, 0.9375], (1 / 3, 0.875)),  # 0.75 is as far, but not as sparse
        ((0.5, 0.9, 0.99), [0.99, 0.5, 0.9], (-3, 0.99)),
        ((0.5, 0.9, 0.99), [0.99, 0.5, 0.9, 0.99, 0.5], (-5, 0.9)),
        ((0.6, 0.6), [0.6, 0.6], (-2, 0.6)),
    ],
)
def test_the_sparsity_farthest_from_all_trials_matches_known_values(
    sparsities: tuple[float, ...], placed: list[float], expected: tuple[float, float]
) -> None:
    assert farthest_from(placed, sparsities) == pytest.approx(expected)


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


def test_a_turn_without_a_method_lets_the_sampler_choose_the_method() -> None:
    assert Turn(0.9).method is None
