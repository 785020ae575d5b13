"""Test studies with --max-bytes that search binary networks, and the errors for networks without a binary form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.helpers.in_process import exported, run_in_process
from tests.helpers.outcome import trials_of
from tune_sparsity.sparsity.cost.read_packed import decode
from tune_sparsity.tuner.cli import main

MOST = 9000  # bytes; a binary network of the digits' 50,200 weights has 7,866


def test_binary_networks_fit_into_max_bytes_and_are_exported_bit_for_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, space = tmp_path / "studies", tmp_path / "narrow.yaml"
    space.write_text("method: binary\nparameters:\n  lr: {type: float, low: 0.002, high: 0.004, log: true}\n")
    options = {"experiment": "digits", "method": "binary", "space": str(space), "scheduler": "none", "epochs": 3}
    folder = run_in_process(storage, "alone", max_bytes=MOST, trials=2, **options)
    rows = trials_of(folder)
    assert {row["state"] for row in rows} == {"completed"}
    assert {(row["size_bytes"], row["sparsity"], row["nonzero_weights"]) for row in rows} == {("7866", "0.0", "50200")}
    best = json.loads((folder / "result.json").read_text())["best"]
    assert best["test_accuracy"] > 0.8
    # Of 64-300-100-10, only the first layer reads real numbers.
    assert {(row["macs"], row["bit_ops"]) for row in rows} == {("50200", str(300 * 100 + 100 * 10))}
    assert best["bit_ops"] == 31_000
    described = json.loads((folder / "best" / "model.json").read_text())
    assert described["metrics"]["bit_ops"] == 31_000
    stored = load_file(folder / "best" / "model.safetensors")
    for kind in ("packed", "safetensors", "onnx"):
        document = exported(storage, "alone", kind, capsys)
        assert document["largest_difference"] < 1e-4
        if kind == "packed":
            data = Path(document["file"]).read_bytes()
            assert len(data) == best["size_bytes"]
            packed = decode(data)
            assert {one.type for name, one in packed.items() if name.endswith("weight")} == {"signs"}
            assert all(np.array_equal(one.array(), stored[name]) for name, one in packed.items())


def test_one_study_can_search_binary_and_lpss_networks(tmp_path: Path) -> None:
    options = {"experiment": "digits", "method": "binary,lpss", "scheduler": "none", "epochs": 3, "trials": 4}
    folder = run_in_process(tmp_path / "studies", "both", max_bytes=MOST, **options)
    rows = trials_of(folder)
    assert {row["method"] for row in rows} == {"binary", "lpss"}
    assert all((row["bit_ops"] == "") == (row["method"] == "lpss") for row in rows)
    assert all(row["state"] == "completed" and int(row["size_bytes"]) <= MOST for row in rows)


EXPERIMENTS = """
from dataclasses import replace
from torch import nn
from tune_sparsity import Experiment, Recipe
from tune_sparsity.experiments.builtin.digits import digits

odd = replace(digits, model=lambda: nn.Sequential(nn.Linear(64, 9), nn.LayerNorm(9), nn.Linear(9, 10)))
often = replace(digits, recipe=Recipe(epochs=2, batch_size=32, accumulate=2))
half = replace(digits, recipe=Recipe(epochs=2, batch_size=32, precision="bfloat16"))
"""


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--target", "0.9"],
            "--method binary never prunes: give --target 0 (no zeros), --max-bytes or another method",
        ),
        (["--max-nonzero", "500"], "--method binary never prunes"),
        (["--max-bytes", "5kB"], "--max-bytes 5000: a binary network of digits has 7,866 bytes"),
        (["--max-bytes", "10kB", "--experiment", "odd"], "--method binary: 1 (LayerNorm) has no binary form"),
        (["--max-bytes", "10kB", "--experiment", "often"], "--method binary: binary takes a step after every batch"),
        (["--max-bytes", "10kB", "--experiment", "half"], "--method binary: binary computes in float32"),
        (["--max-bytes", "10kB", "--workers-per-trial", "2"], "--method binary: binary trains in one process"),
    ],
)
def test_a_study_that_binary_cannot_run_is_refused_in_one_line(
    arguments: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(EXPERIMENTS)
    given = [f"{tmp_path / 'own.py'}:{one}" if one in ("odd", "often", "half") else one for one in arguments]
    assert main([*given, "--method", "binary", "--storage", str(tmp_path / "studies")]) == 2
    said = capsys.readouterr()
    assert (said.out, len(said.err.splitlines())) == ("", 1)
    assert line in said.err
