"""The files of examples/, run as a reader would run them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.in_process import run_in_process
from tune_sparsity.tuner.cli import main

EXAMPLES = Path(__file__).parents[3] / "examples"
TEXT = Path(os.environ.get("TUNE_SPARSITY_DATA") or Path(__file__).parents[4] / "shared" / "data") / "text"


def test_the_example_of_a_users_loop_ends_at_its_target_sparsity(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, EXAMPLES / "own_loop.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    said = ran.stdout.split()
    assert float(said[0]) == pytest.approx(0.9, abs=1e-4)
    assert float(said[-1]) > 0.93


def best_of(storage: Path, example: str, **options: Any) -> dict[str, Any]:
    """Run a study of an example. Return its best network."""
    folder = run_in_process(storage, "s", experiment=str(EXAMPLES / example), **options)
    return dict(json.loads((folder / "result.json").read_text())["best"])


@pytest.mark.parametrize("example", ["searched_loop.py:train", "loaded_digits.py:digits"])
def test_the_examples_searched_loop_and_loaded_digits_reach_the_target(example: str, tmp_path: Path) -> None:
    best = best_of(tmp_path, example, target=0.9, trials=2, epochs=8)
    assert best["sparsity"] >= 0.9
    assert best["test_accuracy"] > 0.9


def test_a_study_of_the_regression_example_reaches_a_small_rmse(tmp_path: Path) -> None:
    best = best_of(tmp_path, "tabular_regression.py:diabetes", target=0.9, trials=3, epochs=None)
    assert best["test_rmse"] < 0.9  # the targets' deviation is 1


def test_the_settings_of_a_transformer_on_text_are_searched(tmp_path: Path) -> None:
    if not (TEXT / "TREC.train").exists():
        pytest.skip("no real data: set TUNE_SPARSITY_DATA to the folder that holds text/TREC.train")
    best = best_of(tmp_path, "text_transformer.py:questions", target=0.8, trials=1, epochs=2, data_dir=TEXT)
    assert best["test_accuracy"] > 0.4


def test_a_trained_resnet_is_made_sparse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(shutil.copy(EXAMPLES / "finetune_resnet.py", tmp_path))
    experiment = f"{example}:finetuned"
    assert main(["--target", "0.9", "--experiment", experiment, "--storage", str(tmp_path / "studies")]) == 2
    assert "run python" in capsys.readouterr().err
    ran = subprocess.run([sys.executable, example], cwd=tmp_path, capture_output=True, text=True, check=True)
    dense = float(ran.stdout.split()[-1])
    assert dense > 0.93
    best = best_of(tmp_path / "studies", experiment, target=0.9, trials=1, epochs=2)
    assert best["sparsity"] >= 0.9
    assert best["test_accuracy"] > dense - 0.05


def test_the_notebook_runs_and_shows_progress_tables_and_a_picture(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "search.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in shown)
    assert "6/6 trials" in printed
    assert "weights are zero; test accuracy" in printed
    data = [output["data"] for output in shown if "data" in output]
    assert any("application/vnd.plotly.v1+json" in one or "plotly" in one.get("text/html", "") for one in data)
    assert sum("<table" in one.get("text/html", "") for one in data) == 3
