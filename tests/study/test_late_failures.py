"""Test failures after the search, when networks are measured, logged or exported: all other results stay."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.helpers.command import run_command
from tests.helpers.in_process import exported, run_in_process
from tests.helpers.strange import EXPERIMENTS
from tests.helpers.tracking import client as client_of
from tune_sparsity.tuner.cli import main


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    file = tmp_path / "strange.py"
    file.write_text(EXPERIMENTS)
    return file


def test_resume_repeats_the_steps_that_failed_after_the_search(strange: Path, tmp_path: Path) -> None:
    """In the first run, the network fails on the test data, and MLflow cannot log it as a model."""
    study = ["--study", "late", "--experiment", f"{strange}:test_and_pair", "--target", "0.5", "--trials", "2"]
    ran = run_command([*study, "--scheduler", "none", "--final-seeds", "1", "--json"], tmp_path)
    assert ran.code == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    told = ran.stderr.splitlines()
    trial = ran.result()["best"]["trial"]
    why = "RuntimeError: no batch of 75, please"
    assert f"The test accuracy of {trial} was not measured: {why}" in told
    assert f"A training with another seed failed: {why}" in told
    assert any(line.startswith("The best network was not logged as a model: ") for line in told)
    assert any(line.startswith("All other results are complete. To try the failed part again: ") for line in told)
    folder = tmp_path / "studies" / "late"
    assert len(list(csv.DictReader((folder / "trials.csv").open()))) == 2
    best = json.loads((folder / "result.json").read_text())["best"]
    assert best == ran.result()["best"]
    assert best["test_accuracy"] is None
    assert best["weights"] == 12 * 24 + 24 * 3
    assert "net.0.weight" in load_file(folder / "best" / "model.safetensors")
    assert (folder / "best" / "model.json").exists()
    client, experiment = client_of(tmp_path / "mlflow.db"), ran.result()["mlflow"]["experiment_id"]
    run = client.get_run(ran.result()["mlflow"]["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["method"] == "lpss"
    assert client.search_logged_models([experiment]) == []

    strange.write_text(EXPERIMENTS.replace('Strange("test and pair")', 'Strange("never")'))
    ran = run_command(["resume", "late", "--json"], tmp_path)
    assert ran.code == 0, ran.stderr
    assert "not measured" not in ran.stderr
    assert ran.result()["best"]["trial"] == trial
    assert ran.result()["best"]["test_accuracy"] > 0.5
    assert len(ran.result()["final_seeds"][0]["test_accuracy"]["seeds"]) == 1
    assert [model.status for model in client.search_logged_models([experiment])] == ["READY"]


def test_export_writes_its_file_if_the_network_cannot_be_timed(
    strange: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_in_process(tmp_path / "studies", "late", experiment=f"{strange}:alone", target=0.5, trials=2, epochs=2)
    capsys.readouterr()
    for kind in ("safetensors", "torch", "csr"):
        document = exported(tmp_path / "studies", "late", kind, capsys)
        assert Path(document["file"]).stat().st_size == document["bytes"]
        alone, many = document["latency_ms"]
        assert (alone["batch"], alone["dense"], alone["sparse"]) == (1, None, None)
        assert alone["note"] == "the network cannot take a batch of 1: RuntimeError: no batch of 1, please"
        assert many["dense"] > 0
    assert main(["export", "late", "--storage", str(tmp_path / "studies"), "--format", "csr"]) == 0
    assert "no batch of 1, please" in capsys.readouterr().out


def test_export_of_a_network_whose_outputs_are_no_tensor_is_refused(
    strange: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_in_process(tmp_path / "studies", "late", experiment=f"{strange}:pair", target=0.5, trials=2, epochs=2)
    strange.write_text(EXPERIMENTS.replace("len(x) == 2", "not self.training"))
    capsys.readouterr()
    assert main(["export", "late", "--storage", str(tmp_path / "studies"), "--format", "torch"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "as one tensor" in line


def test_a_trial_whose_evaluation_gives_nan_fails(strange: Path, tmp_path: Path) -> None:
    folder = run_in_process(tmp_path / "studies", "nan", experiment=f"{strange}:nan", target=0.5, trials=2, epochs=2)
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert [row["state"] for row in rows] == ["failed"] * 2
    assert {row["reason"] for row in rows} == {"the network's outputs are NaN for 90 of 90 examples"}
    assert json.loads((folder / "result.json").read_text())["best"] is None
