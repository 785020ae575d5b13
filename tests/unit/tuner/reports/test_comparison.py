"""Tests the notes of a comparison of studies: they name differences in data, network and epochs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tune_sparsity.tuner.reports.comparison import as_lines, differences, notes_on
from tune_sparsity.tuner.study.goal import Goal, at_targets
from tune_sparsity.tuner.study.objective import ACCURACY
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState


def study(*, data: str = "a", weights: int | None = 1000, epochs: int = 3, **best_network: float) -> Any:
    """Return an object with only those parts of an ended study that `notes_on` reads."""
    best = None if weights is None else {"weights": weights, **best_network}
    config, goal = SimpleNamespace(epochs=epochs), SimpleNamespace(objective=ACCURACY)
    return SimpleNamespace(about={"data_sha256": data}, result={"best": best}, config=config, goal=goal)


def test_a_comparison_of_studies_with_equal_settings_has_no_notes() -> None:
    assert notes_on([study(), study()]) == []
    assert notes_on([study(), study(weights=None)]) == []  # no trial of the second was feasible


def test_the_standard_error_of_the_metric_is_told() -> None:
    (note,) = notes_on([study(estimated_accuracy_error=0.014), study()])
    assert note == "The accuracy of one network has a standard error of 1.40 points: smaller differences may be chance."


def test_each_difference_between_compared_studies_has_a_note() -> None:
    first, second, third = notes_on([study(), study(data="b", weights=17024, epochs=20)])
    assert first == "Their data differ, so that a difference in accuracy may come from the data."
    assert second == "Their networks differ: they have 1,000 and 17,024 prunable weights."
    assert third == "Their trials differ in length: 3 and 20 epochs."


def ended(name: str, goal: Goal) -> Any:
    result = {"states": {"completed": 2}, "seconds": {"total": 8.0}}
    return SimpleNamespace(config=SimpleNamespace(study=name), goal=goal, result=result)


def network(number: int, value: float, sparsity: float, size: int) -> TrialRecord:
    sizes = {"nonzero_weights": 100, "size_bytes": size}
    return TrialRecord(number, "lpss", {}, TrialState.COMPLETED, value, sparsity, **sizes)


def test_each_study_gives_its_best_network_within_the_limit_of_another_study() -> None:
    first, second = ended("first", at_targets(0.9)), ended("second", Goal((0.3,), max_bytes=15_000))
    records = [
        [network(0, 0.95, 0.9, 23_000), network(1, 0.91, 0.98, 14_000)],
        [network(0, 0.92, 0.6, 15_000), network(1, 0.90, 0.95, 9_000)],
    ]
    rows = differences([first, second], records)
    found = [(row["target"], row["limit"], row["study"], row["trial"]) for row in rows]
    limit = "a packed file of at most 15,000 bytes"
    assert found == [
        (0.9, None, "first", "t0000"),
        (0.9, None, "second", "t0001"),
        (None, limit, "first", "t0001"),
        (None, limit, "second", "t0000"),
    ]
    assert [round(row["difference"], 6) for row in rows] == [0.0, -0.05, 0.0, 0.01]
    assert as_lines(rows, ACCURACY)[3].startswith(f"{limit}  first   t0001")
