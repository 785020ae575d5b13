"""Test studies with --max-bytes: every pruned network fits, and its file has the size that its trial reports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import load_file

from tests.helpers.in_process import exported, run_in_process
from tests.helpers.outcome import trials_of
from tests.helpers.strange import EXPERIMENTS
from tune_sparsity.sparsity.cost.read_packed import decode, read
from tune_sparsity.tuner.cli import main

SINGLE = """\
import torch
from torch import nn
from tune_sparsity import Data, Experiment, Recipe, Split

def load(data_dir):
    x = torch.rand(200, 32, generator=torch.Generator().manual_seed(0))
    return Data(*[Split(x[part::3], (x[part::3, 0] * 4).long()) for part in range(3)])

single = Experiment("single", load, lambda: nn.Sequential(nn.Linear(32, 4)), Recipe(epochs=1, batch_size=20))
"""

METHODS = "lpss,gmp,rigl,set,sparse-momentum,static,snip"
MOST = 500  # bytes; 600 weights and 43 biases take 2.6 kB, and 719 bytes with weights of 4 bits
SPACE = """
method: gmp
parameters:
  lr: {type: float, low: 0.01, high: 0.1, log: true}
  final_sparsity: 0.5
  weight_bits: 4
"""


def test_every_pruned_network_fits_into_max_bytes(
    experiment_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = tmp_path / "studies"
    options = {"experiment": f"{experiment_file}:steady", "method": METHODS, "scheduler": "none"}
    folder = run_in_process(storage, "small", max_bytes=MOST, trials=14, **options)
    rows = trials_of(folder)
    assert {row["method"] for row in rows} == set(METHODS.split(","))
    assert all(row["state"] == "completed" and int(row["size_bytes"]) <= MOST for row in rows)
    assert max(int(row["size_bytes"]) for row in rows) > MOST - 8  # the estimated number of weights was not too small
    # Each example goes through each of the two linear layers once.
    assert all(row["macs"] == row["nonzero_weights"] for row in rows)

    result = json.loads((folder / "result.json").read_text())
    best = result["best"]
    assert (result["max_bytes"], best["size_bytes"] <= MOST) == (MOST, True)
    document = exported(storage, "small", "packed", capsys)
    file = Path(document["file"])
    assert document["bytes"] == file.stat().st_size == best["size_bytes"]
    stored, packed = load_file(folder / "best" / "model.safetensors"), read(file)
    assert packed.keys() == {name for name in stored if not name.endswith(".mask")}
    assert all(np.array_equal(packed[name], stored[name]) for name in packed)


def test_weights_of_few_bits_are_exported_as_codes_and_scales(
    experiment_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, space = tmp_path / "studies", tmp_path / "few.yaml"
    space.write_text(SPACE)
    options = {"experiment": f"{experiment_file}:steady", "method": "gmp", "space": str(space), "trials": 1}
    best = json.loads((run_in_process(storage, "few", target=0.5, **options) / "result.json").read_text())["best"]
    documents = {kind: exported(storage, "few", kind, capsys) for kind in ("packed", "safetensors", "onnx", "torch")}
    files = {kind: Path(document["file"]) for kind, document in documents.items()}
    whole = torch.load(files["torch"], weights_only=True)
    assert files["packed"].stat().st_size == best["size_bytes"] == documents["torch"]["sizes"]["packed"]

    packed = decode(files["packed"].read_bytes())
    assert {name for name, one in packed.items() if one.type == "codes4"} == {"net.0.weight", "net.2.weight"}
    assert {name: one.array().tolist() for name, one in packed.items()} == {n: w.tolist() for n, w in whole.items()}
    stored, graph = load_file(files["safetensors"]), onnx.load(files["onnx"]).graph
    for name in ("net.0.weight", "net.2.weight"):
        codes, scales = stored[f"{name}.codes"], stored[f"{name}.scales"]
        assert (codes.dtype, np.abs(codes).max() <= 8, scales.dtype) == (np.int8, True, np.float16)
        assert np.array_equal(codes * scales.astype(np.float32)[:, None], whole[name].numpy())
        (found,) = (one for one in graph.initializer if one.name.endswith(f"{name}.codes"))
        assert np.array_equal(numpy_helper.to_array(found), codes)
    assert [one.op_type for one in graph.node].count("DequantizeLinear") == 2


@pytest.mark.parametrize(("name", "bits"), [("bfloat16", {""}), ("float64", {"4"})])
def test_few_bits_are_used_for_float64_weights_and_not_for_bfloat16_weights(
    name: str, bits: set[str], tmp_path: Path
) -> None:
    (tmp_path / "strange.py").write_text(EXPERIMENTS)
    options = {"experiment": f"{tmp_path / 'strange.py'}:{name}", "method": "gmp", "trials": 2, "epochs": 4}
    folder = run_in_process(tmp_path / "studies", name, max_bytes=600, scheduler="none", **options)
    rows = trials_of(folder)
    assert {row["state"] for row in rows} == {"completed"}
    assert {row.get("weight_bits", "") for row in rows} == bits
    assert all(int(row["size_bytes"]) <= 600 for row in rows)


def test_networks_for_very_few_bytes_are_narrower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage, options = tmp_path / "studies", {"experiment": "digits", "method": "lpss,gmp", "scheduler": "none"}
    folder = run_in_process(storage, "narrow", max_bytes=1500, trials=6, epochs=8, **options)
    rows = trials_of(folder)
    assert {row["method"] for row in rows} == {"lpss", "gmp"}
    assert all(0.3 < float(row["width"]) < 0.8 and row["state"] == "completed" for row in rows)
    # Not every file is that large: a narrow network with 2 bits a weight is smaller, even if no weight is zero.
    assert 1480 < max(int(row["size_bytes"]) for row in rows) <= 1500
    result = json.loads((folder / "result.json").read_text())
    width = result["best"]["params"]["width"]
    for name, neurons in (("0.weight", 300), ("2.weight", 100)):
        assert result["dead_neurons"][name]["dead"] >= neurons - round(neurons**width)
    assert result["best"]["val_accuracy"] > 0.8  # an untrained network has .1, and one with all neurons about .4
    for kind in ("packed", "onnx", "safetensors"):
        assert Path(exported(storage, "narrow", kind, capsys)["file"]).is_file()


WIDTHS = """\
method: gmp
parameters:
  width: {type: float, low: 0.5, high: 0.6}
  weight_bits: 4
  final_sparsity: {type: float, low: target, high: above}
"""


def test_a_width_in_the_space_lets_more_weights_fit_into_max_bytes(tmp_path: Path) -> None:
    (space := tmp_path / "narrow.yaml").write_text(WIDTHS)
    options = {"experiment": "digits", "method": "gmp", "space": str(space), "scheduler": "none"}
    folder = run_in_process(tmp_path / "studies", "own", max_bytes=1500, trials=3, epochs=1, **options)
    sizes = [(float(row["sparsity"]), int(row["size_bytes"])) for row in trials_of(folder)]
    assert all(size <= 1500 for _, size in sizes)
    # If scales and biases of all 300 + 100 hidden neurons were counted, only so few weights would fit that all
    # sparsities would be above .988.
    assert min(sparsity for sparsity, _ in sizes) < 0.975


@pytest.mark.parametrize("goal", [["--target", "0.9"], ["--max-bytes", "150"]])
def test_a_space_with_a_width_is_refused_if_no_neuron_can_be_removed(
    goal: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "strange.py").write_text(SINGLE)
    (space := tmp_path / "narrow.yaml").write_text(WIDTHS)
    storage = tmp_path / "studies"
    options = ["--experiment", f"{tmp_path / 'strange.py'}:single", "--method", "gmp", "--space", str(space)]
    assert main([*goal, *options, "--storage", str(storage)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "no neuron of this network can be removed" in line] == lines
    assert len(lines) == 1
    assert not storage.exists()


def test_a_dense_network_above_max_bytes_is_trained_but_not_chosen(experiment_file: Path, tmp_path: Path) -> None:
    options = {"experiment": f"{experiment_file}:steady", "scheduler": "none", "trials": 4, "epochs": 2}
    folder = run_in_process(tmp_path / "studies", "both", max_bytes=MOST, method="dense,gmp", **options)
    sizes = [(row["method"], row["weight_bits"], int(row["size_bytes"])) for row in trials_of(folder)]
    assert {(method, bits) for method, bits, _ in sizes} >= {("dense", "4"), ("gmp", "4")}
    assert all(size > MOST for method, _, size in sizes if method == "dense")
    assert all(size <= MOST for method, _, size in sizes if method == "gmp")
    assert json.loads((folder / "result.json").read_text())["best"]["method"] == "gmp"


def test_epochs_csv_has_network_sizes_only_for_epochs_with_a_fixed_mask(experiment_file: Path, tmp_path: Path) -> None:
    options = {"experiment": f"{experiment_file}:steady", "method": "gmp,static", "trials": 2, "scheduler": "none"}
    folder = run_in_process(tmp_path / "studies", "epochs", target=0.8, epochs=5, **options)
    header, *lines = (folder / "epochs.csv").read_text().splitlines()
    at = header.split(",").index("size_bytes")
    told = {(line.split(",")[0], line.split(",")[1]): line.split(",")[at] for line in lines}
    methods = {row["method"]: (row["number"], row["size_bytes"]) for row in trials_of(folder)}
    number, size = methods["static"]
    assert {told[number, str(epoch)] for epoch in range(1, 6)} == {f"{size}.0"}
    number, size = methods["gmp"]
    assert (told[number, "1"], told[number, "5"]) == ("", f"{size}.0")
