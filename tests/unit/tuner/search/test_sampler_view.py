"""Tests which trials and objectives a sampler gets: stopped trials, long studies, and the cost of a proposal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from tune_sparsity.search_spaces import Prior, Space, load_space
from tune_sparsity.search_spaces.priors import log_sparsity
from tune_sparsity.tuner.config import study_config
from tune_sparsity.tuner.search.like_sparsity import LIKE_SHARE
from tune_sparsity.tuner.search.planner import planner_for
from tune_sparsity.tuner.search.sampler_view import SamplingStudy, View
from tune_sparsity.tuner.search.samplers import SAMPLERS, check_sampler
from tune_sparsity.tuner.search.searcher import Asked, OptunaSearcher
from tune_sparsity.tuner.search.spaces import space_for
from tune_sparsity.tuner.study.goal import along_front
from tune_sparsity.tuner.study.trial import FINAL_SPARSITY, TrialRecord
from tune_sparsity.tuner.study.trial import TrialState as State

TARGET = 0.9
SPACE = Space(
    name="small",
    method="lpss",
    distributions={
        "p": FloatDistribution(1.05, 2.0),
        "feedback": CategoricalDistribution(("pi", "published")),
        "feedback_gain": FloatDistribution(0.02, 0.5, log=True),
        "final_sparsity": FloatDistribution(0.85, 0.95),
    },
    fixed={"momentum": 0.9, "lr": 0.1},
    first=({"p": 1.3, "feedback": "published", "final_sparsity": TARGET},),
    priors={"p": Prior(1.2, 0.01), "feedback": Prior("pi", 0.5)},
    when={"feedback_gain": {"feedback": ("pi",)}, "momentum": {"feedback": ("published",)}},
)
FRONT = along_front(0.5, 0.99)
LEARNERS = [name for name, kind in SAMPLERS.items() if kind.own_study]


def ended(asked: Asked, state: State = State.COMPLETED, accuracy: float | None = None) -> TrialRecord:
    record = TrialRecord(asked.number, asked.method, asked.params, state)
    record.sparsity = asked.params["final_sparsity"]
    record.value = 1 - abs(asked.params["p"] - 1.6) if accuracy is None else accuracy
    return record


def search(searcher: OptunaSearcher, trials: int) -> list[Asked]:
    done = []
    for _ in range(trials):
        done.append(searcher.ask())
        searcher.tell(ended(done[-1], State.PRUNED if done[-1].number % 4 == 3 else State.COMPLETED))
    return done


def own_study(searcher: OptunaSearcher) -> optuna.Study:
    assert searcher._sampling is not None
    return searcher._sampling._study


def shown(study: SamplingStudy | OptunaSearcher) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that a sampler reads. It reads no failed ones."""
    own = own_study(study) if isinstance(study, OptunaSearcher) else study._study
    return [trial for trial in own.trials if trial.state is not TrialState.FAIL]


def test_the_command_and_the_search_package_know_the_same_samplers() -> None:
    assert set(SAMPLERS) == set(study_config.SAMPLERS), "the names stand in tuner/config/study_config.py, too"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_only_parameters_whose_condition_holds_are_proposed_and_recorded(sampler: str) -> None:
    searcher = OptunaSearcher([SPACE], TARGET, sampler=sampler)
    for asked in search(searcher, SAMPLERS[sampler].startup + 3 or 12):
        applies = asked.params["feedback"] == "pi"
        assert ("feedback_gain" in asked.params) is applies
        assert ("momentum" in asked.params) is not applies
        assert asked.params["lr"] == 0.1
        assert searcher.study.trials[asked.number].params.keys() == asked.params.keys() - {"momentum", "lr"}


@pytest.mark.parametrize("sampler", LEARNERS)
def test_the_first_trials_come_from_the_priors(sampler: str) -> None:
    searcher = OptunaSearcher([SPACE], TARGET, sampler=sampler)
    asked = search(searcher, SAMPLERS[sampler].startup)
    assert [a.params["p"] for a in asked] == pytest.approx([1.3] + [1.2] * (len(asked) - 1), abs=0.04)


def test_for_one_target_the_sampler_sees_one_value_and_the_study_stores_two() -> None:
    searcher = OptunaSearcher([SPACE], TARGET)
    asked = searcher.ask()
    searcher.tell(ended(asked, accuracy=0.7))
    (seen,), (recorded,) = shown(searcher), searcher.study.trials
    assert seen.values == [0.7]
    assert seen.params == recorded.params
    assert seen.constraints == {"target": 0.0}
    assert recorded.constraints["target"] == 0.0
    assert recorded.values == [0.7, TARGET]


def front_searcher(*methods: str, sampler: str = "tpe", **options: Any) -> OptunaSearcher:
    spaces = [space_for(method, FRONT) for method in methods or ("lpss",)]
    return OptunaSearcher(spaces, FRONT.lowest, sampler=sampler, planner=planner_for(spaces, FRONT, 40), **options)


def proposed(searcher: OptunaSearcher) -> Asked:
    """Ask for trials until the sampler proposes the parameters of a trial, and return this trial. The trials before it
    repeat an earlier configuration."""
    while True:
        asked = searcher.ask()
        if "configuration" not in searcher.study.trials[asked.number].user_attrs:
            return asked
        searcher.tell(ended(asked, State.FAILED))


def test_for_a_front_the_sampler_gets_the_accuracy_minus_its_sparsity_trend() -> None:
    """Accuracies fall linearly with -log(1 - sparsity), to .85 at the upper end of the front. One trial exceeds this
    trend by .05."""
    searcher = front_searcher()
    gain = {7: 0.05}
    for _ in range(12):
        asked = searcher.ask()
        share = log_sparsity(asked.params[FINAL_SPARSITY]) / log_sparsity(FRONT.highest)
        searcher.tell(ended(asked, accuracy=0.95 - 0.1 * share + gain.get(asked.number, 0.0)))
    proposed(searcher)
    seen = [trial for trial in own_study(searcher).trials if trial.state is TrialState.COMPLETE]
    assert len(seen) == 12
    assert all(FINAL_SPARSITY not in trial.params for trial in seen)
    (best,) = (trial for trial in seen if trial.value > 0.03)
    assert best.params.items() <= searcher.study.trials[7].params.items()
    inner = [trial.value for trial in seen if trial is not best]
    assert max(abs(value) for value in inner) < 0.04


def test_a_sampler_learns_only_from_trials_of_similar_sparsity() -> None:
    searcher = front_searcher()
    for number in range(120):
        searcher.tell(ended(searcher.ask(), State.PRUNED if number % 4 == 3 else State.COMPLETED))
    asked = proposed(searcher)
    at = log_sparsity(asked.params[FINAL_SPARSITY])
    seen = [trial for trial in own_study(searcher).trials if trial.state is TrialState.COMPLETE]
    complete = [t for t in searcher.study.trials if t.state is TrialState.COMPLETE]
    nearest = sorted(complete, key=lambda trial: abs(log_sparsity(trial.params[FINAL_SPARSITY]) - at))
    assert len(seen) == len(complete) // LIKE_SHARE
    assert {t.params["p"] for t in seen} == {t.params["p"] for t in nearest[: len(seen)]}


@pytest.mark.parametrize("sampler", [name for name, kind in SAMPLERS.items() if kind.front])
def test_a_front_search_goes_on_after_its_sampler_has_begun_to_learn(sampler: str) -> None:
    """Most samplers begin to learn after eight completed trials. Later, two of every three trials repeat a
    configuration, so the sampler proposes no parameters for them."""
    searcher, space = front_searcher(sampler=sampler), space_for("lpss", FRONT)
    for asked in search(searcher, 22):
        assert set(asked.params) >= {name for name in space.distributions if space.applies(name, asked.params)}
    repeated = ["configuration" in trial.user_attrs for trial in searcher.study.trials[14:]]
    assert set(repeated) == {True, False}


def test_a_restarted_front_search_proposes_the_same_trials_as_an_unbroken_one(tmp_path: Path) -> None:
    whole = search(front_searcher(seed=5), 14)
    journal = tmp_path / "optuna.journal"
    parts = search(front_searcher(seed=5, journal=journal), 9)
    assert parts + search(front_searcher(seed=5, journal=journal), 5) == whole


def test_running_trials_are_known_to_the_next_proposal() -> None:
    searcher = front_searcher()
    running = [searcher.ask() for _ in range(4)]
    running.append(proposed(searcher))
    seen = [trial for trial in own_study(searcher).trials if trial.state is TrialState.RUNNING]
    assert [trial.params["p"] for trial in seen] == [asked.params["p"] for asked in running]
    for asked in reversed(running):
        searcher.tell(ended(asked))


def test_stopped_and_failed_trials_are_places_to_avoid_and_no_results() -> None:
    searcher = OptunaSearcher([SPACE], TARGET)
    for state in (State.PRUNED, State.FAILED):
        searcher.tell(ended(searcher.ask(), state, accuracy=1.0))
    assert [trial.state for trial in shown(searcher)] == [TrialState.PRUNED] * 2
    assert [trial.values for trial in shown(searcher)] == [None] * 2


def test_a_sampler_without_constraints_ranks_feasible_before_infeasible_before_stopped() -> None:
    searcher = OptunaSearcher([SPACE], TARGET, sampler="cmaes")
    for state, accuracy, sparsity in (
        (State.COMPLETED, 1.0, 0.91),
        (State.COMPLETED, 0.1, 0.91),
        (State.COMPLETED, -54.2, 0.91),  # a metric that is minimised, such as an error, has a negative merit
        (State.COMPLETED, -3e9, 0.91),
        (State.COMPLETED, 1.0, 0.88),
        (State.COMPLETED, 1.0, 0.0),
        (State.PRUNED, 1.0, 1.0),
    ):
        record = ended(searcher.ask(), state, accuracy)
        record.sparsity = sparsity
        searcher.tell(record)
    values = [trial.value for trial in own_study(searcher).trials]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_a_restarted_search_gives_the_sampler_the_same_trials(sampler: str, tmp_path: Path) -> None:
    def knows(searcher: OptunaSearcher) -> list[tuple[Any, ...]]:
        return [
            (t.state, t.values, {name: value for name, value in t.params.items() if name != "feedback_gain"})
            for t in shown(searcher)
        ]

    journal = tmp_path / "optuna.journal"
    first = OptunaSearcher([SPACE], TARGET, sampler=sampler, journal=journal)
    search(first, 12)
    running = first.ask()
    second = OptunaSearcher([SPACE], TARGET, sampler=sampler, journal=journal)
    assert knows(second) == knows(first)
    assert second.ask() == running
    second.tell(ended(running))
    search(second, 3)


def test_the_record_is_a_study_that_optuna_opens_from_its_file(tmp_path: Path) -> None:
    journal = tmp_path / "optuna.journal"
    search(OptunaSearcher([SPACE], TARGET, journal=journal, name="mine"), 3)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    study = optuna.load_study(study_name=None, storage=storage)  # as the dashboard does: there is exactly one study
    assert study.study_name == "mine"
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert [direction.name for direction in study.directions] == ["MAXIMIZE"] * 2


def trial(value: float, number: int = 0, state: TrialState = TrialState.COMPLETE) -> optuna.trial.FrozenTrial:
    return create_trial(
        state=state,
        values=[value, 0.9] if state is TrialState.COMPLETE else None,
        params={"x": number},
        distributions={"x": FloatDistribution(0, 1000)},
    )


def test_a_sampler_of_a_long_study_keeps_the_best_and_the_latest_trials() -> None:
    study = SamplingStudy(optuna.samplers.RandomSampler(seed=0), View(most=40))
    study.add([trial(-number, number) for number in range(30)])
    record = optuna.create_study(sampler=study, directions=["maximize"] * 2)
    running = record.ask({"x": FloatDistribution(0, 1000)})
    study.settle(running)
    study.add([trial(-number, number) for number in range(30, 60)])
    record.ask()
    kept = [t for t in shown(study) if t.state is TrialState.COMPLETE]
    assert [t.params["x"] for t in kept] == [*range(20), *range(40, 60)]  # the latest, until there are more than 40
    study.add([trial(-number, number) for number in range(60, 70)])
    record.ask()
    kept = [t for t in shown(study) if t.state is TrialState.COMPLETE]
    assert [t.params["x"] for t in kept] == [*range(20), *range(50, 70)]
    (begun, *_) = (t for t in shown(study) if t.state is TrialState.RUNNING)
    assert begun.params == running.params
    record.tell(running, [1.0, 0.9])
    assert [t.value for t in shown(study) if t.state is TrialState.COMPLETE and t.params == running.params] == [1.0]


def test_the_study_of_a_sampler_is_rarely_rebuilt_if_many_trials_are_running() -> None:
    study = SamplingStudy(optuna.samplers.RandomSampler(seed=0), View(most=20))
    record = optuna.create_study(sampler=study, directions=["maximize"] * 2)
    running = [record.ask({"x": FloatDistribution(0, 1000)}) for _ in range(60)]
    for one in running:
        study.settle(one)
    begun = [study._study]
    for one in running:
        record.tell(one, [1.0, 0.9])
        study.settle(record.ask({"x": FloatDistribution(0, 1000)}))
        if study._study is not begun[-1]:
            begun.append(study._study)
        assert sum(trial.state.is_finished() for trial in shown(study)) <= 20
    assert len(begun) <= 1 + 60 // 5


def test_a_sampler_sees_the_latest_running_trials_and_every_completed_one() -> None:
    study = SamplingStudy(optuna.samplers.RandomSampler(seed=0), View(most=20, running=4))
    record = optuna.create_study(sampler=study, directions=["maximize"] * 2)
    running = []
    for _ in range(10):
        running.append(record.ask({"x": FloatDistribution(0, 1000)}))
        study.settle(running[-1])
    seen = study._study.get_trials(states=[TrialState.RUNNING])
    assert [one.params for one in seen] == [one.params for one in running[-4:]]
    for one, merit in ((running[0], 0.5), (running[-1], 0.7)):
        one.set_constraint("target", 0.1)
        record.tell(one, [merit, 0.9])
    ends = study._study.get_trials(states=[TrialState.COMPLETE])
    assert {(one.params["x"], one.value, one.constraints["target"]) for one in ends} == {
        (running[0].params["x"], 0.5, 0.1),
        (running[-1].params["x"], 0.7, 0.1),
    }


def test_stopped_and_infeasible_trials_are_the_first_to_be_forgotten() -> None:
    study = SamplingStudy(optuna.samplers.RandomSampler(seed=0), View(most=12))
    study.add([trial(0.5, number) for number in range(4)])
    study.add([trial(0.5, number, TrialState.PRUNED) for number in range(4, 13)])
    optuna.create_study(sampler=study, directions=["maximize"] * 2).ask()
    assert [t.params["x"] for t in shown(study)[:-1]] == [0, 1, 2, 3, 4, 5, 9, 10, 11, 12]


@pytest.mark.parametrize(
    ("sampler", "front", "methods", "said"),
    [
        ("cmaes", True, 1, "several sparsities"),
        ("cmaes", False, 2, "several methods"),
        ("gp", False, 2, "several methods"),
    ],
)
def test_an_unsuitable_sampler_is_refused_and_suitable_ones_are_named(
    sampler: str, front: bool, methods: int, said: str
) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        check_sampler(sampler, front=front, methods=methods)
    assert "tpe" in str(caught.value)
    assert sampler not in str(caught.value).partition(":")[2]


@pytest.mark.parametrize("sampler", [name for name, kind in SAMPLERS.items() if kind.front and name != "gp"])
def test_every_front_sampler_except_gp_supports_two_pruning_methods(sampler: str) -> None:
    check_sampler(sampler, front=True, methods=2)
    searcher = front_searcher("lpss", "gmp", sampler=sampler)
    asked = []
    for _ in range(12):
        asked.append(searcher.ask())
        searcher.tell(ended(asked[-1], accuracy=0.5))
    assert {a.method for a in asked} == {"lpss", "gmp"}


@pytest.mark.parametrize("front", [False, True])
def test_the_number_of_trials_that_a_sampler_sees_is_limited(front: bool) -> None:
    """With this limit, a proposal takes no longer at the end of a long study. `benchmarks.search --cost` measures the
    times."""
    searcher = front_searcher(sampler="tpe") if front else OptunaSearcher([load_space("lpss", TARGET)], TARGET)
    searcher.study.sampler = searcher._sampling
    rng = np.random.default_rng(0)
    for number in range(400):
        searcher.tell(ended(searcher.ask(), accuracy=float(rng.random())))
        if number >= 300 and number % 50 == 0:
            assert len(shown(searcher)) <= (SAMPLERS["tpe"].most or 0) + 1
