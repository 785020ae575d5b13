"""Tests early stopping on simulated learning curves: stopped trials, saved epochs and restarts."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.examples import examples
from tune_sparsity.search_spaces.priors import from_log, log_sparsity
from tune_sparsity.tuner.search.asha import Entry, Halving, LikeStopping, Value, rung_epochs
from tune_sparsity.tuner.search.cover import Cover, Range
from tune_sparsity.tuner.study.goal import along_front

EPOCHS = 20
TARGET = 0.9
fraction = st.integers(0, 20).map(lambda n: n / 20)
value = st.tuples(fraction, fraction)
values = st.lists(value, max_size=30)

Curve = Callable[[int], float]


def dominates(one: Value, other: Value) -> bool:
    return one[0] >= other[0] and one[1] >= other[1] and one != other


def run(halving: Halving, curves: Sequence[Curve], sparsities: Sequence[float], slots: int = 1) -> list[int]:
    """Simulate trials, of which `slots` run at the same time and take turns epoch by epoch. Return each trial's number
    of epochs."""
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
    """Return a learning curve that ends at `final`. Curves with equal `speed` do not cross."""
    return lambda epoch: final * (1 - math.exp(-speed * epoch / EPOCHS)) / (1 - math.exp(-speed))


@pytest.mark.parametrize(
    ("epochs", "rungs"), [(1, ()), (2, ()), (3, (1,)), (4, (1, 3)), (8, (1, 3)), (20, (2, 8)), (250, (31, 94))]
)
def test_rung_epochs_match_known_values(epochs: int, rungs: tuple[int, ...]) -> None:
    assert rung_epochs(epochs) == rungs


@given(st.integers(1, 400), st.floats(0.01, 0.9), st.floats(1.5, 5))
def test_rungs_rise_and_end_before_the_last_epoch(epochs: int, first: float, spacing: float) -> None:
    rungs = rung_epochs(epochs, first, spacing)
    assert list(rungs) == sorted(set(rungs))
    assert all(1 <= rung < epochs for rung in rungs)


def entries(points: list[Value]) -> list[Entry]:
    return [Entry(*point, number) for number, point in enumerate(points)]


@given(values, st.sampled_from([None, 0.0, 0.5, 0.9]))
def test_feasible_trials_rank_first_and_then_by_accuracy(points: list[Value], target: float | None) -> None:
    ranking = sorted(entries(points), key=Halving((5,), target=target)._rank)
    feasible = [target is None or entry.sparsity >= target for entry in ranking]
    assert feasible == sorted(feasible, reverse=True)
    for group in (True, False):
        here = [entry for entry, f in zip(ranking, feasible, strict=True) if f == group]
        assert here == sorted(here, key=lambda entry: (-entry.merit, -entry.sparsity, entry.lot))


@pytest.mark.parametrize("reduction", [2.0, 3.0, 4.0])
def test_one_of_n_equal_trials_continues_if_the_reduction_is_n(reduction: float) -> None:
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


@given(st.lists(value, min_size=1, max_size=40), st.sampled_from([2.0, 3.0, 4.0]))
def test_no_trial_continues_if_a_dominating_trial_is_stopped(points: list[Value], reduction: float) -> None:
    """No dominated trial continues if the trial that dominates it is stopped. No infeasible trial continues if a
    feasible trial is stopped."""
    halving = Halving((5,), target=0.5, reduction=reduction, window=1000)
    for number, point in enumerate(points):
        halving.goes_on(number, "lpss", 5, point)
    # Each trial is compared again, now with all trials. A repeated question changes no decision.
    verdicts = [halving.goes_on(number, "lpss", 5, point) for number, point in enumerate(points)]
    for (p, p_on), (q, q_on) in itertools.product(zip(points, verdicts, strict=True), repeat=2):
        if p_on and not q_on:
            assert not (p[1] < 0.5 <= q[1])
            assert not (dominates(q, p) and (q[1] >= 0.5) == (p[1] >= 0.5))


@examples(50)
@given(
    st.lists(st.integers(3000, 10_000).map(lambda k: k / 10_000), min_size=1, max_size=60, unique=True),
    st.integers(1, 8),
    st.randoms(use_true_random=False),
)
def test_the_best_of_curves_that_do_not_cross_is_never_stopped(
    finals: list[float], slots: int, rng: random.Random
) -> None:
    sparsities = [rng.choice([0.9, 0.91, 0.92, 0.5]) for _ in finals]
    sparsities[finals.index(max(finals))] = 0.9
    halving = Halving(rung_epochs(EPOCHS), target=TARGET)
    trained = run(halving, [saturating(final) for final in finals], sparsities, slots)
    feasible = [number for number, sparsity in enumerate(sparsities) if sparsity >= TARGET]
    best = max(feasible, key=lambda number: finals[number])
    assert trained[best] == EPOCHS
    assert all(epochs in (*halving.rungs, EPOCHS) for epochs in trained)


@pytest.mark.parametrize("reduction", [2.0, 3.0, 4.0])
@pytest.mark.parametrize("slots", [1, 4])
def test_the_share_of_continued_trials_converges_to_1_over_reduction(reduction: float, slots: int) -> None:
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
    """Studies have 32 trials. Their learning curves cross, and have the noise of an accuracy that is measured on 360
    examples."""
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


def test_between_rungs_no_trial_is_stopped_or_recorded() -> None:
    halving = Halving((5, 10), target=TARGET)
    for number in range(20):
        assert halving.goes_on(number, "lpss", 7, (1.0, 0.9))
    assert halving.goes_on(20, "lpss", 5, (0.1, 0.9))


@pytest.mark.parametrize("accuracy", [math.nan, math.inf, -math.inf])
def test_a_trial_with_a_nan_accuracy_is_stopped_and_ignored_for_others(accuracy: float) -> None:
    halving = Halving((5,), target=TARGET)
    assert not halving.goes_on(0, "lpss", 5, (accuracy, 0.9))
    assert halving.goes_on(1, "lpss", 5, (0.1, 0.9))


def test_a_failed_trial_is_ignored_when_others_are_ranked() -> None:
    halving = Halving((5,), target=TARGET, reduction=2)
    for number in (0, 1):
        halving.goes_on(number, "lpss", 5, (0.99, 0.9))
    assert not halving.goes_on(2, "lpss", 5, (0.5, 0.9))
    for number in (0, 1):
        halving.forget(number)
    assert halving.goes_on(3, "lpss", 5, (0.6, 0.9))


def test_without_rungs_every_trial_continues() -> None:
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
    """Trials run one after the other, and some of them fail. The process dies between two trials."""

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


# Trials of several sparsities

LOW, HIGH = 0.5, 0.99


def like(**options: object) -> LikeStopping:
    return LikeStopping((5, 10), low=LOW, high=HIGH, **options)  # type: ignore[arg-type]


def falling(sparsity: float) -> float:
    """Return the usual accuracy of a trial with this sparsity at a rung. It falls from .98 at LOW to .3 at HIGH."""
    return 0.98 - 0.68 * (log_sparsity(sparsity) - log_sparsity(LOW)) / (log_sparsity(HIGH) - log_sparsity(LOW))


def evenly(count: int) -> list[float]:
    low, high = log_sparsity(LOW), log_sparsity(HIGH)
    return [min(from_log(low + (high - low) * i / (count - 1)), HIGH) for i in range(count)]


def train(halving: LikeStopping, trials: Sequence[tuple[float, float]], slots: int = 1) -> list[bool]:
    """Train trials, each given as (sparsity, accuracy at both rungs), in order. Return whether each trial finished."""
    finished = [False] * len(trials)
    running: list[int] = []

    def end(number: int) -> None:
        sparsity, accuracy = trials[number]
        value = (accuracy, sparsity)
        finished[number] = all(halving.goes_on(number, "lpss", epoch, value) for epoch in (5, 10))
        halving.ended(number, "lpss", sparsity, finished[number])

    for number in range(len(trials)):
        running.append(number)
        if len(running) == slots:
            end(running.pop(0))
    for number in running:
        end(number)
    return finished


def test_a_sparse_trial_is_not_stopped_for_being_sparse() -> None:
    """Three of four trials have the usual accuracy at their sparsity. Every fourth trial has .1 less."""
    order = evenly(64)
    random.Random(0).shuffle(order)
    bad = [number % 4 == 3 for number in range(64)]
    finished = train(like(), [(s, falling(s) - 0.1 * worse) for s, worse in zip(order, bad, strict=True)])
    good_share = {
        half: [done for done, s, worse in zip(finished, order, bad, strict=True) if not worse and (s > 0.93) == half]
        for half in (True, False)
    }
    assert min(sum(share) / len(share) for share in good_share.values()) > 0.8
    late_and_bad = [done for number, done in enumerate(finished) if bad[number] and number >= 16]
    assert sum(late_and_bad) <= len(late_and_bad) / 2


def test_nothing_is_stopped_before_there_is_evidence() -> None:
    assert train(like(), [(0.9, 0.9 - number / 10) for number in range(5)]) == [True] * 5


@examples(30)
@given(st.integers(0, 1000), st.integers(9, 70), st.integers(1, 6))
def test_at_least_a_third_of_trials_finish_and_leave_no_wide_sparsity_gap(seed: int, trials: int, slots: int) -> None:
    rng = random.Random(seed)
    cover, placed = Cover(along_front(LOW, HIGH), {"lpss": Range(LOW, HIGH)}, trials), []
    for number in range(trials):
        turn = cover.next(number, {"lpss": placed})
        assert turn is not None
        placed.append(turn.sparsity)
    finished = train(like(), [(s, rng.random()) for s in placed], slots)
    assert sum(finished) >= trials / 3
    extent = log_sparsity(HIGH) - log_sparsity(LOW)
    done = sorted(log_sparsity(s) for s, f in zip(placed, finished, strict=True) if f)
    ends = [log_sparsity(LOW), *done, log_sparsity(HIGH)]
    # After n trials, a trial finishes if no other trial within 1.25/n of the range has finished or is running. At the
    # end, neighbouring sparsities are at most about 3/n apart. So gaps between finished trials are at most 6/n.
    assert max(later - earlier for earlier, later in itertools.pairwise(ends)) <= 6.0 / trials * extent + 1e-9


def test_a_trial_continues_if_no_other_trial_has_a_similar_sparsity() -> None:
    halving = like()
    train(halving, [(s, 0.9) for s in evenly(10)[:6] * 3])
    assert halving.goes_on(50, "lpss", 5, (0.2, HIGH))
    assert halving.goes_on(51, "lpss", 5, (0.01, HIGH)) is False  # trial 50 has the same sparsity and may still finish
    halving.ended(51, "lpss", HIGH, False)
    halving.forget(50)  # trial 50 failed, so the next trial is the only one at this sparsity
    assert halving.goes_on(52, "lpss", 5, (0.01, HIGH))


def test_early_stopping_over_several_sparsities_compares_one_method_only() -> None:
    halving = like()
    train(halving, [(s, 0.9) for s in evenly(30)])
    assert all(halving.goes_on(100 + n, "gmp", 5, (0.1, s)) for n, s in enumerate((0.5, 0.9, 0.99)))


def test_early_stopping_over_several_sparsities_is_the_same_after_a_restart() -> None:
    rng = random.Random(3)
    trials = [(s, rng.random()) for s in evenly(24)]
    unbroken = train(like(), trials)
    before = train(first := like(), trials[:14])
    again = like()
    for number, ((sparsity, accuracy), done) in enumerate(zip(trials, before, strict=False)):
        reached = [epoch for epoch in (5, 10) if number in first._values.get(("lpss", epoch), {})]
        again.recall(number, "lpss", [(epoch, (accuracy, sparsity)) for epoch in reached])
        again.ended(number, "lpss", sparsity, done)
    after = []
    for number in range(14, 24):
        sparsity, accuracy = trials[number]
        after.append(all(again.goes_on(number, "lpss", epoch, (accuracy, sparsity)) for epoch in (5, 10)))
        again.ended(number, "lpss", sparsity, after[-1])
    assert before + after == unbroken
