"""Test a study of a spiking network: its synaptic operations and spike rates, and the export of the network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.in_process import exported, run_in_process
from tests.helpers.outcome import trials_of
from tune_sparsity.experiments import find
from tune_sparsity.experiments.spiking.operations import activity
from tune_sparsity.tuner.results.export_formats import onnx_function
from tune_sparsity.tuner.results.networks import split_masks


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("spiking") / "studies"
    options = {"experiment": "digits-spiking", "method": "gmp,dense", "scheduler": "none", "trials": 4, "epochs": 2}
    return run_in_process(storage, "rows", target=0.7, **options)


def test_trials_csv_has_fewer_synaptic_operations_than_multiply_adds(study: Path) -> None:
    rows = {row["method"]: row for row in trials_of(study)}
    assert rows.keys() == {"gmp", "dense"}
    for row in rows.values():
        # A sequence has 8 steps, and each step uses each weight once.
        assert int(row["macs"]) == 8 * int(row["nonzero_weights"])
        assert 0 < int(row["syn_ops"]) < int(row["macs"])
    assert int(rows["gmp"]["syn_ops"]) < int(rows["dense"]["syn_ops"])


def test_the_reported_synaptic_operations_are_those_of_the_saved_network(study: Path) -> None:
    result = json.loads((study / "result.json").read_text())
    experiment = find("digits-spiking")
    network = experiment.network_with(split_masks(load_file(study / "best" / "model.safetensors"))[0])
    found = activity(experiment, network, experiment.load(None).val)
    assert found is not None
    assert found.synaptic_operations(result["best"]["macs"]) == result["best"]["syn_ops"]
    assert result["spike_rates"] == pytest.approx(dict(found.rates), abs=1e-4)
    assert json.loads((study / "best" / "model.json").read_text())["metrics"]["syn_ops"] == result["best"]["syn_ops"]


def test_the_saved_spiking_network_is_exported(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = exported(study.parent, "rows", "packed", capsys)
    assert packed["bytes"] == json.loads((study / "result.json").read_text())["best"]["size_bytes"]
    graph = onnx_function(Path(exported(study.parent, "rows", "onnx", capsys)["file"]))
    experiment = find("digits-spiking")
    network = experiment.network_with(split_masks(load_file(study / "best" / "model.safetensors"))[0])
    x = experiment.load(None).test.x[:37]
    with torch.no_grad():
        assert torch.allclose(graph(x), network(x), atol=1e-4)
