"""Test studies with another metric than accuracy: its name, direction and values in all results."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.command import Ran, run_command
from tests.helpers.in_process import exported, run_in_process
from tests.helpers.metrics import EXPERIMENTS
from tests.helpers.outcome import mlflow_runs, read_safetensors, trials_of
from tune_sparsity.tuner.cli import main
from tune_sparsity.tuner.config.files import read_study
from tune_sparsity.tuner.config.study_config import storage_of
from tune_sparsity.tuner.driver.prepare import prepare
from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.results.finished_study import read_ended

pytest.importorskip("torchmetrics", reason="no torchmetrics: pip install tune-sparsity[metrics]")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("metrics") / "judged.py"
    path.write_text(EXPERIMENTS)
    return path


@pytest.fixture(scope="module")
def regression(file: Path) -> Ran:
    """The output of a study with --front and two methods. Its metric, the RMSE, is minimised."""
    asked = [
        "--front",
        "0.3:0.9",
        "--method",
        "lpss,gmp",
        "--trials",
        "10",
        "--final-seeds",
        "2",
        "--study",
        "patients",
    ]
    ran = run_command(
        ["--experiment", f"{file}:diabetes", *asked, "--concurrency", "2", "--json"], file.parent, timeout=900
    )
    assert ran.code == 0, ran.stderr
    return ran


def result_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


def rmse_of(network: Path, part: slice) -> float:
    """Return the RMSE of a network on a part of the diabetes data, computed with NumPy."""
    import torch
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).numpy()
    w = read_safetensors(network / "model.safetensors")
    hidden = np.maximum(20 * x[order[part]] @ w["0.weight"].T + w["0.bias"], 0)
    found = 152 + 77 * (hidden @ w["2.weight"].T + w["2.bias"])[:, 0]
    return float(np.sqrt(np.mean((found - y[order[part]]) ** 2)))


@pytest.mark.slow
def test_the_smallest_error_is_the_best_and_all_files_say_rmse(regression: Ran) -> None:
    study, result = regression.cwd / "studies" / "patients", regression.result()
    assert result["metric"] == {"name": "rmse", "direction": "minimize"}
    rows = [row for row in trials_of(study) if row["state"] == "completed" and float(row["sparsity"]) >= 0.3]
    assert result["best"]["val_rmse"] == min(float(row["val_rmse"]) for row in rows)
    front = [(one["sparsity"], one["val_rmse"]) for one in result["pareto"]]
    assert front == sorted(front)  # the sparser, the larger the error
    for sparsity, error in front:
        assert error == min(float(row["val_rmse"]) for row in rows if float(row["sparsity"]) >= sparsity)
    best = study / "best"
    assert rmse_of(best, slice(282, 362)) == pytest.approx(result["best"]["val_rmse"], rel=1e-5)
    assert rmse_of(best, slice(362, 442)) == pytest.approx(result["best"]["test_rmse"], rel=1e-5)
    described = json.loads((best / "model.json").read_text())["metrics"]
    assert (described["val_rmse"], described["test_rmse"]) == (
        result["best"]["val_rmse"],
        result["best"]["test_rmse"],
    )
    with (study / "epochs.csv").open() as lines:
        assert {"val_rmse", "val_rmse_at_target"} <= set(next(csv.reader(lines)))
    for name in ("result.json", "trials.csv", "pareto.csv", "epochs.csv", "study.yaml", "best/model.json"):
        assert "accura" not in (study / name).read_text(), name
    assert "accura" not in regression.stderr
    assert "mean rmse" in regression.stderr


@pytest.mark.slow
def test_the_hypervolume_has_the_untrained_networks_error_as_reference(regression: Ran) -> None:
    front = regression.result()["front"]
    assert (front["from"], front["to"]) == (0.3, 0.9)
    low, untrained = front["reference"]
    assert low == 0.3
    # The outputs of an untrained network are near the targets' mean, so its rmse is near their standard deviation, 77.
    assert 70 < untrained < 90
    grid = [0.3 + 0.6 * (n + 0.5) / 3000 for n in range(3000)]
    found = [(one["sparsity"], one["val_rmse"]) for one in front["networks"]]
    reached = [min((v for s, v in found if s >= x), default=untrained) for x in grid]
    assert front["mean_rmse"] == pytest.approx(np.mean(reached), abs=0.02)
    assert front["hypervolume"] == pytest.approx(0.6 * (untrained - np.mean(reached)), abs=0.02)


@pytest.mark.slow
def test_methods_are_ranked_by_their_mean_error_over_the_final_seeds(regression: Ran) -> None:
    again = regression.result()["final_seeds"]
    assert {one["method"] for one in again} == {"lpss", "gmp"}
    means = [one["test_rmse"]["mean"] for one in again]
    assert means == sorted(means)
    assert all(40 < seed < 80 for one in again for seed in one["test_rmse"]["seeds"])


@pytest.mark.slow
def test_mlflow_has_rmse_under_the_metrics_own_name(regression: Ran) -> None:
    result = regression.result()
    (parent,), children = mlflow_runs(regression.cwd, result)
    metrics = parent.data.metrics
    assert metrics["best_val_rmse"] == result["best"]["val_rmse"]
    assert metrics["best_test_rmse"] == result["best"]["test_rmse"]
    assert metrics["front_mean_rmse"] == result["front"]["mean_rmse"]
    assert parent.data.params["metric"] == "rmse (minimize)"
    by_trial = {run.info.run_name: run.data.metrics for run in children}
    assert by_trial[result["best"]["trial"]]["val_rmse"] == result["best"]["val_rmse"]
    named = {name for run in (parent, *children) for name in run.data.metrics}
    assert "val_rmse_at_target" in named
    assert not [name for name in named if "accura" in name]


@pytest.mark.slow
def test_the_studys_metric_is_used_by_export_resume_and_report(
    regression: Ran, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    studies = tmp_path / "studies"
    shutil.copytree(regression.cwd / "studies" / "patients", studies / "patients")
    before = regression.result()["front"]
    document = exported(studies, "patients", "safetensors", capsys)
    assert document["val_rmse"] == regression.result()["best"]["val_rmse"]
    resumed = run_command(["resume", "patients", "--trials", "12", "--json"], tmp_path)
    assert resumed.code == 0, resumed.stderr
    after = resumed.result()["front"]
    assert after["reference"] == before["reference"]
    assert after["hypervolume"] >= before["hypervolume"]
    assert main(["report", "patients", "--storage", str(studies)]) == 0
    page = (studies / "patients" / "report.html").read_text()
    assert "diabetes: rmse from 30% to 90% sparsity" in page
    assert "validation rmse" in page
    own = page[page.index("<main") :]  # the part of the page after plotly's source code
    assert "accura" not in own
    changed = tmp_path / "judged.py"
    changed.write_text(file.read_text().replace('Metric("rmse", rmse, maximize=False)', 'Metric("gain", rmse)'))
    text = (studies / "patients" / "study.yaml").read_text()
    (studies / "patients" / "study.yaml").write_text(text.replace(str(file), str(changed)))
    capsys.readouterr()
    assert main(["resume", "patients", "--trials", "14", "--storage", str(studies)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has the metric rmse (minimize)" in line


def test_auroc_chooses_another_trial_than_accuracy_where_one_class_is_rare(file: Path, tmp_path: Path) -> None:
    found = {}
    for name in ("by_auroc", "by_accuracy"):
        folder = run_in_process(
            tmp_path / "studies", name, experiment=f"{file}:{name}", target=0.5, trials=6, seed=1, scheduler="none"
        )
        found[name] = trials_of(folder), result_of(folder)["best"]
    (ranked, best), (right, most_right) = found["by_auroc"], found["by_accuracy"]
    parameters = ("lr", "p", "final_sparsity")
    assert [[row[p] for p in parameters] for row in ranked] == [[row[p] for p in parameters] for row in right]
    assert best["trial"] != most_right["trial"]
    assert best["val_auroc"] == max(float(row["val_auroc"]) for row in ranked)
    assert 0.5 < best["test_auroc"] < 1


def test_a_study_cannot_be_resumed_with_another_metric(file: Path, tmp_path: Path) -> None:
    storage = tmp_path / "studies"
    run_in_process(storage, "plain", experiment=f"{file}:by_accuracy", target=0.5, trials=1)
    config = read_study("plain", storage_of(str(storage)), {"experiment": f"{file}:by_auroc"})
    with pytest.raises(UsageError, match=r"has the metric accuracy \(maximize\), and .* now has auroc \(maximize\)"):
        prepare(config, resume=True)
    assert prepare(read_study("plain", storage_of(str(storage)), {}), resume=True).goal.baseline == 0


def test_studies_of_different_metrics_are_not_compared(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = tmp_path / "studies"
    for name in ("by_auroc", "by_f1"):
        run_in_process(storage, name, experiment=f"{file}:{name}", target=0.5, trials=1)
    assert result_of(storage / "by_f1")["best"]["val_macro_f1"] > 0.3
    assert main(["compare", "by_auroc", "by_f1", "--storage", str(storage)]) == 2
    assert (
        "different metrics, which cannot be compared: auroc (maximize), macro_f1 (maximize)" in capsys.readouterr().err
    )


def test_perplexity_is_minimised_and_its_baseline_is_a_uniform_guess(file: Path, tmp_path: Path) -> None:
    folder = run_in_process(tmp_path / "studies", "text", experiment=f"{file}:letters", target=0.5, trials=4)
    best, rows = result_of(folder)["best"], trials_of(folder)
    ended = [float(row["val_perplexity"]) for row in rows if row["state"] == "completed"]
    assert best["val_perplexity"] == min(ended) < 6
    goal = read_ended("text", storage_of(str(tmp_path / "studies"))).goal
    assert goal.baseline == pytest.approx(9, rel=0.1)  # a uniform guess among nine letters


def test_a_nan_metric_fails_its_trial_and_the_study_continues(file: Path, tmp_path: Path) -> None:
    folder = run_in_process(tmp_path / "studies", "odd", experiment=f"{file}:odd", target=0.5, trials=8)
    rows = trials_of(folder)
    failed = [row for row in rows if row["state"] == "failed"]
    assert 0 < len(failed) < len(rows) == 8
    assert {row["reason"] for row in failed} == {"the metric rmse is nan"}
    assert result_of(folder)["best"]["val_rmse"] < 90
