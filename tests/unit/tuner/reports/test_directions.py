"""Tests texts and plots of a metric that is minimised, such as an error: its name, its unit, and that the smallest
value is the best."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from tune_sparsity.tuner.reports.plots.gallery import Pictured, figures
from tune_sparsity.tuner.reports.progress import Progress, Summary
from tune_sparsity.tuner.reports.summary import best_line, front_line, print_result, retrained_line
from tune_sparsity.tuner.results.retraining import Chosen, summarise, verdicts
from tune_sparsity.tuner.results.tables import StudyOutcome, result_document, trials_csv
from tune_sparsity.tuner.study.goal import Goal
from tune_sparsity.tuner.study.objective import ACCURACY, Objective
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState

RMSE = Objective("rmse", maximize=False, percent=False)
FRONT = Goal((0.5,), ceiling=0.9, objective=RMSE, baseline=80.0)
F1 = Objective("macro_f1", maximize=True, percent=True)


def trial(number: int, sparsity: float, error: float, **more: Any) -> TrialRecord:
    known = {"hoyer": 0.6, "nonzero_weights": 100, "epochs": 3, "seconds": 2.0, "ended": 100.0 + number}
    params = {"p": 1.2 + 0.1 * number, "lr": 0.1 / (1 + number)}
    fields = {**known, "state": TrialState.COMPLETED, "objective": RMSE, **more}
    return TrialRecord(number, "lpss", params, value=error, sparsity=sparsity, **fields)


RECORDS = [trial(0, 0.5, 52.0), trial(1, 0.7, 51.0), trial(2, 0.9, 60.0), trial(3, 0.6, 70.0), trial(4, 0.8, 55.5)]
SERIES = {
    r.number: [{"epoch": float(e), "sparsity": 0.5, "val_rmse_at_target": (r.value or 0) + 30 / e} for e in (1, 2, 3)]
    for r in RECORDS
}


def outcome(folder: Path, goal: Goal = FRONT, records: list[TrialRecord] = RECORDS) -> StudyOutcome:
    return StudyOutcome("s", goal, "patients", "lpss", records, folder, test_values={1: 53.21}, weights=1000)


def test_the_best_trial_of_a_minimised_metric_has_the_smallest_value() -> None:
    assert [record.number for record in FRONT.front(RECORDS)] == [1, 4, 2]
    assert FRONT.best(RECORDS) is RECORDS[1]
    area = 0.2 * 29 + 0.1 * 24.5 + 0.1 * 20
    assert FRONT.hypervolume(RECORDS) == pytest.approx(area)
    assert FRONT.mean_value(area) == pytest.approx((51 * 0.2 + 55.5 * 0.1 + 60 * 0.1) / 0.4)
    assert FRONT.score(()) < FRONT.score(FRONT.front(RECORDS))


def test_printed_rmse_values_have_the_name_rmse_and_at_most_four_digits(tmp_path: Path) -> None:
    found = outcome(tmp_path)
    assert best_line(found).startswith("best t0001: validation rmse 51, test rmse 53.21, sparsity 70.0000%")
    assert front_line(found) == (
        "hypervolume 10.25000 below (sparsity 0.5, rmse 80): a mean rmse of 54.38 over the sparsities from 0.5 to 0.9"
    )
    assert Summary.of(RECORDS, FRONT).best_so_far() == "front of 3, mean rmse 54.38 from 0.5 to 0.9"
    one = Goal((0.5,), objective=RMSE, baseline=80.0)
    assert Summary.of(RECORDS, one).best_so_far() == "best 51 at 70.00% sparsity (t0001)"
    printed = io.StringIO()
    print_result(found, printed)
    assert printed.getvalue().split()[:3] == ["trial", "rmse", "sparsity"]
    assert "accura" not in printed.getvalue()
    progress = Progress(5, FRONT, stream=printed, live=False)
    progress.update(RECORDS)
    assert "mean rmse 54.38" in progress.line()


def test_keys_and_columns_of_result_files_contain_the_name_of_the_metric(tmp_path: Path) -> None:
    document = result_document(outcome(tmp_path))
    assert document["metric"] == {"name": "rmse", "direction": "minimize"}
    assert document["front"]["reference"] == [0.5, 80.0]
    assert document["front"]["mean_rmse"] == pytest.approx(54.375)
    assert (document["best"]["val_rmse"], document["best"]["test_rmse"]) == (51.0, 53.21)
    header = trials_csv(RECORDS, objective=RMSE).splitlines()[0].split(",")
    assert header[2:6] == ["p", "lr", "val_rmse", "sparsity"]
    clash = [trial(0, 0.5, 52.0), TrialRecord(1, "gmp", {"val_rmse": 1}, objective=RMSE)]
    assert "param.val_rmse" in trials_csv(clash, objective=RMSE).splitlines()[0]


def test_retrained_networks_are_ranked_by_the_smallest_mean_error() -> None:
    chosen = [Chosen(None, RECORDS[0]), Chosen(None, trial(5, 0.6, 50.0))]
    found = summarise(chosen, [54.0, 56.0, 51.0, 52.0], seeds=2)
    assert [(one.trial, one.mean) for one in found] == [("t0005", 51.5), ("t0000", 55.0)]
    assert retrained_line(found[0]) == "t0005 at 60.00%: test rmse 51.5 (51 to 52, 2 seeds)"
    assert verdicts(found) == ["lpss is 3.5 ahead of lpss, beyond the spread of their seeds"]
    overlapping = summarise(chosen, [54.0, 51.5, 51.0, 52.0], seeds=2)
    assert verdicts(overlapping)[0].endswith("within the spread of their seeds")


def test_plots_of_an_error_metric_show_its_values_and_no_accuracy() -> None:
    study = Pictured("patients: rmse against sparsity", FRONT, RECORDS, SERIES)
    made = figures(study)
    assert {"front", "progress", "training", "curves", "parallel"} <= set(made)
    for name, figure in made.items():
        assert "accura" not in figure.to_json(), name
    front = made["front"]
    assert front.layout.yaxis.title.text == "validation rmse"
    assert front.layout.yaxis.ticksuffix == ""
    (steps,) = [trace for trace in front.data if trace.name == "Pareto front"]
    assert (list(steps.x), list(steps.y)) == ([70, 80, 90], [51, 55.5, 60])
    low, high = front.layout.yaxis.range
    assert low < 51 < 60 < high
    best = made["progress"].data[0]
    assert list(best.y) == [52, 51, 51, 51, 51]
    low, high = made["curves"].layout.yaxis.range
    assert low < 51 + 10  # the axis shows the best trials
    assert high < 70 + 30  # the axis does not show the worst tenth of the values
    panel = next(trace for trace in made["training"].data if trace.name == "rmse")
    assert list(panel.y) == [81, 66, 61]


def test_a_metric_in_0_to_1_is_shown_in_percent() -> None:
    goal = Goal((0.5,), objective=F1)
    records = [trial(0, 0.6, 0.91, objective=F1), trial(1, 0.7, 0.873, objective=F1)]
    assert Summary.of(records, goal).best_so_far() == "best 91.00% at 60.00% sparsity (t0000)"
    front = figures(Pictured("x", goal, records))["front"]
    assert (front.layout.yaxis.title.text, front.layout.yaxis.ticksuffix) == ("validation macro_f1", "%")
    assert goal.reference == (0.5, 0.0)


@pytest.mark.parametrize(
    ("objective", "value", "text", "difference"),
    [
        (ACCURACY, 0.98765, "98.77%", "+98.77 points"),
        (RMSE, 54.2137, "54.21", "+54.21"),
        (RMSE, 0.000123456, "0.0001235", "+0.0001235"),
    ],
)
def test_accuracies_are_formatted_in_percent_and_rmse_with_four_digits(
    objective: Objective, value: float, text: str, difference: str
) -> None:
    assert objective.text(value) == text
    assert objective.difference(value, "+") == difference
