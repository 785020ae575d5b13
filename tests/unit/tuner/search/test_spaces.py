"""Tests a study's spaces under each goal: the range of the final sparsity, first points, and the order of methods."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from tune_sparsity.search_spaces import BUILT_IN, load_space
from tune_sparsity.search_spaces.priors import log_sparsity
from tune_sparsity.tuner.config.study_config import make_config
from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.search.planner import Planner, planner_for
from tune_sparsity.tuner.search.searcher import Asked, OptunaSearcher
from tune_sparsity.tuner.search.spaces import space_for, spaces_of
from tune_sparsity.tuner.study.goal import Goal, along_front, at_most, at_targets
from tune_sparsity.tuner.study.trial import FINAL_SPARSITY, TrialRecord, TrialState

SEVERAL, FRONT = at_targets(0.8, 0.9, 0.95), along_front(0.5, 0.99)
PRUNING = [name for name in BUILT_IN if name not in ("dense", "binary")]
SPACE = "method: lpss\nparameters:\n  p: {{type: float, low: 1.1, high: 1.9}}\n  final_sparsity: {}\n"


@pytest.fixture
def space_file(tmp_path: Path) -> Any:
    def write(final_sparsity: str, more: str = "") -> str:
        path = tmp_path / "s.yaml"
        path.write_text(SPACE.format(final_sparsity) + more)
        return str(path)

    return write


def spaces(goal: Goal, **options: Any) -> list[Any]:
    return spaces_of(make_config({"target": 0.9, **options}), goal)


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("goal", [at_targets(0.9), at_most(100, 1000)])
def test_one_target_leaves_a_space_as_it_is(name: str, goal: Goal) -> None:
    assert space_for(name, goal) == load_space(name, 0.9)


@pytest.mark.parametrize("name", PRUNING)
@pytest.mark.parametrize("goal", [SEVERAL, FRONT])
def test_the_final_sparsity_in_a_built_in_space_has_the_range_of_the_goal(name: str, goal: Goal) -> None:
    space, alone = space_for(name, goal), load_space(name, goal.lowest)
    assert space.distributions[FINAL_SPARSITY] == FloatDistribution(goal.lowest, goal.highest)
    others = {key: own for key, own in space.distributions.items() if key != FINAL_SPARSITY}
    assert {key: own for key, own in alone.distributions.items() if key != FINAL_SPARSITY}.items() <= others.items()
    # A parameter that is fixed for one target may be searched for several targets.
    assert set(others) - set(alone.distributions) <= set(alone.fixed)
    assert space.first == ()


def test_the_space_of_an_experiment_replaces_the_built_in_space_of_a_method() -> None:
    config = make_config({"target": 0.9, "method": ["gmp", "lpss"]})
    assert [one.name for one in spaces_of(config, at_targets(0.9), "lpss-few-examples")] == ["gmp", "lpss-few-examples"]
    told = make_config({"target": 0.9, "space": "lpss"})
    assert [one.name for one in spaces_of(told, at_targets(0.9), "lpss-few-examples")] == ["lpss"]


def test_the_word_target_in_a_space_means_the_range_of_all_targets(space_file: Any) -> None:
    space = space_for(space_file("target"), SEVERAL)
    assert space.distributions[FINAL_SPARSITY] == FloatDistribution(0.8, 0.95)
    assert FINAL_SPARSITY not in space.fixed
    assert space_for(space_file("0.97"), SEVERAL).fixed == {FINAL_SPARSITY: 0.97}


@pytest.mark.parametrize(
    ("final_sparsity", "expected"),
    [
        ("{type: float, low: 0.5, high: 0.99}", [0.8, 0.9, 0.95]),
        ("{type: float, low: 0.85, high: 0.99}", [0.85, 0.9, 0.95]),
        ("{type: float, low: 0.5, high: 0.98, step: 0.12}", [0.86, 0.98, 0.98]),
        ("{type: categorical, choices: [0.96, 0.8, 0.92]}", [0.8, 0.92, 0.96]),
    ],
)
def test_a_trial_gets_the_smallest_searched_sparsity_that_meets_its_target(
    final_sparsity: str, expected: list[float], space_file: Any
) -> None:
    space = space_for(space_file(final_sparsity), SEVERAL)
    planner = Planner([space], SEVERAL, 3)
    plans = [planner.plan(number, first_points=True) for number in range(3)]
    assert [plan and plan.sparsities["lpss"] for plan in plans] == pytest.approx(expected)
    assert isinstance(
        space.distributions[FINAL_SPARSITY], FloatDistribution | CategoricalDistribution | IntDistribution
    )


def tell(searcher: OptunaSearcher, asked: Asked, state: TrialState = TrialState.COMPLETED) -> None:
    measured = {"value": 0.5, "sparsity": asked.params.get(FINAL_SPARSITY, 0.0)}
    searcher.tell(TrialRecord(asked.number, asked.method, asked.params, state, **measured))


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsgaii"])
def test_targets_alternate_and_each_pruning_method_has_trials_at_every_target(sampler: str, tmp_path: Path) -> None:
    methods = ["lpss", "gmp", "dense"]
    both = spaces(SEVERAL, method=methods)

    def searcher_now() -> OptunaSearcher:
        return OptunaSearcher(
            both, 0.8, sampler=sampler, journal=tmp_path / "j", planner=planner_for(both, SEVERAL, 36)
        )

    searcher, asked = searcher_now(), []
    for number in range(36):
        if number == 15:  # a resumed search continues the turns of targets and methods
            searcher = searcher_now()
        asked.append(searcher.ask())
        tell(searcher, asked[-1])
    assert [one.number for one in asked] == list(range(36))
    for one in asked:
        if one.method != "dense":
            assert one.params[FINAL_SPARSITY] == SEVERAL.targets[one.number % 3]
    for target in SEVERAL.targets:
        for method in ("lpss", "gmp"):
            assert sum((one.method, one.params.get(FINAL_SPARSITY)) == (method, target) for one in asked) >= 4
    assert all(one.method != "dense" for one in asked if one.number // 3 % 3 != 2)


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "nsgaii"])
def test_every_sampler_lets_each_method_try_sparsities_all_over_the_front(sampler: str) -> None:
    both = spaces(FRONT, method=["lpss", "gmp"])
    searcher = OptunaSearcher(both, 0.5, sampler=sampler, planner=planner_for(both, FRONT, 40))
    for number in range(40):
        asked = searcher.ask()
        tell(searcher, asked, TrialState.FAILED if number % 10 == 9 else TrialState.COMPLETED)
    for method in ("lpss", "gmp"):
        mine = [trial.params for trial in searcher.study.trials if trial.params["method"] == method]
        placed = sorted(log_sparsity(params[f"{method}.{FINAL_SPARSITY}"]) for params in mine)
        assert placed[0] == pytest.approx(log_sparsity(0.5))
        assert placed[-1] == pytest.approx(log_sparsity(0.99))
        widest = max(later - earlier for earlier, later in pairwise(placed)) / (placed[-1] - placed[0])
        assert widest <= 3 / 19 + 1e-9  # of the 20 sparsities of a method, two neighbours are left out at most


@pytest.mark.parametrize(
    ("goal", "options", "said"),
    [
        (at_targets(0.9), {"method": "dense"}, "--method dense never prunes"),
        (FRONT, {"method": "dense"}, "--method dense never prunes"),
        (at_targets(0.9), {"space": "lpsss"}, "did you mean lpss"),
        (at_targets(0.9), {"space": "gmp"}, "--space gmp is for --method gmp"),
        (at_targets(0.9), {"space": "dense", "method": "dense"}, "no final_sparsity of 0.9"),
    ],
)
def test_an_unknown_or_unsuitable_space_is_refused(goal: Goal, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        spaces(goal, **options)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("final_sparsity", "goal", "serves"),
    [
        ("0.5", at_targets(0.9), False),
        ("{type: float, low: 0.1, high: 0.89}", at_targets(0.9), False),
        ("{type: categorical, choices: [0.5, 0.8]}", at_targets(0.9), False),
        ("{type: categorical, choices: [0.5, 0.9]}", at_targets(0.9), True),
        ("{type: float, low: 0.5, high: 0.92}", SEVERAL, False),
        ("{type: float, low: 0.6, high: 0.7}", FRONT, True),
        ("0.92", at_targets(0.9), True),
    ],
)
def test_a_file_that_never_reaches_the_goal_is_refused(
    final_sparsity: str, goal: Goal, serves: bool, space_file: Any
) -> None:
    file = space_file(final_sparsity)
    if serves:
        assert spaces(goal, space=file)
    else:
        with pytest.raises(UsageError, match=r"s\.yaml has no final_sparsity of"):
            spaces(goal, space=file)


def test_the_method_dense_is_allowed_beside_another_method_or_at_target_zero() -> None:
    assert len(spaces(at_targets(0.9), method="lpss,dense")) == 2
    assert len(spaces(at_targets(0.0), method="dense")) == 1
