"""Test networks in wrappers: a study saves, logs and exports the plain network. TorchScript is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.helpers.command import run_command
from tests.helpers.in_process import exported, run_in_process
from tests.helpers.strange import EXPERIMENTS, WRAPPED
from tests.helpers.tracking import client
from tune_sparsity.experiments import Split, find
from tune_sparsity.tuner.cli import main
from tune_sparsity.tuner.results.export_formats import load_csr
from tune_sparsity.tuner.results.networks import split_masks
from tune_sparsity.tuner.tracking.pyfunc_model import load

NAMES = {"0.weight", "0.bias", "2.weight", "2.bias"}


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    file = tmp_path / "strange.py"
    file.write_text(EXPERIMENTS)
    return file


def accuracy(tensors: dict[str, Tensor], test: Split) -> float:
    """Return the accuracy of the network without wrappers. A wrapper that doubles the outputs would not change it."""
    network = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 3))
    network.load_state_dict(tensors)
    return float((network.eval()(test.x).argmax(1) == test.y).double().mean())


@pytest.mark.parametrize("name", WRAPPED)
def test_saved_and_exported_files_can_be_loaded_into_the_plain_network(
    name: str, strange: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = f"{strange}:{name}"
    folder = run_in_process(
        tmp_path / "studies", name, experiment=own, method="lpss,gmp", target=0.5, trials=2, epochs=2, scheduler="none"
    )
    assert "could not be made" not in capsys.readouterr().err
    experiment, best = find(own), json.loads((folder / "result.json").read_text())["best"]
    test = experiment.load(None).test
    tensors, masks = split_masks(load_file(folder / "best" / "model.safetensors"))
    assert set(masks) == {"0.weight", "2.weight"}
    assert accuracy(tensors, test) == pytest.approx(best["test_accuracy"])
    description = json.loads((folder / "best" / "model.json").read_text())
    assert set(description["sparsity_by_layer"]) == set(masks)
    assert not any("Optimized" in line or "DataParallel" in line for line in description["architecture"])
    logits = load(experiment, folder / "tracking" / "model").predict(test.x.numpy())
    assert float((logits.argmax(1) == test.y.numpy()).mean()) == pytest.approx(best["test_accuracy"])

    for kind in ("safetensors", "torch", "csr"):
        document = exported(tmp_path / "studies", name, kind, capsys)
        assert document["largest_difference"] == 0
        assert all(one["sparse"] is not None for one in document["latency_ms"])
        read = {"safetensors": load_file, "torch": torch.load, "csr": load_csr}[kind](document["file"])
        assert accuracy(read, test) == pytest.approx(best["test_accuracy"])
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    exported(tmp_path / "studies", name, "onnx", capsys)


@pytest.mark.parametrize("name", WRAPPED)
def test_all_checks_pass_on_networks_in_wrappers(name: str, strange: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{strange}:{name}"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {"ok"}


def test_a_compiled_network_in_bfloat16_trains_in_workers_and_is_logged(strange: Path, tmp_path: Path) -> None:
    study = ["--study", "fast", "--experiment", f"{strange}:compiled_half", "--target", "0.5"]
    more = ["--trials", "2", "--scheduler", "none", "--final-seeds", "2", "--json"]
    (tmp_path / "credentials").write_text("not to leave the machine")
    ran = run_command([*study, *more], tmp_path)
    assert ran.code == 0, ran.stderr
    assert "All other results are complete" not in ran.stderr
    assert "Not in MLflow" not in ran.stderr
    seeds = ran.result()["final_seeds"][0]["test_accuracy"]["seeds"]
    assert len(seeds) == 2
    assert min(seeds) > 0.5
    (model,) = client(tmp_path / "mlflow.db").search_logged_models([ran.result()["mlflow"]["experiment_id"]])
    assert model.status == "READY"
    folder = tmp_path / "studies" / "fast"
    assert set(split_masks(load_file(folder / "best" / "model.safetensors"))[0]) == NAMES
    assert (folder / "packed.csv").read_text() == f"file,bytes\nstrange.py,{strange.stat().st_size}\n"
    logged = Path(model.artifact_location.removeprefix("file://"))
    assert [path.name for path in logged.rglob("code/*")] == ["strange.py"]


def test_a_study_of_an_earlier_version_is_exported(
    strange: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the study's file, the names of the weights have the wrapper's prefix `_orig_mod.`."""
    from safetensors.torch import save_file

    folder = run_in_process(
        tmp_path / "studies", "old", experiment=f"{strange}:compiled", target=0.5, trials=1, epochs=2
    )
    file = folder / "best" / "model.safetensors"
    save_file({f"_orig_mod.{name}": tensor for name, tensor in load_file(file).items()}, file)
    capsys.readouterr()
    assert main(["export", "old", "--storage", str(tmp_path / "studies"), "--json", "--format", "csr"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(load_csr(document["file"])) == NAMES
    assert all(one["sparse"] is not None for one in document["latency_ms"])


def test_study_and_check_refuse_torchscript_networks_in_one_line(strange: Path, tmp_path: Path) -> None:
    own = f"{strange}:scripted"
    ran = run_command(["--target", "0.9", "--experiment", own], tmp_path)
    assert ran.code == 2
    (line,) = ran.stderr.splitlines()
    assert "TorchScript" in line
    assert "give the nn.Module that it was made from" in line
    assert not (tmp_path / "studies").exists()
    ran = run_command(["check", own], tmp_path)
    assert ran.code == 1
    (failed,) = [line for line in ran.stdout.splitlines() if line.startswith("failed")]
    assert "TorchScript" in failed
    assert ran.stderr.splitlines() == [f"{own} is not valid: 7 ok, 1 failed, 19 skipped"]
