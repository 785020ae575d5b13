"""Tests goals: which trials are feasible, which trial is the best, and which trials improve the result, by the
definition of each kind of goal."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.examples import examples
from tests.helpers.trials import trial
from tune_sparsity.sparsity import zeros_for
from tune_sparsity.tuner.study.front import FrontTracker
from tune_sparsity.tuner.study.goal import Goal, GoalKind, along_front, at_most, at_targets, sparsity_of, within_bytes
from tune_sparsity.tuner.study.pareto import pareto_front
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState

GOALS = (at_targets(0.5), at_targets(0.25, 0.5, 0.75), along_front(0.25, 0.75), at_most(40, 80))

quick = examples(100)
# A coarse grid, so that ties and equal points are common.
measures = st.sampled_from([None, 0.0, 0.25, 0.5, 0.625, 0.75, 0.875, 1.0])
ended = st.sampled_from([TrialState.PRUNED, TrialState.FAILED, *[TrialState.COMPLETED] * 6])


@st.composite
def histories(draw: st.DrawFn) -> list[TrialRecord]:
    """Draw trials in the order in which they end. Trials may run at the same time, so their numbers may be in any
    order."""
    drawn = draw(st.lists(st.tuples(ended, measures, measures), max_size=14))
    numbers = draw(st.permutations(range(len(drawn))))
    return [
        TrialRecord(number, "lpss", {}, state, value=accuracy, sparsity=sparsity)
        for number, (state, accuracy, sparsity) in zip(numbers, drawn, strict=True)
    ]


def test_each_kind_of_goal_has_its_range_of_sparsities_and_its_text() -> None:
    single, several, front, count, size, operations, time = (
        at_targets(0.9),
        at_targets(0.8, 0.95),
        along_front(0.5, 0.99),
        at_most(20_000, 50_200),
        within_bytes(10_000, 2_000, 50_200),
        Goal((0.75,), max_macs=12_000),
        Goal((0.75,), max_macs=12_000, max_latency=0.5, latency_batch=8),
    )
    assert [goal.kind for goal in (single, several, front, count, size, operations, time)] == list(GoalKind)
    assert [goal.lowest for goal in (single, several, front)] == [0.9, 0.8, 0.5]
    assert [goal.highest for goal in (single, several, front)] == [0.9, 0.95, 0.99]
    assert single.searched == (0.9, pytest.approx(0.92))
    assert several.searched == (0.8, 0.95)
    assert front.searched == (0.5, 0.99)
    assert str(single) == "target 0.9"
    assert str(several) == "targets 0.8, 0.95"
    assert str(front) == "front 0.5:0.99"
    assert "20,000" in str(count)
    assert "10,000 bytes" in str(size)
    assert str(operations) == "at most 12,000 multiply-adds, 75.00% fewer with prunable weights"
    assert str(time) == "at most 0.5 ms at batch size 8, about 12,000 multiply-adds"


def test_only_the_multiply_adds_decide_whether_a_trial_is_feasible() -> None:
    goal = Goal((0.75,), max_macs=1000)
    records = [
        trial(0, 0.9, 0.8, macs=1000),
        trial(1, 0.5, 0.9, macs=990),  # less sparse than the target, but within the limit of multiply-adds
        trial(2, 0.95, 0.99, macs=1001),
        trial(3, 0.95, 0.99),  # of an unknown number of multiply-adds
    ]
    assert [goal.feasible(record) for record in records] == [True, True, False, False]
    assert goal.best(records) is records[1]
    assert goal.condition == "at most 1,000 multiply-adds"


def test_only_the_bytes_decide_whether_a_completed_trial_is_feasible() -> None:
    goal = within_bytes(1000, 100, 1000)
    assert goal.lowest == 0.9
    records = [
        trial(0, 0.9, 0.8, size_bytes=1000),
        trial(1, 0.89, 0.9, size_bytes=990),  # less sparse than the target, but within the limit of bytes
        trial(2, 0.95, 0.99, size_bytes=1001),
        trial(3, 0.95, 0.99),  # its size is unknown
        trial(4, 0.95, 0.99, size_bytes=500, state=TrialState.PRUNED),
    ]
    assert [goal.feasible(record) for record in records] == [True, True, False, False, False]
    assert goal.best(records) is records[1]
    assert goal.front(records) == [records[1], records[0]]
    assert goal.reported(records) == [records[1]]
    assert goal.best(records[2:]) is None


@pytest.mark.parametrize(
    "made",
    [
        lambda: at_targets(),
        lambda: at_targets(1.0),
        lambda: at_targets(-0.1),
        lambda: at_targets(float("nan")),
        lambda: at_targets(0.9, 0.8),
        lambda: at_targets(0.9, 0.9),
        lambda: along_front(0.9, 0.9),
        lambda: along_front(0.5, 1.0),
        lambda: Goal((0.1, 0.2), ceiling=0.3),
        lambda: at_most(0, 10),
        lambda: at_most(11, 10),
    ],
)
def test_an_invalid_goal_is_refused(made: object) -> None:
    with pytest.raises(ValueError, match=r"must|one target"):
        made()  # type: ignore[operator]


@quick
@given(weights=st.integers(1, 10**9), data=st.data())
def test_a_nonzero_limit_becomes_the_exact_sparsity_that_leaves_that_number(weights: int, data: st.DataObject) -> None:
    nonzero = data.draw(st.integers(1, weights))
    sparsity = at_most(nonzero, weights).lowest
    assert zeros_for(sparsity, weights) == weights - nonzero  # what a trial is projected to
    assert (weights - nonzero) / weights >= sparsity  # after the projection, the trial is feasible
    if nonzero < weights:
        assert (weights - nonzero - 1) / weights < sparsity  # with one more nonzero weight, it would be infeasible


def test_rounding_a_nonzero_limit_to_a_sparsity_adds_no_extra_zero() -> None:
    rounded = next(w for w in range(3, 10**6) if Fraction(repr(1 / w)) > Fraction(1, w))
    assert zeros_for(1 / rounded, rounded) == 2
    assert zeros_for(sparsity_of(1, rounded), rounded) == 1


@quick
@given(histories(), st.sampled_from(GOALS))
def test_the_best_are_the_most_accurate_that_are_sparse_enough(records: list[TrialRecord], goal: Goal) -> None:
    for target, best in goal.best_at(records):
        accuracies = [
            r.value
            for r in records
            if r.state is TrialState.COMPLETED and r.value is not None and (r.sparsity or 0.0) >= target
        ]
        assert (None if best is None else best.value) == max(accuracies, default=None)
    assert goal.best(records) == goal.best_at(records)[0][1]
    reported = goal.reported(records)
    assert len({record.number for record in reported}) == len(reported)
    assert reported[:1] == ([] if goal.best(records) is None else [goal.best(records)])


@quick
@given(histories(), st.sampled_from(GOALS))
def test_an_incrementally_updated_front_equals_the_front_of_all_records(records: list[TrialRecord], goal: Goal) -> None:
    standing, seen, since = FrontTracker(goal), [], 0
    for record in records:
        before = goal.score(goal.front(seen))
        seen.append(record)
        after = goal.score(goal.front(seen))
        assert all(now >= then for now, then in zip(after, before, strict=True))  # no gain is lost
        gained = after != before
        since = 0 if gained else since + 1
        assert standing.add(record) == gained
        assert standing.front == pareto_front(seen, goal.lowest)
        assert standing.since_gain == since
        assert standing.best == goal.best(seen)
        assert standing.reported == goal.reported(seen)
    again = FrontTracker(goal, records)
    assert (again.front, again.since_gain) == (standing.front, standing.since_gain)


@quick
@given(st.lists(st.tuples(measures, measures, st.sampled_from([None, 1, 2, 3, 4, 9])), max_size=14))
def test_an_incremental_choice_of_networks_to_be_timed_equals_a_full_choice(
    drawn: list[tuple[float, float, int | None]],
) -> None:
    goal = Goal((0.0,), max_macs=4, max_latency=1.0)
    standing, seen = FrontTracker(goal), list[TrialRecord]()
    for number, (accuracy, sparsity, macs) in enumerate(drawn):
        done = TrialState.COMPLETED
        seen.append(TrialRecord(number, "lpss", {}, done, value=accuracy, sparsity=sparsity, macs=macs))
        standing.add(seen[-1])
        at_most_macs = [Goal((0.0,), max_macs=most).best(seen) for most in (4, 3, 2, 1)]
        expected = {best.number: best for best in at_most_macs if best is not None}
        assert standing.candidates == goal.candidates(seen) == list(expected.values())
        assert standing.reported == (standing.candidates or goal.reported(seen))


def test_the_kind_of_goal_decides_which_trials_are_improvements() -> None:
    first, sparser, better = trial(0, 0.9, 0.95), trial(1, 0.97, 0.90), trial(2, 0.8, 0.96)
    assert [FrontTracker(at_targets(0.8), [first]).add(record) for record in (sparser, better)] == [False, True]
    several = FrontTracker(at_targets(0.8, 0.95), [first])
    assert several.add(sparser)  # the first trial that reaches the target 0.95
    assert several.add(better)
    assert several.since_gain == 0
    assert not several.add(trial(3, 0.85, 0.955))  # on the front, but not the best trial at a target
    assert FrontTracker(along_front(0.5, 0.99), [first]).add(sparser)
    assert not FrontTracker(along_front(0.5, 0.9), [first]).add(sparser)  # its sparsity is above the front's end


def test_the_hypervolume_ends_at_the_upper_sparsity_of_the_front() -> None:
    goal = along_front(0.5, 0.9)
    records = [trial(0, 0.7, 1.0), trial(1, 0.95, 0.5), trial(2, 0.4, 1.0)]
    area = 0.2 * 1.0 + 0.2 * 0.5
    assert goal.hypervolume(records) == pytest.approx(area)
    assert goal.mean_value(area) == pytest.approx(0.75)  # 1 on the first half of the range, a half on the second


def test_the_highest_reached_sparsity_is_reported_if_the_goal_asks_for_more() -> None:
    goal = along_front(0.5, 0.9)
    assert goal.missing_above([]) is None
    assert goal.missing_above([trial(0, 0.4, 0.9)]) is None  # if no trial is feasible, another message says so
    assert goal.missing_above([trial(0, 0.6, 0.9), trial(1, 0.81, 0.8)]) == 0.81
    assert goal.missing_above([trial(0, 0.6, 0.9), trial(1, 0.9, 0.1)]) is None
    assert at_targets(0.5, 0.8).missing_above([trial(0, 0.6, 0.9)]) == 0.6
