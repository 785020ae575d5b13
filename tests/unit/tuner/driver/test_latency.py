"""A latency limit: the curve that converts it into multiply-adds, and the choice of the best network whose measured
latency meets it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.examples import examples
from tests.helpers.trials import trial
from tune_sparsity.tuner.driver.latency import LatencyCurve, choose
from tune_sparsity.tuner.results.inference_cost import Timing
from tune_sparsity.tuner.study.goal import Goal
from tune_sparsity.tuner.study.trial import TrialRecord

curves = st.dictionaries(st.integers(1, 10**12), st.floats(1e-3, 1e3), min_size=1, max_size=9).map(LatencyCurve)


def test_latency_is_interpolated_linearly_between_two_measured_networks() -> None:
    curve = LatencyCurve({1000: 1.0, 3000: 3.0, 5000: 9.0})
    assert [curve(macs) for macs in (1000, 2000, 3000, 4000, 5000)] == [1.0, 2.0, 3.0, 6.0, 9.0]
    assert curve.most_macs(2.0) == pytest.approx(1900, abs=1)  # 95 % of the limit: 1.9 ms
    assert curve.most_macs(6.0) == pytest.approx(3900, abs=1)  # 95 % of the limit: 5.7 ms


def test_no_safety_margin_applies_at_the_measured_ends_of_the_curve() -> None:
    curve = LatencyCurve({1000: 1.0, 3000: 3.0})
    assert curve.most_macs(3.0) == curve.most_macs(100.0) == 3000
    assert curve.most_macs(1.0) == 1000
    assert curve.most_macs(0.999) is None


def test_latencies_are_averaged_where_a_larger_network_was_faster() -> None:
    curve = LatencyCurve({100: 1.0, 200: 3.0, 300: 2.0, 400: 4.0})
    assert [curve(macs) for macs in (100, 200, 250, 300, 400)] == [1.0, 2.5, 2.5, 2.5, 4.0]


def test_a_curve_with_one_measured_network_has_one_point() -> None:
    curve = LatencyCurve({100: 2.0})
    assert (curve.most_macs(2.0), curve.most_macs(1.9)) == (100, None)


@examples(200)
@given(curve=curves, limits=st.lists(st.floats(1e-4, 2e3), min_size=2, max_size=2))
def test_a_longer_limit_never_allows_fewer_multiply_adds(curve: LatencyCurve, limits: list[float]) -> None:
    less, more = (curve.most_macs(limit) or 0 for limit in sorted(limits))
    assert less <= more


@examples(200)
@given(curve=curves, limit=st.floats(1e-4, 2e3))
def test_the_allowed_multiply_adds_are_expected_to_meet_the_limit(curve: LatencyCurve, limit: float) -> None:
    most = curve.most_macs(limit)
    if most is None:
        assert curve(curve.fewest) > limit
        return
    assert curve.fewest <= most <= curve.dense
    assert curve(most) <= limit
    assert most == curve.dense or curve(most + 1) > 0.95 * limit


GOAL = Goal((0.5,), max_macs=1000, max_latency=2.0)
TRIALS = [
    trial(0, 0.9, 0.99, macs=1001),  # more than the goal allows
    trial(1, 0.5, 0.9, macs=1000),
    trial(2, 0.6, 0.8, macs=900),
    trial(3, 0.4, 0.7, macs=950),  # worse than trial 2, and not smaller
    trial(4, 0.7, 0.6, macs=500),
    trial(5, 0.7, 0.5, macs=400),
]


def chosen(milliseconds: dict[int, float | None]) -> tuple[TrialRecord | None, list[str]]:
    """Call `choose`. Return the best trial under the goal that `choose` returns, and the names of the trials whose
    latency `choose` asked for, in the order of its calls."""
    asked: list[str] = []

    def latency(record: TrialRecord) -> Timing | None:
        asked.append(record.name)
        ms = milliseconds[record.number]
        return None if ms is None else Timing(ms, ms, ms)

    goal, measured = choose(GOAL, TRIALS, latency)
    assert len(set(asked)) == len(asked)
    assert measured == {name: Timing(ms, ms, ms) for name in asked if (ms := milliseconds[int(name[1:])]) is not None}
    return goal.best(TRIALS), asked


@pytest.mark.parametrize(
    ("milliseconds", "best", "asked"),
    [
        ({1: 2.0}, 1, ["t0001"]),
        ({1: 2.1, 2: 1.9}, 2, ["t0001", "t0002"]),
        ({1: 2.1, 2: 2.1, 4: 0.5}, 4, ["t0001", "t0002", "t0004"]),
        ({1: 2.1, 2: 2.1, 4: 2.1, 5: 2.1}, None, ["t0001", "t0002", "t0004", "t0005"]),
        ({1: None, 2: 1.9}, 2, ["t0001", "t0002"]),  # trial 1 has no network, or its network fails
        ({1: None, 2: None, 4: None, 5: None}, None, ["t0001", "t0002", "t0004", "t0005"]),
    ],
)
def test_the_best_network_that_meets_the_limit_is_chosen(
    milliseconds: dict[int, float | None], best: int | None, asked: list[str]
) -> None:
    found, order = chosen(milliseconds)
    assert (found and found.number, order) == (best, asked)


@examples(200)
@given(st.data())
def test_no_better_network_that_meets_the_limit_is_left_out(data: st.DataObject) -> None:
    measures = st.tuples(st.sampled_from([0.25, 0.5, 0.75]), st.sampled_from([0.6, 0.7, 0.8]), st.integers(1, 6))
    drawn = data.draw(st.lists(measures, max_size=8))
    records = [trial(n, sparsity, accuracy, macs=macs) for n, (sparsity, accuracy, macs) in enumerate(drawn)]
    fits = data.draw(st.integers(0, 7))  # the most multiply-adds within the limit: n multiply-adds take n ms
    goal, _ = choose(Goal((0.0,), max_macs=6, max_latency=fits + 0.5), records, lambda one: Timing(*3 * [one.macs]))
    best = goal.best(records)
    assert (None if best is None else best.value) == highest(one for one in records if one.macs <= fits)


def highest(records: Iterable[TrialRecord]) -> float | None:
    return max((record.value for record in records), default=None)
