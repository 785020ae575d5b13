"""The front, the best trial and the hypervolume, against their definitions and against brute force."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.examples import examples
from tests.helpers.trials import trial
from tune_sparsity.tuner.study.pareto import Point, best_trial, hypervolume, pareto_front, point_of, points_of
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState

TARGET = 0.5

quick = examples(60)  # no deadline: the machine may be busy with something else

# A coarse grid, mostly feasible, so that ties and equal points are common; None and NaN, because records hold them.
measures = st.sampled_from([0.25, 0.5, 0.5, 0.625, 0.75, 0.75, 0.875, 1.0, None, math.nan])
states = st.sampled_from([*TrialState, *[TrialState.COMPLETED] * 6])


@st.composite
def trial_lists(draw: st.DrawFn) -> list[TrialRecord]:
    fields = st.tuples(states, measures, measures, st.none() | st.integers(0, 3))
    drawn = draw(st.lists(fields, max_size=12))
    records = [
        TrialRecord(number, "lpss", {}, state, value=accuracy, sparsity=sparsity, nonzero_weights=nonzero)
        for number, (state, accuracy, sparsity, nonzero) in enumerate(drawn)
    ]
    return draw(st.permutations(records))


def at(record: TrialRecord) -> Point:
    point = point_of(record)
    assert point is not None
    return point


def dominates(a: Point, b: Point) -> bool:
    return a != b and a[0] >= b[0] and a[1] >= b[1]


def feasible(records: list[TrialRecord]) -> list[TrialRecord]:
    return [record for record in records if record.feasible(TARGET) and point_of(record) is not None]


@quick
@given(trial_lists())
def test_the_front_contains_exactly_the_nondominated_feasible_trials(records: list[TrialRecord]) -> None:
    candidates = feasible(records)
    expected = {at(a) for a in candidates if not any(dominates(at(b), at(a)) for b in candidates)}
    front = pareto_front(records, TARGET)
    assert {at(record) for record in front} == expected
    assert len(front) == len(expected)


@quick
@given(trial_lists())
def test_feasible_trials_off_the_front_are_dominated_or_later_duplicates(records: list[TrialRecord]) -> None:
    front = pareto_front(records, TARGET)
    for other in feasible(records):
        if other not in front:
            assert any(
                dominates(at(member), at(other)) or (at(member) == at(other) and member.number < other.number)
                for member in front
            )


@quick
@given(trial_lists())
def test_the_front_rises_in_sparsity_and_falls_in_accuracy(records: list[TrialRecord]) -> None:
    for sparser, denser in pairwise(reversed(points_of(pareto_front(records, TARGET)))):
        assert sparser[0] > denser[0]
        assert sparser[1] < denser[1]


@quick
@given(trial_lists())
def test_the_best_trial_is_the_most_accurate_point_of_the_front(records: list[TrialRecord]) -> None:
    best, front = best_trial(records, TARGET), pareto_front(records, TARGET)
    assert (None if best is None else at(best)) == (at(front[0]) if front else None)


def test_only_completed_trials_at_the_target_or_above_count() -> None:
    records = [
        trial(0, 0.95, 0.99, state=TrialState.PRUNED),
        trial(1, 0.95, 0.99, state=TrialState.FAILED),
        trial(2, 0.95, 0.99, state=TrialState.RUNNING),
        trial(3, 0.899999, 0.99),
        trial(4, 0.9, 0.5),
    ]
    assert [record.number for record in pareto_front(records, 0.9)] == [4]
    assert best_trial(records, 0.9) is records[4]
    assert best_trial(records[:4], 0.9) is None
    assert pareto_front([], 0.9) == []


def test_a_completed_trial_with_a_nan_accuracy_is_neither_best_nor_on_the_front() -> None:
    records = [trial(0, 0.95, math.nan), trial(1, 0.9, 0.5)]
    assert pareto_front(records, 0.9) == [records[1]]
    assert best_trial(records, 0.9) is records[1]


def test_at_one_sparsity_only_the_most_accurate_is_on_the_front() -> None:
    records = [trial(0, 0.9, 0.7), trial(1, 0.9, 0.8), trial(2, 0.9, 0.6)]
    assert pareto_front(records, 0.9) == [records[1]]


def test_the_front_keeps_the_lowest_numbered_trial_of_equal_trials() -> None:
    records = [trial(number, 0.9, 0.8) for number in (5, 2, 9)]
    assert [record.number for record in pareto_front(records, 0.9)] == [2]


def test_ties_of_the_best_go_to_sparsity_then_fewer_weights_then_the_lower_number() -> None:
    records = [
        trial(0, 0.90, 0.8, nonzero_weights=1),
        trial(1, 0.92, 0.8),
        trial(2, 0.92, 0.8, nonzero_weights=30),
        trial(4, 0.92, 0.8, nonzero_weights=20),
        trial(3, 0.92, 0.8, nonzero_weights=20),
        trial(5, 0.99, 0.7, nonzero_weights=2),
    ]
    order = []
    while (best := best_trial(records, 0.9)) is not None:
        order.append(best.number)
        records.remove(best)
    assert order == [3, 4, 2, 1, 0, 5]


grid_points = st.lists(st.tuples(st.integers(-2, 6), st.integers(-2, 6)), max_size=10)


@quick
@given(grid_points)
def test_the_hypervolume_counts_the_grid_cells_that_are_dominated(points: list[tuple[int, int]]) -> None:
    cells = sum(any(x > i and y > j for x, y in points) for i in range(7) for j in range(7))
    assert hypervolume(points, (0, 0)) == cells


@quick
@given(grid_points, st.tuples(st.integers(-2, 6), st.integers(-2, 6)))
def test_a_point_more_never_makes_the_hypervolume_smaller(points: list[Point], more: Point) -> None:
    assert hypervolume([*points, more], (0, 0)) >= hypervolume(points, (0, 0))


def test_the_hypervolume_of_known_points_equals_its_closed_form() -> None:
    reference = (0.9, 0.0)
    assert hypervolume([], reference) == 0.0
    assert hypervolume([(0.9, 1.0)], reference) == 0.0  # exactly at the target: an area without width
    assert hypervolume([(0.95, -0.1), (0.8, 1.0), (math.nan, 0.5)], reference) == 0.0
    assert hypervolume([(0.95, 0.8), (0.95, 0.8), (0.92, 0.7)], reference) == pytest.approx(0.05 * 0.8)
    assert hypervolume([(0.99, 0.5), (0.95, 0.8)], reference) == pytest.approx(0.05 * 0.8 + 0.04 * 0.5)


def test_the_hypervolume_of_a_study_is_that_of_its_front() -> None:
    records = [trial(0, 0.99, 0.5), trial(1, 0.95, 0.8), trial(2, 0.95, 0.4)]
    of_front = hypervolume(points_of(pareto_front(records, 0.9)), (0.9, 0.0))
    assert of_front == hypervolume(points_of(records), (0.9, 0.0)) > 0


def test_the_hypervolume_agrees_with_optuna() -> None:
    np = pytest.importorskip("numpy")
    compute = pytest.importorskip("optuna._hypervolume").compute_hypervolume
    generator = np.random.default_rng(0)
    for size in (1, 2, 7, 60):
        points = generator.uniform((0.85, 0.0), (1.0, 1.0), size=(size, 2))
        inside = points[points[:, 0] > 0.9]  # optuna takes only points that are better than the reference
        expected = compute(-inside, np.array([-0.9, 0.0])) if len(inside) else 0.0
        assert hypervolume(map(tuple, points.tolist()), (0.9, 0.0)) == pytest.approx(expected, rel=1e-12)
