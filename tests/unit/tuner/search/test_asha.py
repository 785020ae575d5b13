"""Early stopping on simulated learning curves: who is stopped, how much is saved, and what a restart changes."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_sparsity.tuner.search.asha import Entry, Halving, Value, fronts, ranked, rung_epochs

EPOCHS = 20
TARGET = 0.9
fraction = st.integers(0, 20).map(lambda n: n / 20)
value = st.tuples(fraction, fraction)
values = st.lists(value, max_size=30)

Curve = Callable[[int], float]


def dominates(one: Value, other: Value) -> bool:
    return one[0] >= other[0] and one[1] >= other[1] and one != other


def run(halving: Halving, curves: Sequence[Curve], sparsities: Sequence[float], slots: int = 1) -> list[int]:
    """Trains the trials epoch by epoch, `slots` at once, the slots in turn; the epochs that each got."""
    waiting = iter(range(len(curves)))
    running = list(itertools.islice(waiting, slots))
    trained = [0] * len(curves)
    while running:
        for slot, number in enumerate(list(running)):
            trained[number] += 1
            now = (curves[number](trained[number]), sparsities[number])
            last = trained[number] == EPOCHS
            if last or not halving.goes_on(number, "lpss", trained[number], now):
                running[slot] = next(waiting, -1)
        running = [number for number in running if number >= 0]
    return trained


def saturating(final: float, speed: float = 3.0) -> Curve:
    """A learning curve that reaches `final`; those of one speed do not cross."""
    return lambda epoch: final * (1 - math.exp(-speed * epoch / EPOCHS)) / (1 - math.exp(-speed))


@pytest.mark.parametrize(
    ("epochs", "rungs"), [(1, ()), (2, ()), (3, (1,)), (4, (1, 3)), (8, (2, 5)), (20, (4, 12)), (250, (50, 150))]
)
def test_rungs(epochs: int, rungs: tuple[int, ...]) -> None:
    assert rung_epochs(epochs) == rungs


@given(st.integers(1, 400), st.floats(0.01, 0.9), st.floats(1.5, 5))
def test_rungs_rise_and_end_before_the_last_epoch(epochs: int, first: float, spacing: float) -> None:
    rungs = rung_epochs(epochs, first, spacing)
    assert list(rungs) == sorted(set(rungs))
    assert all(1 <= rung < epochs for rung in rungs)


@given(values)
def test_fronts_are_those_of_the_definition(points: list[Value]) -> None:
    left = set(points)
    for front in fronts(points):
        assert set(front) == {p for p in left if not any(dominates(q, p) for q in left)}
        assert len(front) == len(set(front))
        left -= set(front)
    assert not left


def entries(points: list[Value]) -> list[Entry]:
    return [Entry(*point, number) for number, point in enumerate(points)]


@given(values, st.sampled_from([None, 0.0, 0.5, 0.9]), st.sampled_from([None, 0.5, 0.95]), st.booleans())
def test_the_ranking_is_feasible_first_then_by_fronts(
    points: list[Value], target: float | None, ceiling: float | None, spread: bool
) -> None:
    ranking = list(ranked(entries(points), target, ceiling, spread))
    assert sorted(ranking) == sorted(entries(points))
    counted = [(e.accuracy, e.sparsity if ceiling is None else min(e.sparsity, ceiling)) for e in ranking]
    feasible = [target is None or e.sparsity >= target for e in ranking]
    assert feasible == sorted(feasible, reverse=True)
    for one, other in itertools.combinations(range(len(ranking)), 2):
        if feasible[one] == feasible[other]:
            assert not dominates(counted[other], counted[one])
            if counted[one] == counted[other]:
                assert (-ranking[one].sparsity, ranking[one].lot) < (-ranking[other].sparsity, ranking[other].lot)
    for group in (True, False):  # every front whole before the next one
        here = [value for value, f in zip(counted, feasible, strict=True) if f == group]
        depth = {value: index for index, front in enumerate(fronts(here)) for value in front}
        assert [depth[value] for value in here] == sorted(depth[value] for value in here)


@given(values)
def test_with_one_target_accuracy_ranks_the_feasible_ones(points: list[Value]) -> None:
    halving = Halving((5,), target=0.5)
    ranking = [entry for entry in halving._ranked(entries(points)) if entry.sparsity >= 0.5]
    assert [entry.accuracy for entry in ranking] == sorted((entry.accuracy for entry in ranking), reverse=True)


@given(values, st.booleans())
def test_the_most_accurate_feasible_one_is_first(points: list[Value], spread: bool) -> None:
    feasible = [p for p in points if p[1] >= 0.5]
    if feasible:
        first = next(ranked(entries(points), 0.5, None, spread))
        assert (first.accuracy, first.sparsity) == max(feasible)


def test_a_front_is_ranked_by_accuracy_or_so_that_its_best_cover_it() -> None:
    front = [(0.9, 0.90), (0.89, 0.901), (0.88, 0.902), (0.5, 0.98), (0.7, 0.94)]
    assert [tuple(e[:2]) for e in ranked(entries(front), TARGET)] == sorted(front, reverse=True)
    covering = [tuple(e[:2]) for e in ranked(entries(front), TARGET, spread=True)]
    assert covering[:3] == [(0.9, 0.90), (0.5, 0.98), (0.7, 0.94)]


@pytest.mark.parametrize("reduction", [2.0, 3.0, 4.0])
def test_of_equal_trials_the_usual_share_goes_on(reduction: float) -> None:
    halving = Halving((5,), target=TARGET, reduction=reduction, window=60)
    on = [halving.goes_on(number, "lpss", 5, (0.1, 0.9)) for number in range(400)]
    assert sum(on[100:]) / 300 == pytest.approx(1 / reduction, abs=0.03)


def test_an_infeasible_trial_never_goes_on_in_place_of_a_feasible_one() -> None:
    halving = Halving((5,), target=TARGET, reduction=2)
    for number, accuracy in enumerate((0.8, 0.7, 0.75, 0.72)):
        halving.goes_on(number, "lpss", 5, (accuracy, 0.92))
    assert not halving.goes_on(10, "lpss", 5, (0.99, 0.5))
    assert halving.goes_on(11, "lpss", 5, (0.79, 0.91))
    assert Halving((5,), target=None, reduction=2).goes_on(10, "lpss", 5, (0.99, 0.5))


@given(st.lists(value, min_size=1, max_size=40), st.sampled_from([2.0, 3.0, 4.0]), st.booleans())
def test_nobody_goes_on_while_a_better_one_is_stopped(points: list[Value], reduction: float, spread: bool) -> None:
    """Of trials judged against the same others, none that is dominated or infeasible survives one that is not."""
    halving = Halving((5,), target=0.5, ceiling=1.0, reduction=reduction, spread=spread, window=1000)
    for number, point in enumerate(points):
        halving.goes_on(number, "lpss", 5, point)
    # Judged again, now against all: an answer does not depend on how often it was asked for.
    verdicts = [halving.goes_on(number, "lpss", 5, point) for number, point in enumerate(points)]
    for (p, p_on), (q, q_on) in itertools.product(zip(points, verdicts, strict=True), repeat=2):
        if p_on and not q_on:
            assert not (p[1] < 0.5 <= q[1])
            assert not (dominates(q, p) and (q[1] >= 0.5) == (p[1] >= 0.5))


@settings(max_examples=50)
@given(
    st.lists(st.floats(0.3, 1.0), min_size=1, max_size=60, unique=True),
    st.integers(1, 8),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_the_best_of_curves_that_do_not_cross_is_never_stopped(
    finals: list[float], slots: int, spread: bool, rng: random.Random
) -> None:
    sparsities = [rng.choice([0.9, 0.91, 0.92, 0.5]) for _ in finals]
    sparsities[finals.index(max(finals))] = 0.9
    halving = Halving(rung_epochs(EPOCHS), target=TARGET, spread=spread)
    trained = run(halving, [saturating(final) for final in finals], sparsities, slots)
    feasible = [number for number, sparsity in enumerate(sparsities) if sparsity >= TARGET]
    best = max(feasible, key=lambda number: finals[number])
    assert trained[best] == EPOCHS
    assert all(epochs in (*halving.rungs, EPOCHS) for epochs in trained)


@pytest.mark.parametrize("reduction", [2.0, 3.0, 4.0])
@pytest.mark.parametrize("slots", [1, 4])
def test_the_share_that_goes_on_converges_to_one_in_reduction(reduction: float, slots: int) -> None:
    rng = random.Random(1)
    curves = [saturating(rng.random()) for _ in range(1000)]
    halving = Halving((5, 10), target=TARGET, reduction=reduction, window=60)
    trained = run(halving, curves, [rng.uniform(0.9, 0.92) for _ in curves], slots)
    first = sum(epochs > 5 for epochs in trained) / len(trained)
    second = sum(epochs > 10 for epochs in trained) / len(trained)
    assert first == pytest.approx(1 / reduction, abs=0.04)
    assert second == pytest.approx(1 / reduction**2, abs=0.04)


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_more_than_half_of_the_epochs_are_saved_at_little_loss(slots: int) -> None:
    """Studies of 32 trials whose curves cross and are read off 360 examples, as those of digits are."""
    saved, lost = [], []
    for seed in range(10):
        rng = random.Random(seed)
        finals = [0.9 + 0.08 * rng.betavariate(4, 2) for _ in range(32)]
        sparsities = [rng.uniform(0.9, 0.92) for _ in finals]
        curves = [noisy(saturating(final, rng.uniform(4, 8)), rng) for final in finals]
        trained = run(Halving(rung_epochs(EPOCHS), target=TARGET), curves, sparsities, slots)
        saved.append(1 - sum(trained) / (EPOCHS * len(trained)))
        lost.append(max(finals) - max(f for f, epochs in zip(finals, trained, strict=True) if epochs == EPOCHS))
    assert sum(saved) / len(saved) > 0.5
    assert 0 <= sum(lost) / len(lost) < 0.01


def noisy(curve: Curve, rng: random.Random, examples: int = 360) -> Curve:
    return lambda epoch: sum(rng.random() < curve(epoch) for _ in range(examples)) / examples


def test_methods_are_not_compared_with_each_other() -> None:
    halving = Halving((5,), target=TARGET)
    for number in range(30):
        halving.goes_on(number, "set", 5, (0.95, 0.9))
    assert halving.goes_on(30, "gmp", 5, (0.4, 0.9))


def test_between_the_rungs_nobody_is_stopped_or_remembered() -> None:
    halving = Halving((5, 10), target=TARGET)
    for number in range(20):
        assert halving.goes_on(number, "lpss", 7, (1.0, 0.9))
    assert halving.goes_on(20, "lpss", 5, (0.1, 0.9))


@pytest.mark.parametrize("accuracy", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_stopped_and_sets_no_standard(accuracy: float) -> None:
    halving = Halving((5,), target=TARGET)
    assert not halving.goes_on(0, "lpss", 5, (accuracy, 0.9))
    assert halving.goes_on(1, "lpss", 5, (0.1, 0.9))


def test_a_failed_trial_sets_no_standard() -> None:
    halving = Halving((5,), target=TARGET, reduction=2)
    for number in (0, 1):
        halving.goes_on(number, "lpss", 5, (0.99, 0.9))
    assert not halving.goes_on(2, "lpss", 5, (0.5, 0.9))
    for number in (0, 1):
        halving.forget(number)
    assert halving.goes_on(3, "lpss", 5, (0.6, 0.9))


def test_no_rungs_stop_nobody() -> None:
    halving = Halving((), target=TARGET)
    assert all(halving.goes_on(number, "lpss", 5, (1 - number / 10, 0.9)) for number in range(10))


@pytest.mark.parametrize("reduction", [1.0, 0.5, math.nan])
def test_a_reduction_that_reduces_nothing_is_refused(reduction: float) -> None:
    with pytest.raises(ValueError, match="reduction"):
        Halving((5,), target=TARGET, reduction=reduction)


Report = tuple[int, str, int, Value]


@given(
    st.lists(st.tuples(value, st.booleans()), max_size=40),
    st.integers(0, 40),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_a_restart_decides_as_if_there_had_been_none(
    trials: list[tuple[Value, bool]], crash: int, window: int, rng: random.Random
) -> None:
    """One trial after the other, some of which fail in the end; the process dies between two of them."""

    def go(halving: Halving, some: Sequence[int]) -> list[tuple[bool, bool]]:
        verdicts = []
        for number in some:
            (accuracy, sparsity), fails = trials[number]
            first = halving.goes_on(number, "lpss", 5, (accuracy, sparsity))
            second = first and halving.goes_on(number, "lpss", 10, (accuracy / 2, sparsity))
            verdicts.append((first, second))
            if fails:
                halving.forget(number)
        return verdicts

    numbers = list(range(len(trials)))
    unbroken = go(Halving((5, 10), target=0.5, window=window), numbers)
    before = go(Halving((5, 10), target=0.5, window=window), numbers[:crash])
    restored = Halving((5, 10), target=0.5, window=window)
    for number in rng.sample(numbers[:crash], len(numbers[:crash])):
        (accuracy, sparsity), fails = trials[number]
        reached = [(5, (accuracy, sparsity)), *([(10, (accuracy / 2, sparsity))] if before[number][0] else [])]
        restored.recall(number, "lpss", reached)
        if fails:
            restored.forget(number)
    assert before + go(restored, numbers[crash:]) == unbroken


def test_memory_is_bounded_by_the_window() -> None:
    halving = Halving((5, 10), target=TARGET, window=100)
    for number in range(1000):
        halving.goes_on(number, "lpss", 5, (number / 1000, 0.9))
    assert {len(values) for values in halving._values.values()} == {100}
    assert min(halving._values["lpss", 5]) == 900
