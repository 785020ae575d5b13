"""Tests the notes of a comparison of studies: they name differences in data, network and epochs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tune_sparsity.tuner.reports.comparison import notes_on
from tune_sparsity.tuner.study.objective import ACCURACY


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
