"""Test studies with --pattern: saved networks have the pattern, and impossible patterns are refused."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from tests.helpers.command import run_command
from tests.helpers.in_process import exported, run_in_process
from tests.helpers.outcome import mlflow_runs, read_safetensors, trials_of
from tune_sparsity.tuner.cli import main

OPTIONS = ["--trials", "4", "--scheduler", "none"]


def test_a_2_4_study_saves_a_network_with_at_most_2_nonzeros_in_4_weights(
    experiment_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = tmp_path / "studies"
    options = {"experiment": f"{experiment_file}:steady", "method": "lpss,gmp", "pattern": "2:4", "scheduler": "none"}
    folder = run_in_process(storage, "pattern", target=0.6, trials=6, **options)
    rows = trials_of(folder)
    assert {row["method"] for row in rows} == {"lpss", "gmp"}
    assert all(row["state"] == "completed" and float(row["sparsity"]) >= 0.6 for row in rows)
    result = json.loads((folder / "result.json").read_text())
    assert (result["pattern"], result["dense_weights"]) == ("2:4", {})
    tensors = read_safetensors(folder / "best" / "model.safetensors")
    masked = [name for name in tensors if f"{name}.mask" in tensors]
    assert len(masked) == 2
    for name in masked:
        groups = (tensors[name] != 0).reshape(-1, 4)
        assert groups.sum(1).max() <= 2
    assert exported(storage, "pattern", "packed", capsys)["largest_difference"] == 0


def test_a_study_with_the_neurons_pattern_removes_whole_neurons(
    experiment_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch_pruning")
    storage = tmp_path / "studies"
    options = {"experiment": f"{experiment_file}:steady", "method": "lpss,gmp", "pattern": "neurons"}
    folder = run_in_process(storage, "pattern", target=0.6, trials=6, scheduler="none", **options)
    rows = trials_of(folder)
    assert {row["method"] for row in rows} == {"lpss", "gmp"}
    assert all(row["state"] == "completed" and float(row["sparsity"]) >= 0.6 for row in rows)
    result = json.loads((folder / "result.json").read_text())
    tensors = read_safetensors(folder / "best" / "model.safetensors")
    first, last = (tensors[f"{name}.mask"] != 0 for name in tensors if f"{name}.mask" in tensors)
    assert first.any(1).tolist() == last.any(0).tolist()
    assert first.sum() == first.any(1).sum() * first.shape[1]
    assert last.sum() == last.any(0).sum() * last.shape[0]
    assert result["pattern"] == "neurons"
    assert list(result["whole_layers"].values()) == ["its outputs are the outputs of the network"]
    document = exported(storage, "pattern", "onnx", capsys)
    shapes = {tuple(one.dims) for one in onnx.load(document["file"]).graph.initializer}
    neurons = int(first.any(1).sum())
    assert {(neurons, 12), (3, neurons)} <= shapes or {(12, neurons), (neurons, 3)} <= shapes
    assert document["largest_difference"] < 1e-4  # the outputs are about 10
    assert main(["report", "pattern", "--storage", str(storage)]) == 0
    assert "neurons removed" in (folder / "report.html").read_text()
    capsys.readouterr()
    assert exported(storage, "pattern", "packed", capsys)["largest_difference"] == 0


def test_a_pattern_in_an_experiments_layer_rules_reaches_the_workers(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import replace\n"
        "from tune_sparsity import LayerRules\n"
        "from tune_sparsity.experiments.builtin.digits import digits\n"
        "blocks = replace(digits, name='blocks', layers=LayerRules(pattern='block:2x8'))\n"
    )
    options = ["--target", "0.8", "--trials", "2", "--epochs", "1", "--scheduler", "none", "--study", "blocks"]
    ran = run_command(["--experiment", f"{file}:blocks", *options, "--json"], tmp_path)
    assert ran.code == 0, ran.stderr
    folder = tmp_path / "studies" / "blocks"
    tensors = read_safetensors(folder / "best" / "model.safetensors")
    for name in (name for name in tensors if f"{name}.mask" in tensors):
        zero = tensors[name] == 0
        rows, inputs = zero.shape[0] // 2 * 2, zero.shape[1] // 8 * 8
        blocks = zero[:rows, :inputs].reshape(rows // 2, 2, inputs // 8, 8).transpose(0, 2, 1, 3).reshape(-1, 16)
        assert (blocks.all(1) | ~blocks.any(1)).all()
    assert ran.result()["pattern"] == "block:2x8"
    parents, children = mlflow_runs(tmp_path, ran.result())
    assert [run.data.params["pattern"] for run in parents] == ["block:2x8"]
    assert all(run.data.metrics["sparsity"] >= 0.8 for run in children)


@pytest.mark.parametrize("pattern", ["neurons", "2:4"])
def test_a_pattern_is_refused_with_a_space_that_has_a_width(
    pattern: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "narrow.yaml"
    space.write_text("method: gmp\nparameters:\n  width: {type: float, low: 0.5, high: 1.0}\n  final_sparsity: 0.9\n")
    storage = tmp_path / "studies"
    options = ["--target", "0.9", "--pattern", pattern, "--space", str(space), "--storage", str(storage)]
    assert main([*options, "--method", "gmp"]) == 2
    assert f"--pattern {pattern}: the space {space} has the parameter width" in capsys.readouterr().err
    assert not storage.exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--target", "0.3", "--pattern", "2:4"],
            "--target: with the pattern 2:4 this network can have a sparsity from 0.5 to",
        ),
        (
            ["--front", "0.4:0.9", "--pattern", "2:4"],
            "--front: with the pattern 2:4 this network can have a sparsity from 0.5",
        ),
        (
            ["--target", "0.997", "--pattern", "block:8x8", "--experiment", "digits"],
            "--target: with the pattern block:8x8",
        ),
        (
            ["--target", "0.9999", "--pattern", "neurons"],
            "--target: with the pattern neurons this network can have a sparsity from 0 to",
        ),
        (
            ["--max-macs", "1400", "--pattern", "neurons:16"],
            "--max-macs 1400: even with the fewest neurons in each layer this network needs 1,440",
        ),
        (
            ["--target", "0.9", "--pattern", "4:2"],
            "--pattern '4:2': pattern 4:2: N must be at least 1, and less than M",
        ),
        (
            ["--target", "0.9", "--pattern", "blocks"],
            "--pattern 'blocks': a pattern is unstructured, neurons, neurons:K, N:M or block:RxC",
        ),
        (["--target", "0.9", "--pattern", "block:512x512"], "nothing to prune"),
        (["--max-bytes", "9kB", "--pattern", "2:4"], "--pattern 2:4: --max-bytes needs unstructured zeros"),
        (
            ["--target", "0.9", "--pattern", "2:4", "--method", "lpss,rigl"],
            "--pattern 2:4: method rigl does not support patterns: give --method lpss or gmp",
        ),
    ],
)
def test_a_pattern_that_cannot_be_met_is_refused_and_nothing_is_written(
    arguments: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, *OPTIONS]) == 2
    error = capsys.readouterr().err.strip()
    assert line in error
    assert "\n" not in error
    assert not list(tmp_path.iterdir())
