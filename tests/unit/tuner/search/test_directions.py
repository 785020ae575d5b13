"""Minimising a metric and maximising its negative give exactly the same search."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_sparsity.tuner.config.study_config import make_config
from tune_sparsity.tuner.driver.study_run import StudyRun
from tune_sparsity.tuner.search.asha import halving_for
from tune_sparsity.tuner.search.importance import importances
from tune_sparsity.tuner.search.planner import planner_for
from tune_sparsity.tuner.search.searcher import OptunaSearcher
from tune_sparsity.tuner.search.spaces import spaces_of
from tune_sparsity.tuner.search.warm_start import WarmStart
from tune_sparsity.tuner.study.front import FrontTracker
from tune_sparsity.tuner.study.goal import Goal, along_front, at_targets
from tune_sparsity.tuner.study.objective import ACCURACY, Objective
from tune_sparsity.tuner.study.trial import Epoch, TrialRecord, TrialState

DOWN, UP = (Objective("m", maximize=up, percent=False) for up in (False, True))
EPOCHS, BASELINE = 10, 80.0


def judged(goal: Goal, objective: Objective) -> Goal:
    return Goal(goal.targets, goal.ceiling, objective=objective, baseline=BASELINE if objective == DOWN else -BASELINE)


def error(params: dict[str, Any], sparsity: float, epoch: int, number: int) -> float:
    """Return an error that falls during a training and grows with the sparsity."""
    away = abs(math.log10(params["lr"] / 0.05)) + abs(params["p"] - 1.5) + 1.5 * (number % 6 == 4)
    return 40 + 10 * away - 6 * math.log1p(-sparsity) + 20 / epoch


def searched(goal: Goal, sampler: str, folder: Path, *, trials: int = 26, restart: int = 12) -> StudyRun:
    """Run a study of simulated trials. Halfway, a second search continues it from the journal."""
    name = f"{goal.objective.maximize}"
    options: dict[str, Any] = {"trials": trials, "epochs": EPOCHS, "sampler": sampler, "storage": folder, "study": name}
    options |= {"front": (goal.lowest, goal.highest)} if goal.ceiling else {"target": goal.targets}
    config, study = make_config(options), None
    spaces = spaces_of(config, goal, None)
    (folder / name).mkdir()
    for until in (restart, trials):
        searcher = OptunaSearcher(
            spaces,
            goal.lowest,
            sampler=sampler,
            journal=folder / name / "optuna.journal",
            planner=planner_for(spaces, goal, trials),
        )
        study = StudyRun(config, goal, searcher, halving=halving_for("asha", goal, EPOCHS), clock=lambda: 0.0)
        while len(study.records) < until and (asked := study.ask()) is not None:
            train(study, asked.number, asked.params)
    assert study is not None
    return study


def train(study: StudyRun, number: int, params: dict[str, Any]) -> None:
    objective = study.goal.objective
    sparsity = params["final_sparsity"]
    for at in range(1, EPOCHS + 1):
        value = error(params, sparsity, at, number) * (1 if objective == DOWN else -1)
        more = {"sparsity": sparsity, "sparsity_total": sparsity, "hoyer": 0.5, "nonzero_weights": 10.0}
        epoch = Epoch(at, {objective.val: value, objective.at_target: value, "epoch_seconds": 1.0, **more})
        study.epoch(number, epoch)
        if number == 5:
            study.end(number, TrialState.FAILED)
            return
        if at < EPOCHS and not study.goes_on(number, epoch, sparsity):
            study.end(number, TrialState.PRUNED)
            return
    study.end(number, TrialState.COMPLETED)


@pytest.mark.parametrize(
    ("goal", "sampler"),
    [
        (at_targets(0.9), "tpe"),
        (at_targets(0.9), "cmaes"),
        (at_targets(0.8), "gp"),
        (at_targets(0.7, 0.9), "tpe"),
        (along_front(0.5, 0.98), "tpe"),
        (along_front(0.5, 0.98), "nsgaii"),
    ],
    ids=lambda value: str(value),
)
def test_both_directions_give_the_same_search(goal: Goal, sampler: str, tmp_path: Path) -> None:
    down, up = (searched(judged(goal, objective), sampler, tmp_path) for objective in (DOWN, UP))
    assert len(down.records) == 26
    for one, other in zip(down.records.values(), up.records.values(), strict=True):
        assert (one.params, one.state, one.epochs) == (other.params, other.state, other.epochs)
        assert (one.value, one.merit) == (-(other.value or 0.0), other.merit)
        assert one.rungs == {epoch: -value for epoch, value in other.rungs.items()}
    assert any(record.state is TrialState.PRUNED for record in down.records.values())
    numbers = [[record.number for record in study.standing.front] for study in (down, up)]
    assert numbers[0] == numbers[1] != []
    assert down.standing.since_gain == up.standing.since_gain
    records = list(down.records.values())
    best = min((r for r in records if r.feasible(goal.lowest)), key=lambda r: r.value or 0.0)
    assert down.standing.best is best
    area = down.goal.hypervolume(records)
    assert area == up.goal.hypervolume(up.records.values()) > 0
    if goal.ceiling:
        assert down.goal.mean_value(area) == -up.goal.mean_value(area)
        assert (best.value or 0.0) <= down.goal.mean_value(area) < BASELINE
    assert importances(records)[0] == pytest.approx(importances(list(up.records.values()))[0])


def test_a_front_search_does_not_depend_on_the_unit_of_the_metric(tmp_path: Path) -> None:
    """The noise level that the search assumes is proportional to the metric. If it were a constant, a metric with 1024
    times larger values would give other trials."""
    goal = judged(along_front(0.5, 0.98), DOWN)
    for factor in (1.0, 1024.0):  # multiplying by a power of two is exact
        (tmp_path / str(factor)).mkdir()
    one = searched(goal, "tpe", tmp_path / "1.0")
    large = Goal(goal.targets, goal.ceiling, objective=DOWN, baseline=1024 * BASELINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "error", lambda *args, usual=error: 1024 * usual(*args))
        other = searched(large, "tpe", tmp_path / "1024.0")
    assert [r.params for r in one.records.values()] == [r.params for r in other.records.values()]
    assert [r.state for r in one.records.values()] == [r.state for r in other.records.values()]


points = st.tuples(st.sampled_from([0.5, 0.7, 0.8, 0.9, 0.95]), st.floats(-1e6, 1e6))


@settings(deadline=None)
@given(st.lists(points, max_size=12), st.floats(-1e6, 1e6), st.booleans())
def test_a_hypervolume_never_falls_and_its_mean_is_no_worse_than_the_baseline(
    found: list[tuple[float, float]], baseline: float, up: bool
) -> None:
    goal = Goal((0.5,), ceiling=0.9, objective=UP if up else DOWN, baseline=baseline)
    records = [
        TrialRecord(n, "lpss", {}, TrialState.COMPLETED, value, sparsity, objective=goal.objective)
        for n, (sparsity, value) in enumerate(found)
    ]
    tracker, before = FrontTracker(goal), 0.0
    for record in records:
        tracker.add(record)
        area = goal.hypervolume(tracker.front)
        assert area >= before >= 0
        before = area
    assert goal.reference == (0.5, baseline)
    better = max if up else min
    everywhere = [value for sparsity, value in found if sparsity >= 0.9]
    mean = goal.mean_value(before)
    assert mean == pytest.approx(better(mean, baseline))
    if everywhere:  # trials of sparsity .9 or more count at every sparsity of the front, from .5 to .9
        assert mean == pytest.approx(better(mean, better(everywhere)))


def test_a_record_stores_its_value_under_the_name_of_its_metric() -> None:
    record = TrialRecord(1, "lpss", {}, TrialState.COMPLETED, 54.2, 0.9, rungs={2: 60.0}, objective=DOWN)
    kept = record.to_dict()
    assert kept["val_m"] == 54.2
    assert "value" not in kept
    assert TrialRecord.from_dict(kept) == record
    plain = TrialRecord(1, "lpss", {}, TrialState.COMPLETED, 0.9, 0.9)
    assert plain.to_dict()["val_accuracy"] == 0.9
    assert not {"value", "objective"} & set(plain.to_dict())
    assert TrialRecord.from_dict(plain.to_dict()) == plain


def test_trials_of_another_metric_are_dropped_but_the_best_point_is_tried(tmp_path: Path) -> None:
    from tune_sparsity.tuner.search.warm_start import warm_start
    from tune_sparsity.tuner.storage.study_storage import parse_storage

    goal = judged(at_targets(0.9), DOWN)
    study = searched(goal, "random", tmp_path)
    (tmp_path / "False" / "study.yaml").write_text("experiment: x\n")
    spaces = spaces_of(study.config, goal, None)

    def carried(objective: Objective) -> WarmStart:
        return warm_start(["False"], parse_storage(str(tmp_path)), spaces, 0.9, {"experiment": "x"}, objective)

    assert len(carried(DOWN).trials) == 25  # all but the failed one
    other = carried(ACCURACY)
    assert other.trials == ()
    best = study.standing.best
    assert best is not None
    assert other.points[0][1]["lr"] == best.params["lr"]
