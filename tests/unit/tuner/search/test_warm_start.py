"""Tests what a new study takes from earlier studies: trials if the spaces agree, otherwise the best points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution

from tune_sparsity.search_spaces import Space
from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.search.searcher import OptunaSearcher
from tune_sparsity.tuner.search.warm_start import WarmStart, warm_start
from tune_sparsity.tuner.storage.study_storage import LocalStorage
from tune_sparsity.tuner.study.layout import JOURNAL
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState

TARGET = 0.9
ALIKE = {"experiment": "digits", "epochs": 30}
SPACE = Space(
    name="small",
    method="lpss",
    distributions={
        "p": FloatDistribution(1.05, 2.0),
        "drop": CategoricalDistribution(("ramp", "threshold")),
        "threshold_start": FloatDistribution(0.05, 0.6),
        "final_sparsity": FloatDistribution(TARGET, 0.92),
    },
    fixed={"momentum": 0.9},
    first=({"p": 1.4, "drop": "ramp", "final_sparsity": TARGET},),
    when={"threshold_start": {"drop": ("threshold",)}},
)


@pytest.fixture
def earlier(tmp_path: Path) -> Callable[..., list[TrialRecord]]:
    """Return a function that makes a study of eight trials in tmp_path: completed, stopped and failed trials."""

    def make(name: str = "before", space: Space = SPACE, **config: Any) -> list[TrialRecord]:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "study.yaml").write_text(yaml.safe_dump({**ALIKE, **config}))
        searcher = OptunaSearcher([space], TARGET, sampler="random", journal=folder / JOURNAL, name=name)
        for number in range(8):
            asked = searcher.ask()
            state = (TrialState.PRUNED, TrialState.FAILED, TrialState.COMPLETED, TrialState.COMPLETED)[number % 4]
            record = TrialRecord(asked.number, "lpss", asked.params, state)
            if state is not TrialState.FAILED:
                record.value, record.sparsity = 0.9 + number / 100, asked.params["final_sparsity"]
            searcher.tell(record)
        return searcher.finished()

    return make


def test_trials_of_the_same_space_are_carried_over(earlier: Any, tmp_path: Path) -> None:
    records = earlier()
    found = warm_start(["before"], LocalStorage(tmp_path), [SPACE], TARGET, ALIKE)
    assert list(found.trials) == [r for r in records if r.state is not TrialState.FAILED]
    assert found.points == ()
    assert warm_start([str(tmp_path / "before")], LocalStorage(tmp_path / "elsewhere"), [SPACE], TARGET, ALIKE) == found


@pytest.mark.parametrize("other", [{"experiment": "mnist"}, {"epochs": 10}])
def test_only_the_best_point_is_used_if_the_experiment_or_epochs_differ(
    other: dict[str, Any], earlier: Any, tmp_path: Path
) -> None:
    records = earlier(**other)
    found = warm_start(["before"], LocalStorage(tmp_path), [SPACE], TARGET, ALIKE)
    assert found.trials == ()
    best = {name: value for name, value in records[7].params.items() if name != "momentum"}
    assert found.points == (("lpss", best),)


def test_where_spaces_do_not_agree_the_best_point_is_moved_inside(earlier: Any, tmp_path: Path) -> None:
    records = earlier()
    narrow = replace(
        SPACE,
        distributions={
            "p": FloatDistribution(3.0, 4.0),
            "lr": FloatDistribution(0.1, 1.0),
            "final_sparsity": FloatDistribution(0.95, 0.96),
        },
        fixed={},
        first=(),
        when={},
    )
    found = warm_start(["before"], LocalStorage(tmp_path), [narrow], 0.95, ALIKE)
    assert found.trials == ()
    assert found.points == (("lpss", {"p": 3.0, "lr": pytest.approx(0.55), "final_sparsity": 0.95}),)
    assert records[7].sparsity < 0.95


def test_trials_with_another_fixed_value_are_not_carried_over(earlier: Any, tmp_path: Path) -> None:
    earlier()
    found = warm_start(["before"], LocalStorage(tmp_path), [replace(SPACE, fixed={"momentum": 0.8})], TARGET, ALIKE)
    assert found.trials == ()
    assert len(found.points) == 1


@pytest.mark.parametrize(("value", "carried"), [("global", 6), ("erk", 0)])
def test_trials_without_a_parameter_are_carried_over_if_its_fixed_value_is_the_default(
    value: str, carried: int, earlier: Any, tmp_path: Path
) -> None:
    earlier()
    space = replace(SPACE, fixed={**SPACE.fixed, "distribution": value})
    assert len(warm_start(["before"], LocalStorage(tmp_path), [space], TARGET, ALIKE).trials) == carried


def test_carried_over_trials_inform_the_sampler_but_do_not_join_the_study(earlier: Any, tmp_path: Path) -> None:
    earlier()
    found = warm_start(["before"], LocalStorage(tmp_path), [SPACE], TARGET, ALIKE)
    journal = tmp_path / "new.journal"
    searcher = OptunaSearcher([SPACE], TARGET, journal=journal, earlier=found)
    assert searcher.finished() == []
    assert searcher.states() == {}
    asked = searcher.ask()
    assert asked.number == 0
    assert asked.params != {**SPACE.first[0], "momentum": 0.9}  # the earlier study has tried this point
    for known in (searcher, OptunaSearcher([SPACE], TARGET, journal=journal)):  # also after a restart
        assert known._sampling is not None
        taught = [t for t in known._sampling._study.trials if t.state.name in ("PRUNED", "COMPLETE")]
        assert [t.values for t in taught if t.values] == [[0.92], [0.93], [0.96], [0.97]]
        assert [t.state.name for t in taught] == ["PRUNED", "COMPLETE", "COMPLETE"] * 2


@pytest.mark.parametrize("sampler", ["nsgaii", "random", "gp", "cmaes"])
def test_points_are_tried_first_with_any_sampler(sampler: str) -> None:
    point = {"p": 1.9, "drop": "threshold", "threshold_start": 0.3, "final_sparsity": 0.91}
    other = replace(SPACE, method="gmp", fixed={})
    several = [SPACE, other] if sampler == "nsgaii" else [SPACE]
    searcher = OptunaSearcher(several, TARGET, sampler=sampler, earlier=WarmStart(points=(("lpss", point),)))
    assert searcher.ask().params == {**point, "momentum": 0.9}
    assert searcher.ask().params == {**SPACE.first[0], "momentum": 0.9}


def test_carried_trials_name_their_method_where_there_are_several(earlier: Any, tmp_path: Path) -> None:
    earlier()
    spaces = [SPACE, replace(SPACE, method="gmp", fixed={})]
    found = warm_start(["before"], LocalStorage(tmp_path), spaces, TARGET, ALIKE)
    searcher = OptunaSearcher(spaces, TARGET, earlier=found)
    assert searcher._sampling is not None
    assert all("lpss.p" in t.params and t.params["method"] == "lpss" for t in searcher._sampling._study.trials)
    assert searcher.ask().method in ("lpss", "gmp")


@pytest.mark.parametrize(
    ("study", "said"),
    [("befor", "the studies there are: before"), ("x" * 5000, "no such study"), ("a\nb", "no such study")],
)
def test_an_unknown_study_is_refused(study: str, said: str, earlier: Any, tmp_path: Path) -> None:
    earlier()
    with pytest.raises(UsageError, match=said):
        warm_start([study], LocalStorage(tmp_path), [SPACE], TARGET, ALIKE)


def test_a_study_without_usable_trials_is_refused(earlier: Any, tmp_path: Path) -> None:
    earlier()
    with pytest.raises(UsageError, match="no completed trial of gmp"):
        warm_start(["before"], LocalStorage(tmp_path), [replace(SPACE, method="gmp")], TARGET, ALIKE)
    (tmp_path / "before" / JOURNAL).write_text("no journal\n")
    with pytest.raises(UsageError, match="before"):
        warm_start(["before"], LocalStorage(tmp_path), [SPACE], TARGET, ALIKE)
