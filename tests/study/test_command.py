"""Test whole studies from the command line: their files, the states of trials in Optuna and MLflow, exit codes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from tests.helpers.command import Ran, run_command
from tests.helpers.in_process import run_in_process
from tests.helpers.outcome import mlflow_runs, optuna_states, read_safetensors, trials_of

STATES = {"completed": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
STATUS = {"completed": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}


@pytest.mark.slow
def test_trial_states_agree_in_trials_csv_optuna_and_mlflow(nan_study: Ran) -> None:
    assert nan_study.code == 0, nan_study.stderr
    study = nan_study.cwd / "studies" / "nan"
    states = {int(row["number"]): row["state"] for row in trials_of(study)}
    assert sorted(states) == list(range(10))
    assert set(states.values()) == {"completed", "pruned", "failed"}
    enqueued = optuna_states(study)
    assert {number: enqueued[number] for number in states} == {n: STATES[s] for n, s in states.items()}
    parents, children = mlflow_runs(nan_study.cwd, nan_study.result())
    assert len(parents) == 1
    assert parents[0].info.status == "FINISHED"
    assert parents[0].info.run_id == nan_study.result()["mlflow"]["run_id"]
    assert {int(run.data.tags["number"]): run.data.tags["state"] for run in children} == states
    assert {int(run.data.tags["number"]): run.info.status for run in children} == {
        n: STATUS[s] for n, s in states.items()
    }
    assert len(children) == 10


@pytest.mark.slow
def test_a_diverged_trial_has_its_reason_and_a_pruned_trial_has_no_result(nan_study: Ran) -> None:
    rows = trials_of(nan_study.cwd / "studies" / "nan")
    failed = [row for row in rows if row["state"] == "failed"]
    assert all("NotFinite" in row["reason"] and "nan" in row["reason"] for row in failed)
    completed = {row["number"] for row in rows if row["state"] == "completed"}
    with (nan_study.cwd / "studies" / "nan" / "pareto.csv").open() as file:
        front = {row["number"] for row in csv.DictReader(file)}
    assert front
    assert front <= completed
    study = optuna.load_study(
        study_name="nan",
        storage=optuna.storages.JournalStorage(
            JournalFileBackend(str(nan_study.cwd / "studies" / "nan" / "optuna.journal"))
        ),
    )
    for trial in study.trials:
        assert (trial.values is not None) == (trial.state.name == "COMPLETE")


@pytest.mark.slow
def test_the_variable_mlflow_experiment_id_is_ignored_and_mentioned(nan_study: Ran) -> None:
    assert "MLFLOW_EXPERIMENT_ID" in nan_study.stderr
    assert nan_study.result()["mlflow"]["experiment_id"] != "77"


@pytest.mark.slow
def test_metrics_of_every_epoch_are_in_mlflow(nan_study: Ran) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{nan_study.cwd}/mlflow.db")
    _, children = mlflow_runs(nan_study.cwd, nan_study.result())
    epochs = {int(row["number"]): int(row["epochs"]) for row in trials_of(nan_study.cwd / "studies" / "nan")}
    for run in children:
        for name in ("train_loss", "val_accuracy", "val_accuracy_at_target", "sparsity", "hoyer", "epoch_seconds"):
            steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
            assert steps == list(range(1, epochs[int(run.data.tags["number"])] + 1))


@pytest.mark.slow
def test_the_best_network_file_of_the_default_study_meets_the_target(digits_study: Ran) -> None:
    assert digits_study.code == 0, digits_study.stderr
    result = digits_study.result()
    folder = digits_study.cwd / "studies" / "default"
    tensors = read_safetensors(folder / "best" / "model.safetensors")
    masks = {name.removesuffix(".mask"): t for name, t in tensors.items() if name.endswith(".mask")}
    assert len(masks) == 3
    zeros = sum(int((tensors[name] == 0).sum()) for name in masks)
    weights = sum(tensors[name].size for name in masks)
    assert weights == 64 * 300 + 300 * 100 + 100 * 10 == result["best"]["weights"]
    assert zeros / weights >= 0.9
    assert zeros / weights == result["best"]["sparsity"]
    assert weights - zeros == result["best"]["nonzero_weights"]
    wanted = result["best"]["params"]["final_sparsity"]
    assert 0 <= zeros - wanted * weights < 1.001  # exact to within one weight
    for name, mask in masks.items():
        assert not tensors[name][~mask].any()
        assert (tensors[name][mask] != 0).all()


@pytest.mark.slow
def test_the_default_study_is_accurate_on_the_test_split(digits_study: Ran) -> None:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    folder = digits_study.cwd / "studies" / "default" / "best"
    described = json.loads((folder / "model.json").read_text())
    tensors = read_safetensors(folder / "model.safetensors")
    images, labels = load_digits(return_X_y=True)
    _, x, _, y = train_test_split(images, labels, test_size=360, stratify=labels, random_state=0)
    x = (x / described["preprocessing"]["divide"] - described["preprocessing"]["mean"]) / described["preprocessing"][
        "std"
    ]
    for index in ("0", "2", "4"):
        x = x @ tensors[f"{index}.weight"].T.astype(np.float64) + tensors[f"{index}.bias"]
        x = np.maximum(x, 0) if index != "4" else x
    accuracy = float((x.argmax(1) == y).mean())
    assert accuracy == pytest.approx(digits_study.result()["best"]["test_accuracy"], abs=1 / 360)
    assert accuracy >= 0.965


@pytest.mark.slow
def test_the_default_study_writes_exactly_the_documented_files(digits_study: Ran) -> None:
    folder = digits_study.cwd / "studies" / "default"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "study.yaml", "trials.csv", "pareto.csv", "pareto.html", "pictures.html", "epochs.csv", "result.json", "best",
        "optuna.journal", "tracking",
    }  # fmt: skip
    result = digits_study.result()
    assert result == json.loads((folder / "result.json").read_text())
    assert sum(result["states"].values()) == 32
    assert result["seconds"]["total"] == pytest.approx(
        sum(value for name, value in result["seconds"].items() if name != "total"), abs=0.01
    )
    assert result["mlflow"]["experiment_id"]
    rows = trials_of(folder)
    assert [int(row["number"]) for row in rows] == list(range(32))
    # p is the exponent of lpss's norm. The third trial has the p that theory suggests for the target.
    assert float(rows[2]["p"]) == pytest.approx(1.104, abs=1e-3)


BUDGET = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from tune_sparsity.tuner.cli import main
from tune_sparsity.tuner.driver import ray_tune

table = Path("studies/short/trials.csv")

def monotonic():
    # An hour is over as soon as three trials have ended.
    ended = len(table.read_text().splitlines()) - 1 if table.exists() else 0
    return time.monotonic() + 3600 * (ended >= 3)

ray_tune.time = SimpleNamespace(monotonic=monotonic)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_time_budget_ends_the_study_with_the_results_so_far(experiment_file: Path, tmp_path: Path) -> None:
    arguments = ["--target", "0.5", "--experiment", f"{experiment_file}:steady", "--trials", "100000"]
    command = [sys.executable, "-c", BUDGET, *arguments, "--time-budget", "1h", "--study", "short", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert 3 <= sum(result["states"].values()) < 100000
    assert result["best"]["sparsity"] >= 0.5
    _, children = mlflow_runs(tmp_path, result)
    assert {run.info.status for run in children} <= {"FINISHED", "FAILED"}
    # a resumed study does not begin a trial if its budget is already used up
    resumed = run_command(["resume", "short", "--time-budget", "0.01", "--json"], tmp_path)
    assert resumed.code == 0, resumed.stderr
    assert json.loads(resumed.stdout)["states"] == result["states"]
    assert "the time budget was used up" in resumed.stderr


@pytest.mark.long
@pytest.mark.slow
def test_after_a_budget_that_was_too_short_the_advice_is_a_longer_one(experiment_file: Path, tmp_path: Path) -> None:
    arguments = ["--target", "0.5", "--experiment", f"{experiment_file}:slow", "--epochs", "100000", "--trials", "2"]
    ran = run_command([*arguments, "--scheduler", "none", "--time-budget", "10s", "--study", "short"], tmp_path)
    assert ran.code == 3, ran.stderr
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("No trial completed with a sparsity of 50% or more: ")
    assert last.endswith(f"resume short --storage {tmp_path / 'studies'} --time-budget LONGER")


@pytest.mark.parametrize("target", [0.5, 0.8, 0.95, 0.98])
def test_each_target_is_met_to_within_one_weight(target: float, tmp_path: Path) -> None:
    folder = run_in_process(tmp_path / "studies", "s", target=target, trials=2, epochs=2, scheduler="none")
    for row in trials_of(folder):
        zeros = 50200 - int(row["nonzero_weights"])
        assert 0 <= zeros - float(row["final_sparsity"]) * 50200 < 1.001
        assert zeros / 50200 >= target


@pytest.mark.slow
def test_methods_are_ranked_by_their_mean_accuracy_over_the_final_seeds(tmp_path: Path) -> None:
    arguments = ["--target", "0.9", "--method", "lpss,rigl,gmp", "--trials", "9", "--epochs", "4"]
    ran = run_command(
        [*arguments, "--scheduler", "none", "--final-seeds", "2", "--study", "several", "--json"], tmp_path
    )
    assert ran.code == 0, ran.stderr
    rows = trials_of(tmp_path / "studies" / "several")
    assert {row["method"] for row in rows} == {"lpss", "rigl", "gmp"}
    for row in rows:
        assert (row["p"] != "") == (row["method"] == "lpss")
        assert (row["drop_fraction"] != "") == (row["method"] == "rigl")
    final = ran.result()["final_seeds"]
    assert {one["method"] for one in final} == {"lpss", "rigl", "gmp"}
    for one in final:
        seeds = one["test_accuracy"]["seeds"]
        assert len(seeds) == 2
        assert one["test_accuracy"]["mean"] == pytest.approx(sum(seeds) / 2)
        best = max((row for row in rows if row["method"] == one["method"]), key=lambda row: float(row["val_accuracy"]))
        assert float(best["val_accuracy"]) == max(
            float(row["val_accuracy"]) for row in rows if f"t{int(row['number']):04d}" == one["trial"]
        )
    means = [one["test_accuracy"]["mean"] for one in final]
    assert means == sorted(means, reverse=True)
