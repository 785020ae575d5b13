"""Tests the searcher: its first proposals, the trials in Optuna's study, and how a killed search continues."""

from __future__ import annotations

import math
import statistics
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from tune_sparsity.search_spaces import Space, load_space
from tune_sparsity.sparsity import METHODS
from tune_sparsity.tuner.search.samplers import SAMPLERS
from tune_sparsity.tuner.search.searcher import Asked, OptunaSearcher
from tune_sparsity.tuner.study.objective import Objective
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState

TARGET = 0.9
USABLE = list(SAMPLERS)
SMALL = Space(
    name="small",
    method="lpss",
    distributions={
        "p": FloatDistribution(1.05, 2.0),
        "lr": FloatDistribution(1e-3, 1.0, log=True),
        "threshold_interval": IntDistribution(10, 100, log=True),
        "threshold": CategoricalDistribution(("cosine", "constant", "linear")),
        "final_sparsity": FloatDistribution(TARGET, TARGET + 0.02),
    },
    fixed={"feedback": "pi"},
    first=(
        {"p": 1.1, "lr": 0.1, "threshold_interval": 40, "threshold": "cosine", "final_sparsity": TARGET},
        {"p": 1.4, "lr": 0.05, "threshold_interval": 40, "threshold": "linear", "final_sparsity": TARGET},
    ),
)
RANDOM = replace(SMALL, first=())


@pytest.fixture(params=["memory", "journal"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return None if request.param == "memory" else tmp_path / "optuna.journal"


def accuracy(params: dict[str, Any]) -> float:
    """Return a simulated accuracy. It has its maximum, 1, at p = 1.3, lr = 0.05, threshold_interval = 30 and the linear
    threshold."""
    away = [
        (params["p"] - 1.3) / 0.4,
        math.log10(params["lr"] / 0.05),
        math.log2(params["threshold_interval"] / 30) / 2,
        {"linear": 0.0, "cosine": 0.3, "constant": 1.0}[params["threshold"]],
    ]
    return math.exp(-sum(x * x for x in away) / 2)


def ended(asked: Asked, state: TrialState = TrialState.COMPLETED, **fields: Any) -> TrialRecord:
    measured = {"value": accuracy(asked.params), "sparsity": asked.params["final_sparsity"], "epochs": 5}
    return TrialRecord(asked.number, asked.method, asked.params, state, **{**measured, **fields})


def search(searcher: OptunaSearcher, trials: int) -> list[Asked]:
    """Run trials one after the other, each to its last epoch."""
    done = []
    for _ in range(trials):
        asked = searcher.ask()
        searcher.tell(ended(asked))
        done.append(asked)
    return done


def assert_inside(space: Space, asked: Asked) -> None:
    assert asked.method == space.method
    assert set(asked.params) == {*space.distributions, *space.fixed}
    for name, distribution in space.distributions.items():
        assert distribution._contains(distribution.to_internal_repr(asked.params[name]))
    for name, value in space.fixed.items():
        assert asked.params[name] == value
    assert isinstance(asked.params["threshold_interval"], int)


# What is proposed


def test_the_first_points_of_a_space_come_first_and_complete(journal: Path | None) -> None:
    searcher = OptunaSearcher([SMALL], TARGET, journal=journal)
    asked = [searcher.ask() for _ in range(4)]
    assert [a.number for a in asked] == [0, 1, 2, 3]
    assert [a.params for a in asked[:2]] == [{**point, **SMALL.fixed} for point in SMALL.first]
    assert all(a.params not in [b.params for b in asked if b is not a] for a in asked)


def test_the_first_trials_of_the_lpss_space_are_its_first_points() -> None:
    space = load_space("lpss", TARGET)
    searcher = OptunaSearcher([space], TARGET)
    first = space.first_for(TARGET)
    assert len(first) == 3
    assert [searcher.ask().params for _ in first] == [{**point, **space.fixed} for point in first]


@pytest.mark.parametrize("sampler", USABLE)
def test_every_sampler_makes_trials_without_a_warning(sampler: str, tmp_path: Path) -> None:
    trials = 14 if sampler == "gp" else 20  # a Gaussian process proposes slowly
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        searcher = OptunaSearcher([SMALL], TARGET, sampler=sampler, journal=tmp_path / "optuna.journal")
        running: list[Asked] = []
        for number in range(trials):
            running.append(searcher.ask())
            assert running[-1].number == number
            assert_inside(SMALL, running[-1])
            if number % 2:  # two run at a time; the later one ends first, and some others are stopped or fail
                first, second = running.pop(), running.pop()
                searcher.tell(ended(first))
                state = (TrialState.COMPLETED, TrialState.PRUNED, TrialState.FAILED)[number % 3]
                searcher.tell(ended(second, state))
    assert len(searcher.finished()) == trials
    params = [str(record.params) for record in searcher.finished()]
    assert len(set(params)) == trials


@pytest.mark.parametrize("sampler", USABLE)
def test_the_same_seed_proposes_the_same_and_another_seed_others(sampler: str) -> None:
    def proposals(seed: int) -> list[dict[str, Any]]:
        return [asked.params for asked in search(OptunaSearcher([RANDOM], TARGET, sampler=sampler, seed=seed), 10)]

    first = proposals(3)
    assert proposals(3) == first
    assert not [params for params in proposals(4) if params in first]


# What Optuna is told


def test_optuna_has_the_true_states_and_values_of_trials(journal: Path | None) -> None:
    searcher = OptunaSearcher([SMALL], TARGET, journal=journal)
    told = {}
    for state in (TrialState.COMPLETED, TrialState.PRUNED, TrialState.FAILED, TrialState.COMPLETED):
        asked = searcher.ask()
        told[asked.number] = ended(asked, state, reason="why" if state is TrialState.FAILED else "")
    for number in (2, 0, 3, 1):
        searcher.tell(told[number])
    searcher.ask()
    assert searcher.states() == {0: "COMPLETE", 1: "PRUNED", 2: "FAIL", 3: "COMPLETE", 4: "RUNNING"}
    for trial in searcher.study.trials[:4]:
        record = told[trial.number]
        if record.state is TrialState.COMPLETED:
            assert trial.values == [record.value, record.sparsity]
        else:
            assert trial.values is None
            assert not trial.intermediate_values
    assert searcher.finished() == [told[number] for number in range(4)]


def test_a_failed_trial_without_a_measurement_is_recorded() -> None:
    searcher = OptunaSearcher([SMALL], TARGET)
    asked = searcher.ask()
    searcher.tell(TrialRecord(asked.number, asked.method, asked.params, TrialState.FAILED, reason="lost"))
    assert searcher.states() == {0: "FAIL", 1: "WAITING"}
    assert searcher.finished()[0].reason == "lost"


def test_the_constraint_is_the_target_minus_the_sparsity(journal: Path | None) -> None:
    searcher = OptunaSearcher([SMALL], TARGET, journal=journal)
    sparsities = (0.85, 0.9, 0.92)
    for sparsity in sparsities:
        searcher.tell(ended(searcher.ask(), sparsity=sparsity, value=1.0 - sparsity))
    stored = [trial.constraints for trial in searcher.study.trials]
    for one, trial, sparsity in zip(stored, searcher.study.trials, sparsities, strict=True):
        assert one["target"] == pytest.approx(TARGET - sparsity)
        assert trial.system_attrs["constraints"] == [one["target"]]  # Optuna's dashboard reads this attribute
    assert stored[1]["target"] == 0.0  # exactly at the target is feasible
    # The first trial has the highest accuracy, but it is infeasible: it is not sparse enough.
    assert {trial.number for trial in searcher.study.best_trials} == {1, 2}


def test_stopped_and_failed_trials_have_no_constraint_and_are_no_results() -> None:
    searcher = OptunaSearcher([SMALL], TARGET)
    for state in (TrialState.PRUNED, TrialState.FAILED, TrialState.COMPLETED):
        accurate = 0.5 if state is TrialState.COMPLETED else 1.0
        searcher.tell(ended(searcher.ask(), state, value=accurate))
    assert [trial.constraints for trial in searcher.study.trials[:2]] == [{}, {}]
    assert [trial.number for trial in searcher.study.best_trials] == [2]


def test_a_trial_cannot_end_twice() -> None:
    searcher = OptunaSearcher([SMALL], TARGET)
    asked = searcher.ask()
    searcher.tell(ended(asked))
    with pytest.raises(KeyError):
        searcher.tell(ended(asked, TrialState.FAILED))
    assert searcher.states()[0] == "COMPLETE"


# A search that died


@pytest.mark.parametrize("sampler", USABLE)
def test_a_search_that_died_goes_on_with_the_same_trials(sampler: str, tmp_path: Path) -> None:
    journal = tmp_path / "optuna.journal"
    first = OptunaSearcher([SMALL], TARGET, sampler=sampler, journal=journal)
    begun = [first.ask() for _ in range(7)]
    first.tell(ended(begun[1]))
    first.tell(ended(begun[4], TrialState.PRUNED, reason="stopped"))
    first.tell(ended(begun[0], TrialState.FAILED, reason="NaN", metrics={"train_loss": 1.5}))
    before = first.finished()
    assert [record.number for record in before] == [0, 1, 4]

    second = OptunaSearcher([SMALL], TARGET, sampler=sampler, journal=journal)
    assert second.finished() == before
    assert [second.ask() for _ in range(4)] == [begun[number] for number in (2, 3, 5, 6)]
    new = second.ask()
    assert new.number == 7
    for asked in (begun[3], new, begun[2]):
        second.tell(ended(asked))

    third = OptunaSearcher([SMALL], TARGET, sampler=sampler, journal=journal)
    assert third.finished()[:2] == before[:2]
    assert [record.number for record in third.finished()] == [0, 1, 2, 3, 4, 7]
    assert [third.ask(), third.ask()] == [begun[5], begun[6]]
    assert third.ask().number == 8
    assert third.states() == {
        0: "FAIL", 1: "COMPLETE", 2: "COMPLETE", 3: "COMPLETE", 4: "PRUNED", 5: "RUNNING", 6: "RUNNING",
        7: "COMPLETE", 8: "RUNNING",
    }  # fmt: skip


def test_first_points_that_had_not_begun_still_come_and_only_once(tmp_path: Path) -> None:
    journal = tmp_path / "optuna.journal"
    points = [{**point, **SMALL.fixed} for point in SMALL.first]
    assert OptunaSearcher([SMALL], TARGET, journal=journal).ask().params == points[0]
    again = OptunaSearcher([SMALL], TARGET, journal=journal)
    asked = [again.ask() for _ in range(3)]
    assert [a.number for a in asked] == [0, 1, 2]
    assert [a.params for a in asked[:2]] == points
    assert asked[2].params not in points


@pytest.mark.parametrize("sampler", USABLE)
def test_a_search_that_goes_on_does_not_propose_the_same_again(sampler: str, tmp_path: Path) -> None:
    journal = tmp_path / "optuna.journal"
    seen = []
    for _ in range(3):
        searcher = OptunaSearcher([RANDOM], TARGET, sampler=sampler, seed=1, journal=journal)
        seen += [str(asked.params) for asked in search(searcher, 4)]
    assert len(set(seen)) == 12


def test_a_quasi_random_sequence_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = search(OptunaSearcher([RANDOM], TARGET, sampler="qmc", seed=1), 8)
    journal = tmp_path / "optuna.journal"
    parts = []
    for _ in range(2):
        parts += search(OptunaSearcher([RANDOM], TARGET, sampler="qmc", seed=1, journal=journal), 4)
    assert parts[1:] == whole[1:]  # Optuna draws the first trial independently, not from the sequence


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("whole_lines_lost", [0, 1, 2])
def test_a_search_continues_from_a_truncated_journal(whole_lines_lost: int, tmp_path: Path) -> None:
    journal = tmp_path / "optuna.journal"
    first = OptunaSearcher([SMALL], TARGET, journal=journal)
    search(first, 3)
    asked = first.ask()
    before = first.finished()
    begun = len(journal.read_bytes())
    first.tell(ended(asked))
    lines = journal.read_bytes().splitlines(keepends=True)
    lines = lines[: len(lines) - whole_lines_lost]
    journal.write_bytes(b"".join([*lines[:-1], lines[-1][: len(lines[-1]) // 2]]))  # within a word
    assert journal.stat().st_size >= begun
    second = OptunaSearcher([SMALL], TARGET, journal=journal)
    assert second.finished() == before
    assert second.ask() == asked
    second.tell(ended(asked))
    search(second, 3)
    third = OptunaSearcher([SMALL], TARGET, journal=journal)
    assert [record.number for record in third.finished()] == list(range(7))
    assert third.study.trials[asked.number].constraints["target"] == TARGET - asked.params["final_sparsity"]


def test_an_empty_journal_is_a_new_search(tmp_path: Path) -> None:
    journal = tmp_path / "optuna.journal"
    journal.touch()
    searcher = OptunaSearcher([SMALL], TARGET, journal=journal)
    assert searcher.ask().params == {**SMALL.first[0], **SMALL.fixed}


def test_a_study_whose_folder_was_renamed_keeps_its_trials(tmp_path: Path) -> None:
    journal = tmp_path / "optuna.journal"
    search(OptunaSearcher([SMALL], TARGET, journal=journal, name="before"), 2)
    renamed = OptunaSearcher([SMALL], TARGET, journal=journal, name="after")
    assert [record.number for record in renamed.finished()] == [0, 1]
    assert renamed.ask().number == 2


# Two methods in one study


def test_two_methods_share_a_study(tmp_path: Path) -> None:
    other = replace(SMALL, method=next(name for name in METHODS if name != "lpss"))
    searcher = OptunaSearcher([SMALL, other], TARGET, journal=tmp_path / "optuna.journal")
    asked = search(searcher, 20)
    assert {a.method for a in asked} == {SMALL.method, other.method}
    for a in asked:
        assert_inside(SMALL if a.method == SMALL.method else other, a)
    again = OptunaSearcher([SMALL, other], TARGET, journal=tmp_path / "optuna.journal")
    assert [(r.method, r.params) for r in again.finished()] == [(a.method, a.params) for a in asked]


# What a search finds and records


def best_found(sampler: str, seed: int, trials: int = 60) -> float:
    """Return the best accuracy of the feasible trials. A trial with p above 1.8 misses the target."""
    searcher = OptunaSearcher([RANDOM], TARGET, sampler=sampler, seed=seed)
    best = 0.0
    for _ in range(trials):
        asked = searcher.ask()
        record = ended(asked, sparsity=asked.params["final_sparsity"] - (0.1 if asked.params["p"] > 1.8 else 0.0))
        searcher.tell(record)
        best = max(best, accuracy(asked.params) if record.feasible(TARGET) else 0.0)
    return best


def test_tpe_finds_better_points_than_random_search() -> None:
    found = {sampler: [best_found(sampler, seed) for seed in range(5)] for sampler in ("tpe", "random")}
    tpe, random = (statistics.median(found[sampler]) for sampler in ("tpe", "random"))
    assert tpe > random


def test_optunas_own_logging_stays_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    search(OptunaSearcher([SMALL], TARGET), 3)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() >= optuna.logging.ERROR


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        (Objective("auroc", maximize=True, percent=True), "val_auroc"),
        (Objective("rmse", maximize=False, percent=False), "minus_val_rmse"),
    ],
)
def test_optuna_values_are_named_after_the_metric_and_the_sparsity(
    objective: Objective, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "optuna.journal"
    OptunaSearcher([SMALL], TARGET, journal=file, objective=objective)
    OptunaSearcher([SMALL], TARGET, journal=file)  # a resumed search does not change the names
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))
    assert optuna.load_study(study_name=None, storage=storage).metric_names == [name, "sparsity"]
