"""Tests the plots that show the metric against bytes and against multiply-adds."""

from __future__ import annotations

from tests.helpers.trials import trial
from tune_sparsity.tuner.reports.plots.size import bytes_figure, macs_figure, smallest_front
from tune_sparsity.tuner.study.goal import at_targets, within_bytes
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState

RECORDS = [
    trial(0, 0.9, 0.90, size_bytes=1000),
    trial(1, 0.8, 0.90, size_bytes=2000),  # as good and larger
    trial(2, 0.7, 0.95, size_bytes=3000, params={"weight_bits": 4}),
    trial(3, 0.6, 0.80, size_bytes=900, params={"weight_bits": 8}),
    trial(4, 0.5, 0.99, size_bytes=500, state=TrialState.PRUNED),
    trial(5, 0.5, 0.99),
    trial(6, 0.9, 0.0, size_bytes=100),
]


def numbers(records: list[TrialRecord]) -> list[int]:
    return [record.number for record in records]


def test_the_function_smallest_front_gives_the_front_of_metric_and_bytes() -> None:
    assert numbers(smallest_front(RECORDS)) == [6, 3, 0, 2]
    assert smallest_front([]) == []


def test_all_completed_trials_stand_on_a_logarithmic_axis_of_bytes() -> None:
    made = bytes_figure(RECORDS, within_bytes(1500, 10, 100))
    assert made is not None
    assert made.layout.xaxis.type == "log"
    front, *groups = made.data
    assert (list(front.x), list(front.y)) == ([100, 900, 1000, 3000], [0.0, 80.0, 90.0, 95.0])
    drawn = {group.name: list(group.x) for group in groups}
    assert drawn == {"lpss": [1000, 2000, 100], "lpss, 4 bits": [3000], "lpss, 8 bits": [900]}
    assert [shape.x0 for shape in made.layout.shapes] == [1500]


def test_the_multiply_adds_plot_shows_cascades_and_single_networks() -> None:
    records = [trial(0, 0.9, 0.9, macs=400), trial(1, 0.5, 0.95, macs=2000), trial(2, 0.5, 0.96), RECORDS[4]]
    group = {"name": "group-1", "small": "t0000", "large": "t0001", "passed_on": 0.1, "expected_macs": 600.0}
    made = macs_figure(records, at_targets(0.5, 0.9), [{**group, "val_accuracy": 0.94}])
    assert made is not None
    alone, groups = made.data
    assert (list(alone.x), list(alone.y)) == ([400, 2000], [90.0, 95.0])
    assert (list(groups.x), list(groups.y)) == ([600.0], [94.0])
    assert groups.text[0] == "group-1: t0000, then t0001 (10.0%)"
    assert macs_figure(records, at_targets(0.5, 0.9), []) is None


def test_without_sizes_there_is_no_picture() -> None:
    assert bytes_figure(RECORDS[5:6], at_targets(0.9)) is None
