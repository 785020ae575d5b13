"""Test studies of networks and data in other dtypes than float32: they end with all their files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.in_process import exported, run_in_process
from tests.helpers.strange import DTYPES, EXPERIMENTS
from tune_sparsity.experiments import find
from tune_sparsity.tuner.cli import main
from tune_sparsity.tuner.results.export import SUFFIXES
from tune_sparsity.tuner.tracking.pyfunc_model import load

NO_KERNELS = ("bfloat16", "autocast", "half_words")  # on a CPU, onnxruntime has no kernels for bfloat16
FILES = {
    *("best/model.json", "best/model.safetensors", "epochs.csv", "optuna.journal", "pareto.csv", "pareto.html"),
    *("pictures.html", "result.json", "study.yaml", "trials.csv", "tracking/example.npy", "tracking/model/served.json"),
    *("tracking/model/model.json", "tracking/model/model.safetensors", "tracking/model/code/strange.py"),
}


@pytest.mark.parametrize("name", DTYPES)
def test_a_study_writes_all_its_files_and_its_network_can_be_exported(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "strange.py").write_text(EXPERIMENTS)
    own = f"{tmp_path / 'strange.py'}:{name}"
    folder = run_in_process(
        tmp_path / "studies", name, experiment=own, method="lpss,gmp", target=0.5, trials=2, epochs=2, scheduler="none"
    )
    assert "could not be made" not in capsys.readouterr().err
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == FILES
    assert [row["state"] for row in csv.DictReader((folder / "trials.csv").open())] == ["completed"] * 2
    best = json.loads((folder / "result.json").read_text())["best"]
    assert best["sparsity"] >= 0.5
    experiment = find(own)
    test = experiment.load(None).test
    logits = load(experiment, folder / "tracking" / "model").predict(test.x.numpy())
    assert logits.dtype == {"float16": np.float16, "float64": np.float64}.get(name, np.float32)
    assert float((logits.argmax(1) == test.y.numpy()).mean()) == pytest.approx(best["test_accuracy"])

    export = ["export", name, "--storage", str(tmp_path / "studies"), "--json", "--format"]
    for kind in SUFFIXES.keys() - {"onnx"}:
        document = exported(tmp_path / "studies", name, kind, capsys)
        assert document["largest_difference"] == 0
        weights = experiment.model().state_dict().values()
        assert document["sizes"]["dense"] == sum(one.numel() * one.element_size() for one in weights)
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert main([*export, "onnx"]) == (1 if name in NO_KERNELS else 0)
    if name in NO_KERNELS:
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("tune-sparsity: the onnx file cannot be used: ")


def test_as_array_keeps_the_values_of_each_dtype() -> None:
    from tune_sparsity.tuner.system.arrays import as_array

    for dtype in (torch.float16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool):
        assert as_array(torch.tensor([0, 1, 3], dtype=dtype)).dtype == np.dtype(str(dtype).removeprefix("torch."))
    array = as_array(torch.tensor([0.0, -0.0, 1.0078125, 3e38], dtype=torch.bfloat16))
    assert array.dtype == np.float32
    assert array.tolist() == torch.tensor([0.0, -0.0, 1.0078125, 3e38], dtype=torch.bfloat16).double().tolist()
