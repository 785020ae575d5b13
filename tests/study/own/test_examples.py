"""The files of examples/, run as a reader would run them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command import run_command

EXAMPLES = Path(__file__).parents[3] / "examples"
TEXT = Path(os.environ.get("TUNE_SPARSITY_DATA") or Path(__file__).parents[4] / "shared" / "data") / "text"


def test_the_loop_of_ones_own_ends_on_its_sparsity(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, EXAMPLES / "own_loop.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    said = ran.stdout.split()
    assert float(said[0]) == pytest.approx(0.9, abs=1e-4)
    assert float(said[-1]) > 0.93


@pytest.mark.parametrize("example", ["searched_loop.py:train", "loaded_digits.py:digits"])
def test_a_loop_of_ones_own_and_loaded_data_are_searched(example: str, tmp_path: Path) -> None:
    ran = run_command(
        ["--target", "0.9", "--trials", "2", "--epochs", "8", "--json", "--experiment", f"{EXAMPLES}/{example}"],
        tmp_path,
    )
    assert ran.code == 0, ran.stderr
    assert ran.result()["best"]["sparsity"] >= 0.9
    assert ran.result()["best"]["test_accuracy"] > 0.9


def test_a_regression_is_searched_by_its_error(tmp_path: Path) -> None:
    ran = run_command(
        ["--target", "0.9", "--trials", "3", "--json", "--experiment", f"{EXAMPLES}/tabular_regression.py:diabetes"],
        tmp_path,
    )
    assert ran.code == 0, ran.stderr
    result = ran.result()
    assert result["metric"] == {"name": "rmse", "direction": "minimize"}
    assert result["best"]["test_rmse"] < 0.9  # the targets' deviation is 1


def test_a_transformer_on_text_is_searched(tmp_path: Path) -> None:
    if not (TEXT / "TREC.train").exists():
        pytest.skip("no real data: set TUNE_SPARSITY_DATA to the folder that holds text/TREC.train")
    example = f"{EXAMPLES}/text_transformer.py:questions"
    options = ["--target", "0.8", "--trials", "1", "--epochs", "2", "--json", "--experiment", example]
    ran = run_command([*options, "--data-dir", str(TEXT)], tmp_path)
    assert ran.code == 0, ran.stderr
    assert ran.result()["best"]["test_accuracy"] > 0.4


def test_a_trained_resnet_is_made_sparse(tmp_path: Path) -> None:
    example = Path(shutil.copy(EXAMPLES / "finetune_resnet.py", tmp_path))
    options = ["--target", "0.9", "--trials", "1", "--epochs", "2", "--json", "--experiment", f"{example}:finetuned"]
    early = run_command(options, tmp_path)
    assert early.code == 2
    assert "run python" in early.stderr
    ran = subprocess.run([sys.executable, example], cwd=tmp_path, capture_output=True, text=True, check=True)
    dense = float(ran.stdout.split()[-1])
    assert dense > 0.93
    ran = run_command(options, tmp_path)
    assert ran.code == 0, ran.stderr
    best = ran.result()["best"]
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
