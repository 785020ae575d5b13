"""Test studies with --ensemble resample: networks with random weights around those of the best network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.helpers.in_process import exported, run_in_process
from tune_sparsity.tuner.results.networks import split_masks
from tune_sparsity.tuner.results.resampling import SCALES

SPACE = """
method: gmp
parameters:
  lr: {type: float, low: 0.01, high: 0.1, log: true}
  final_sparsity: 0.5
"""


def test_the_ensemble_is_reported_and_does_not_enlarge_the_exported_file(
    experiment_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"experiment": f"{experiment_file}:steady", "method": "gmp", "trials": 3, "epochs": 8}
    folder = run_in_process(tmp_path / "studies", "e", target=0.5, ensemble="resample", members=4, **options)
    result = json.loads((folder / "result.json").read_text())
    best, ensemble = result["best"], result["ensemble"]
    assert best["params"]["averaging"] in ("swa", "ema")
    assert set(ensemble["validation"]) == {str(scale) for scale in SCALES}
    assert ensemble["validation"]["0.0"]["value"] == pytest.approx(best["val_accuracy"])
    assert ensemble["test"]["average"]["value"] == pytest.approx(best["test_accuracy"])
    assert 0 < ensemble["noise_tolerance"] <= 1
    assert set(ensemble["bits"]) == {"net.0.weight", "net.2.weight"}

    stored = load_file(folder / "best" / "model.safetensors")
    names = {name for name in stored if name.endswith(".spread")}
    assert names == {f"net.{layer}.{kind}.spread" for layer in (0, 2) for kind in ("weight", "bias")}
    assert set(names).isdisjoint(split_masks(stored)[0])
    for name in ("net.0.weight", "net.2.weight"):
        assert ((stored[f"{name}.spread"] == 0) >= (stored[name] == 0)).all()  # the spread of a masked weight is 0
    document = exported(tmp_path / "studies", "e", "packed", capsys)
    assert document["bytes"] == best["size_bytes"]


def test_a_best_network_without_weight_averaging_has_no_ensemble(experiment_file: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text(SPACE)
    options = {"experiment": f"{experiment_file}:steady", "method": "gmp", "trials": 1, "epochs": 4}
    more = {"ensemble": "resample", "space": str(tmp_path / "plain.yaml")}
    folder = run_in_process(tmp_path / "studies", "plain", target=0.5, **more, **options)
    result = json.loads((folder / "result.json").read_text())
    assert result["best"] is not None
    assert "ensemble" not in result
