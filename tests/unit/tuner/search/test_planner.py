"""Tests the plan of a study of several sparsities: first points, repeated configurations and searched parameters."""

from __future__ import annotations

from pathlib import Path

import pytest

from tune_sparsity.search_spaces import BUILT_IN, load_space
from tune_sparsity.search_spaces.loading import FOLDER
from tune_sparsity.search_spaces.priors import from_log, log_sparsity
from tune_sparsity.tuner.search.configurations import Outcome, best_configuration
from tune_sparsity.tuner.search.planner import FIRST_TRIALS, SEARCHED, Plan, Planner, planner_for
from tune_sparsity.tuner.search.spaces import space_for
from tune_sparsity.tuner.study.goal import along_front, at_targets
from tune_sparsity.tuner.study.trial import FINAL_SPARSITY

FRONT = along_front(0.5, 0.99)
PRUNING = [name for name in BUILT_IN if name not in ("dense", "binary")]


def planned(planner: Planner, number: int, first_points: bool = True) -> Plan:
    plan = planner.plan(number, first_points=first_points)
    assert plan is not None
    return plan


def run(planner: Planner, method: str, trials: int, accuracy: float = 0.9) -> list[Plan]:
    """Simulate a study of one method whose trials all have the same accuracy. Return the plans."""
    plans = []
    for number in range(trials):
        plans.append(planned(planner, number))
        sparsity = plans[-1].sparsities[method]
        planner.begun(method, sparsity)
        name, params = plans[-1].configuration or (f"t{number}", {"lr": 0.1})
        planner.ended(method, {**params, FINAL_SPARSITY: sparsity}, name, sparsity, accuracy)
    return plans


def test_with_one_target_there_is_no_planner() -> None:
    goal = at_targets(0.9)
    assert planner_for([space_for("lpss", goal)], goal, 8) is None


@pytest.mark.parametrize("name", PRUNING)
def test_first_points_match_the_final_sparsity_of_their_trial(name: str) -> None:
    space = space_for(name, FRONT)
    for plan in run(Planner([space], FRONT, FIRST_TRIALS), space.method, FIRST_TRIALS):
        sparsity = plan.sparsities[space.method]
        first = load_space(name, sparsity)
        assert plan.configuration is not None
        index = int(plan.configuration.name.removeprefix("first "))
        if first.near and None not in first.near:
            away = [abs(log_sparsity(near) - log_sparsity(sparsity)) for near in first.near if near is not None]
            assert away[index] == min(away)
        assert set(plan.configuration.params) == set(first.first[index]) - {FINAL_SPARSITY}
        for key, value in plan.configuration.params.items():
            distribution = space.distributions[key]
            assert distribution._contains(distribution.to_internal_repr(value))
            ends = (getattr(distribution, "low", None), getattr(distribution, "high", None))
            assert value == first.first[index][key] or value in ends


def test_the_theoretical_p_of_a_first_point_fits_the_sparsity_of_the_trial() -> None:
    plans = run(Planner([space_for("lpss", FRONT)], FRONT, 8), "lpss", 2)
    assert [plan.configuration and plan.configuration.name for plan in plans] == ["first 3", "first 2"]
    assert plans[1].configuration is not None
    assert plans[1].configuration.params["p"] == load_space("lpss", 0.5).first[2]["p"]


def test_first_points_are_tried_in_turn_if_one_of_them_has_no_target(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(
        "method: gmp\nparameters:\n  lr: {type: float, low: 0.01, high: 0.3}\n"
        "  final_sparsity: {type: float, low: target, high: above}\nfirst:\n  - {lr: 0.1}\n  - {lr: 0.2, near: 0.9}\n"
    )
    plans = run(Planner([space_for(str(file), FRONT)], FRONT, 4), "gmp", 4)
    assert [plan.configuration and plan.configuration.params["lr"] for plan in plans] == [0.1, 0.2, 0.1, 0.2]


def test_after_the_first_points_the_sampler_proposes_one_trial_in_three() -> None:
    plans = run(Planner([space_for("lpss", FRONT)], FRONT, 36), "lpss", 36)
    searched = [number for number, plan in enumerate(plans) if plan.configuration is None]
    assert searched == list(range(14, 36, SEARCHED))


def test_the_first_trials_of_all_methods_together_use_first_points() -> None:
    planner = Planner([space_for("lpss", FRONT), space_for("gmp", FRONT)], FRONT, 40)
    for number in range(FIRST_TRIALS):
        plan = planned(planner, number)
        assert plan.configuration is not None
        assert plan.configuration.name.startswith("first ")
        assert plan.method is not None
        planner.begun(plan.method, plan.sparsities[plan.method])


def test_each_of_several_targets_gets_as_many_proposals() -> None:
    goal = at_targets(0.8, 0.9, 0.95)
    plans = run(Planner([space_for("lpss", goal)], goal, 48), "lpss", FIRST_TRIALS + 36)
    searched = [plan.sparsities["lpss"] for plan in plans if plan.configuration is None]
    assert {target: searched.count(target) for target in goal.targets} == {0.8: 4, 0.9: 4, 0.95: 4}


def test_a_method_that_the_sampler_never_chooses_still_covers_the_front() -> None:
    planner = Planner([space_for("lpss", FRONT), space_for("gmp", FRONT)], FRONT, 60)
    placed: dict[str, list[float]] = {"lpss": [], "gmp": []}
    for number in range(60):
        plan = planned(planner, number)
        method = plan.method or "gmp"
        planner.begun(method, plan.sparsities[method])
        planner.ended(method, {}, "x", plan.sparsities[method], 0.9)
        placed[method].append(plan.sparsities[method])
    assert len(placed["lpss"]) >= 20
    assert len(set(placed["gmp"])) >= 25


def test_without_first_points_the_sampler_begins() -> None:
    planner = Planner([space_for("lpss", FRONT)], FRONT, 8)
    assert planned(planner, 0, first_points=False).configuration is None


def test_a_plan_without_a_method_has_one_sparsity_for_each_method() -> None:
    planner = Planner([space_for("lpss", FRONT), space_for("gmp", FRONT)], FRONT, 40)
    plans = []
    for number in range(40):
        plans.append(planned(planner, number))
        planner.begun(plans[-1].method or "lpss", plans[-1].sparsities[plans[-1].method or "lpss"])
        planner.ended(plans[-1].method or "lpss", {}, "x", plans[-1].sparsities[plans[-1].method or "lpss"], 0.9)
    free = [plan for plan in plans if plan.method is None]
    assert free
    assert all(set(plan.sparsities) == {"lpss", "gmp"} and plan.configuration is None for plan in free)
    assert all(set(plan.sparsities) == {plan.method} for plan in plans if plan.method is not None)


def outcomes(merits: dict[str, list[tuple[float, float]]]) -> list[Outcome]:
    """Return an outcome for each pair (share, merit). `share` is the place of its sparsity between .5 and .99 on a
    logarithmic scale. The usual accuracy falls from .9 to .6 between them, and the outcome's accuracy is higher by
    `merit`."""
    low, high = log_sparsity(0.5), log_sparsity(0.99)
    return [
        Outcome(name, from_log(low + share * (high - low)), 0.9 - 0.3 * share + merit)
        for name, trials in merits.items()
        for share, merit in trials
    ]


def test_a_configuration_that_is_good_on_average_is_ahead_of_a_lucky_one() -> None:
    usual = [(share / 20, 0.0) for share in range(21)]
    good = [(share / 10 + 0.02, 0.004) for share in range(10)]
    known = outcomes({"usual": usual, "good": good, "lucky": [(0.43, 0.007)], "bad": [(0.5, -0.1)]})
    assert best_configuration(known, 0.9) == "good"


def test_the_best_configuration_at_a_sparsity_was_good_at_similar_sparsities() -> None:
    spread = [share / 20 for share in range(21)]
    known = outcomes(
        {"dense": [(x, 0.05 - 0.1 * x) for x in spread], "sparse": [(x + 0.01, 0.1 * x - 0.05) for x in spread]}
    )
    assert best_configuration(known, 0.55) == "dense"
    assert best_configuration(known, 0.985) == "sparse"


def test_without_outcomes_no_configuration_is_the_best() -> None:
    assert best_configuration([], 0.9) is None
    assert best_configuration([Outcome("only", 0.5, 0.1)], 0.9) == "only"


def test_a_configuration_is_not_repeated_if_its_trials_were_stopped_early() -> None:
    spread = [share / 20 for share in range(21)]
    known = outcomes({"first 1": [(x, 0.0) for x in spread], "first 0": [(0.4, 0.001)]})
    # First points are judged by their lead plus one standard error. "first 0" has one trial, so its error is large.
    assert best_configuration(known, 0.9) == "first 0"
    stopped = [Outcome("first 0", 0.9, None)] * 3
    assert best_configuration([*known, *stopped], 0.9) == "first 1"


def test_a_space_file_is_read_once_and_may_be_deleted_during_the_study(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text((FOLDER / "lpss.yaml").read_text())
    planner, expected = (Planner([space_for(name, FRONT)], FRONT, 12) for name in (str(file), "lpss"))
    file.unlink()
    assert run(planner, "lpss", 12) == run(expected, "lpss", 12)
