"""Test whole studies: dense layers, several targets, --front, --max-nonzero, and two studies with equal options."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command import Ran, run_command
from tests.helpers.in_process import run_in_process
from tests.helpers.outcome import mlflow_runs, read_safetensors, trials_of

WEIGHTS = 12 * 40 + 40 * 3


def own(file: Path) -> list[str]:
    return ["--experiment", f"{file}:steady", "--scheduler", "none", "--json"]


def zeros_in(folder: Path) -> int:
    tensors = read_safetensors(folder / "model.safetensors")
    return sum(int((tensors[name.removesuffix(".mask")] == 0).sum()) for name in tensors if name.endswith(".mask"))


def described(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "model.json").read_text()))


def test_layers_that_an_experiment_keeps_dense_are_neither_pruned_nor_counted(
    experiment_file: Path, tmp_path: Path
) -> None:
    options = {"experiment": f"{experiment_file}:dense_head", "target": 0.9, "trials": 2, "scheduler": "none"}
    folder = run_in_process(tmp_path / "studies", "dense-head", **options)
    best = json.loads((folder / "result.json").read_text())["best"]
    tensors = read_safetensors(folder / "best" / "model.safetensors")
    assert [name for name in tensors if name.endswith(".mask")] == ["net.0.weight.mask"]
    zeros = int((tensors["net.0.weight"] == 0).sum())
    assert (best["weights"], best["nonzero_weights"]) == (12 * 40, 12 * 40 - zeros)
    assert zeros / (12 * 40) == best["sparsity"] >= 0.9
    assert bool((tensors["net.2.weight"] != 0).all())


@pytest.mark.slow
def test_a_study_of_several_targets_saves_the_best_network_of_each_target(
    experiment_file: Path, tmp_path: Path
) -> None:
    arguments = ["--target", "0.9,0.5,0.75", *own(experiment_file), "--trials", "9", "--study", "several"]
    ran = run_command(arguments, tmp_path)
    assert ran.code == 0, ran.stderr
    study, rows = tmp_path / "studies" / "several", list[dict[str, str]]()
    for more in (None, "12"):
        if more:
            ran = run_command(["resume", "several", "--trials", more, "--json"], tmp_path)
            assert ran.code == 0, ran.stderr
        before, rows, result = rows, trials_of(study), ran.result()
        assert len(rows) == int(more or 9)
        assert rows[: len(before)] == before
        shares = [sum(float(row["final_sparsity"]) == target for row in rows) for target in (0.5, 0.75, 0.9)]
        assert shares == [len(rows) // 3] * 3
        assert (result["target"], [one["target"] for one in result["targets"]]) == (0.5, [0.5, 0.75, 0.9])
        assert result["best"] == result["targets"][0]["best"]
        for one in result["targets"]:
            target, best, folder = one["target"], one["best"], study / f"best-{one['target']}"
            met = [float(row["val_accuracy"]) for row in rows if float(row["sparsity"]) >= target]
            assert best["val_accuracy"] == max(met)
            assert zeros_in(folder) / WEIGHTS == best["sparsity"] >= target
            assert described(folder)["trial"] == best["trial"]
            assert described(folder)["metrics"]["test_accuracy"] == best["test_accuracy"]
        assert (study / "best" / "model.safetensors").read_bytes() == (
            study / "best-0.5" / "model.safetensors"
        ).read_bytes()
    parents, _ = mlflow_runs(tmp_path, ran.result())
    assert [run.data.tags["target"] for run in parents] == ["0.5,0.75,0.9"]
    assert {"best_val_accuracy", "best_val_accuracy_at_0.75", "best_test_accuracy_at_0.9"} <= set(
        parents[0].data.metrics
    )


@pytest.mark.long
@pytest.mark.slow
def test_patience_ends_a_front_study_and_a_larger_patience_continues_it(experiment_file: Path, tmp_path: Path) -> None:
    arguments = ["--front", "0.5:0.95", *own(experiment_file), "--trials", "500", "--patience", "4", "--study", "front"]
    ran = run_command([*arguments, "--concurrency", "1"], tmp_path)
    assert ran.code == 0, ran.stderr
    study = tmp_path / "studies" / "front"
    rows, result = trials_of(study), ran.result()
    assert f"ended after {len(rows)} trials: the last 4 brought no gain, and --patience is 4" in ran.stderr
    assert len(rows) < 500

    def area(upto: int) -> float:
        """Return the hypervolume of the first `upto` trials, as a sum over a fine grid of sparsities."""
        grid = [0.5 + 0.45 * (n + 0.5) / 3000 for n in range(3000)]
        done = [(float(row["sparsity"]), float(row["val_accuracy"])) for row in rows[:upto]]
        return sum(max((a for s, a in done if s >= x), default=0.0) for x in grid) * 0.45 / 3000

    assert result["front"]["hypervolume"] == pytest.approx(area(len(rows)), abs=1e-3)
    assert area(len(rows)) == area(len(rows) - 4)
    parents, _ = mlflow_runs(tmp_path, result)
    assert parents[0].data.metrics["hypervolume"] == pytest.approx(result["front"]["hypervolume"])
    names = [one["trial"] for one in result["pareto"]]
    assert sorted(path.name for path in (study / "front").iterdir()) == sorted(names)
    for one in result["front"]["networks"]:
        folder = study / "front" / one["trial"]
        assert zeros_in(folder) / WEIGHTS == one["sparsity"]
        assert described(folder)["metrics"]["test_accuracy"] == one["test_accuracy"]

    # The study has ended because the last 4 trials brought no gain. Without a larger --patience, resume runs no trial.
    again = run_command(["resume", "front", "--json"], tmp_path)
    assert (again.code, len(trials_of(study))) == (0, len(rows)), again.stderr
    assert again.result()["front"] == result["front"]
    more = run_command(["resume", "front", "--patience", "8", "--json"], tmp_path)
    assert more.code == 0, more.stderr
    assert len(trials_of(study)) >= len(rows) + 4
    assert {path.name for path in (study / "front").iterdir()} == {one["trial"] for one in more.result()["pareto"]}


def test_no_network_exceeds_max_nonzero_and_one_network_reaches_it_exactly(
    experiment_file: Path, tmp_path: Path
) -> None:
    options = {"experiment": f"{experiment_file}:steady", "trials": 3, "scheduler": "none"}
    folder = run_in_process(tmp_path / "studies", "count", max_nonzero=77, **options)
    rows, result = trials_of(folder), json.loads((folder / "result.json").read_text())
    assert all(int(row["nonzero_weights"]) <= 77 for row in rows)
    assert any(int(row["nonzero_weights"]) == 77 for row in rows)
    assert result["max_nonzero"] == 77
    assert WEIGHTS - zeros_in(folder / "best") == result["best"]["nonzero_weights"]


# The same study twice


def without(rows: list[dict[str, str]], *columns: str) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name not in columns} for row in rows]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize(
    "goal",
    [pytest.param(["--target", "0.8"], marks=pytest.mark.long), ["--front", "0.5:0.9"]],
    ids=["target", "front"],
)
def test_two_studies_with_the_same_seed_and_concurrency_1_write_equal_files(
    goal: list[str], experiment_file: Path, tmp_path: Path
) -> None:
    """The second study reads its options from the study.yaml of the first, except where to write its results."""
    arguments = [*goal, "--experiment", f"{experiment_file}:sometimes_nan", "--method", "lpss,gmp", "--trials", "12"]
    arguments += ["--concurrency", "1", "--seed", "3", "--gpus-per-trial", "0", "--final-seeds", "2", "--study", "same"]
    ran: list[Ran] = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        ran.append(run_command([*arguments, "--json"], tmp_path / name))
        assert ran[-1].code == 0, ran[-1].stderr
        arguments = ["--config", str(tmp_path / "one" / "studies" / "same" / "study.yaml"), "--study", "same"]
        arguments += ["--storage", "studies", "--tracking-uri", f"sqlite:///{tmp_path / 'other' / 'mlflow.db'}"]
    one, other = (done.cwd / "studies" / "same" for done in ran)
    for table in ("trials.csv", "pareto.csv"):
        assert without(rows_of(one / table), "seconds") == without(rows_of(other / table), "seconds")
        assert (one / table).read_text().splitlines()[0] == (other / table).read_text().splitlines()[0]
    results = [done.result() for done in ran]
    for result in results:
        parts = {"total", "startup", "training", "sampling", "tracking", "finishing", "other"}
        assert set(result.pop("seconds")) == parts
        assert result.pop("mlflow")["run_id"]
    assert results[0] == results[1]
    configs = [(folder / "study.yaml").read_text() for folder in (one, other)]
    assert configs[0].replace(str(tmp_path / "one"), str(tmp_path / "other")) == configs[1]
    files = [
        sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()) for folder in (one, other)
    ]
    assert files[0] == files[1]
    exact = [path for path in files[0] if path.suffix == ".safetensors" or path.name in ("model.json", "pareto.html")]
    assert len(exact) >= 3
    for path in exact:
        assert (one / path).read_bytes() == (other / path).read_bytes(), path
