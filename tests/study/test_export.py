"""Test exported files: in every format they hold the network, and their reported sizes are right."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import tune_sparsity
from tests.helpers.in_process import run_in_process
from tune_sparsity.tuner.cli import main
from tune_sparsity.tuner.results.export_formats import Whole, clear_notes, csr_bytes, load_csr, save_csr
from tune_sparsity.tuner.results.inference_cost import sizes

EXPERIMENT = """
import torch
from torch import nn
from tune_sparsity.experiments import Data, Experiment, Recipe, Split

def load(data_dir):
    g = torch.Generator().manual_seed(0)
    means = torch.randint(0, 200, (3, 1, 8, 8), generator=g)
    def split(n):
        y = torch.randint(0, 3, (n,), generator=g)
        noise = torch.randint(0, 50, (n, 1, 8, 8), generator=g)
        return Split((means[y] + noise).to(torch.uint8), y)
    return Data(split(240), split(90), split(90), classes=("a", "b", "c"))

def network():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3),
    )

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 3))

def scale(x):
    return x.float() / 255 - 0.4

images = Experiment("images", load, network, Recipe(epochs=3, batch_size=30), prepare=scale)
dense_layers = Experiment("dense-layers", load, plain, Recipe(epochs=3, batch_size=30), prepare=scale)
"""


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ended studies: "images" of a convolutional network with uint8 inputs, and "gains" of linear layers, whose
    neurons had gains during the training."""
    cwd = tmp_path_factory.mktemp("export")
    (cwd / "own.py").write_text(EXPERIMENT)
    for study, experiment in (("images", "images"), ("gains", "dense_layers")):
        run_in_process(cwd / "studies", study, experiment=f"{cwd}/own.py:{experiment}", trials=2, epochs=3)
    return cwd / "studies"


def run(storage: Path, study: str, *more: str) -> int:
    return main(["export", study, "--storage", str(storage), *more])


@pytest.mark.parametrize("study", ["images", "gains"])
@pytest.mark.parametrize("kind", ["safetensors", "torch", "csr", "onnx"])
def test_an_exported_file_is_no_larger_than_dense_tensors_plus_overhead(
    storage: Path, study: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    path = tmp_path / f"net.{kind}"
    assert run(storage, study, "--format", kind, "--out", str(path), "--json") == 0
    said = json.loads(capsys.readouterr().out)
    description = json.loads((storage / study / "best" / "model.json").read_text())
    assert said["val_accuracy"] == pytest.approx(description["metrics"]["val_accuracy"], abs=1e-12)
    assert said["bytes"] == path.stat().st_size
    assert json.loads((tmp_path / f"net.{kind}.json").read_text()) == description
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, f"{path.name}.json"]

    stored = load_file(storage / study / "best" / "model.safetensors")
    plain = {name: tensor for name, tensor in stored.items() if not name.endswith(".mask")}
    if kind != "onnx":
        load = {"safetensors": load_file, "csr": load_csr, "torch": lambda p: torch.load(p, weights_only=True)}[kind]
        read = load(path)
        assert read.keys() == plain.keys()
        assert all(torch.equal(read[name], plain[name]) for name in plain)
        assert all(read[name].dtype == plain[name].dtype for name in plain)
    # Write the same network without zeros. CSR and ONNX files are compared with dense tensors in safetensors: without
    # zeros, CSR saves no bytes, and an ONNX file contains the tensors and a graph.
    full = {name: torch.randn_like(t) if t.is_floating_point() else t for name, t in plain.items()}
    dense = tmp_path / "dense"
    (torch.save if kind == "torch" else save_file)(full, dense)
    graph = 1_500 if kind == "onnx" else 300  # bytes, for the ten nodes of the graph or for names in a header
    assert path.stat().st_size <= dense.stat().st_size + graph


def test_the_gains_are_folded_into_ordinary_layers(storage: Path) -> None:
    names = {name for name in load_file(storage / "gains" / "best" / "model.safetensors") if not name.endswith("mask")}
    assert names == {"1.weight", "1.bias", "3.weight", "3.bias"}


def test_onnxruntime_runs_the_onnx_file_on_any_number_of_raw_inputs(storage: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    from tune_sparsity.experiments import find

    path = tmp_path / "net.onnx"
    assert run(storage, "images", "--format", "onnx", "--out", str(path)) == 0
    session = onnxruntime.InferenceSession(str(path))
    val = find(f"{storage.parent}/own.py:images").load(None).val
    for count in (1, 2, 90):
        (outputs,) = session.run(None, {"inputs": val.x[:count].numpy()})
        assert outputs.shape == (count, 3)
    reported = json.loads((storage / "images" / "best" / "model.json").read_text())["metrics"]["val_accuracy"]
    assert (outputs.argmax(1) == val.y.numpy()).mean() == pytest.approx(reported, abs=1e-9)


def test_an_onnx_file_says_nothing_of_the_machine_that_wrote_it(storage: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from tune_sparsity.experiments import find

    path = tmp_path / "net.onnx"
    assert run(storage, "images", "--format", "onnx", "--out", str(path)) == 0
    ours = path.read_bytes()
    # What the exporter itself writes of the same network.
    experiment = find(f"{storage.parent}/own.py:images")
    whole = Whole(experiment.outputs, experiment.model()).eval()
    torch.onnx.export(whole, (experiment.load(None).val.x[:2],), tmp_path / "plain.onnx", external_data=False)
    plain = (tmp_path / "plain.onnx").read_bytes()
    assert len(ours) < len(plain)
    package = str(Path(str(tune_sparsity.__file__)).parent)
    for words in ("site-packages", package, str(storage.parent), '.py"', "return self.network("):
        assert words.encode() not in ours
    assert package.encode() in plain

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    parts = [model, model.graph, *model.graph.node, *model.functions, *(n for f in model.functions for n in f.node)]
    parts += [*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer]
    assert not any(part.metadata_props or part.doc_string for part in parts)


def test_onnx_doc_strings_and_metadata_are_cleared_in_functions_and_subgraphs() -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import helper

    def noted() -> Any:
        node = helper.make_node("Identity", ["x"], ["y"], doc_string='File "/home/me/net.py", line 3')
        helper.set_metadata_props(node, {"stack": 'File "/home/me/net.py", line 3'})
        return node

    value = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1], doc_string="/home/me")
    branch = helper.make_graph([noted()], "branch", [], [value], doc_string="/home/me")
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    function = helper.make_function("own", "f", ["x"], ["y"], [noted()], [helper.make_opsetid("", 20)])
    model = helper.make_model(helper.make_graph([choice], "main", [], [value]), functions=[function])
    assert model.SerializeToString().count(b"/home/me") == 11
    clear_notes(model)
    assert b"/home/me" not in model.SerializeToString()
    assert [each.name for each in model.graph.node[0].attribute] == ["else_branch", "then_branch"]
    assert model.functions[0].node[0].op_type == "Identity"


def test_an_exported_file_has_the_permissions_of_result_json(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(storage, "images", "--format", "safetensors") == 0
    path = storage / "images" / "export" / "best.safetensors"
    assert path.stat().st_mode == (storage / "images" / "result.json").stat().st_mode
    text = capsys.readouterr().out
    assert str(path) in text
    for words in ("checked on the validation data", "bitmask and values", "csr", "zip", "batch 1 ", "batch 256"):
        assert words in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope", "--format", "csr"], ["no study 'nope'", "gains, images"]),
        (["images", "--format", "pickle"], ["unknown format 'pickle'", "safetensors, onnx, torch, csr"]),
        (["images", "--format", "csr", "--network", "best-0.9"], ["no network 'best-0.9'", "Its networks: best"]),
        (["images"], ["--format"]),
        (["images", "--format", "csr", "--out", "/proc/nowhere/net"], ["--out", "cannot be written"]),
    ],
)
def test_a_mistake_in_an_export_command_prints_one_line(
    storage: Path, arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *arguments, "--storage", str(storage)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert all(word in said.err for word in words)


def test_export_of_a_study_that_has_not_ended_is_refused(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = storage / "gains" / "result.json"
    text = result.read_text()
    result.unlink()
    try:
        assert run(storage, "gains", "--format", "csr") == 2
    finally:
        result.write_text(text)
    assert "has not ended" in capsys.readouterr().err


def test_a_network_that_does_not_have_its_reported_accuracy_is_not_exported(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = storage / "gains" / "best" / "model.safetensors"
    before = weights.read_bytes()
    broken = {name: -t if name == "3.weight" else t for name, t in load_file(weights).items()}
    save_file(broken, weights)
    try:
        assert run(storage, "gains", "--format", "torch", "--out", str(tmp_path / "net.pt")) == 1
    finally:
        weights.write_bytes(before)
    said = capsys.readouterr()
    assert "validation accuracy" in said.err
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_export_file_with_other_outputs_than_the_network_is_removed(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import tune_sparsity.tuner.results.export_formats as formats

    whole = formats.save_safetensors

    def wrong(tensors: dict[str, torch.Tensor], path: Path) -> None:
        whole({name: t * 1.001 if t.is_floating_point() else t for name, t in tensors.items()}, path)

    monkeypatch.setattr(formats, "save_safetensors", wrong)
    assert run(storage, "gains", "--format", "safetensors", "--out", str(tmp_path / "net")) == 1
    assert "computes something else" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_export_to_onnx_without_its_packages_says_how_to_install_them(storage: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('onnx', 'onnxruntime', 'onnxscript')));"
        "from tune_sparsity.tuner.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "export", "gains", "--storage", str(storage), "--format"]
    done = subprocess.run([*command, "onnx"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "pip install 'tune-sparsity[onnx]'" in done.stderr
    assert done.stderr.count("\n") == 1


@given(st.integers(1, 6), st.sampled_from([1, 3, 255, 256, 257, 300]), st.floats(0, 1), st.integers(0, 2**31 - 1))
def test_a_csr_file_is_read_back_with_equal_tensors(rows: int, columns: int, density: float, seed: int) -> None:
    import tempfile

    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight *= torch.rand(rows, columns, generator=generator) < density
    tensors = {"a.weight": weight, "b.weight": weight.clone().view(rows, columns, 1, 1), "bias": torch.arange(3)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net"
        save_csr(tensors, {"a.weight", "b.weight"}, path)
        read = load_csr(path)
        save_file(tensors, dense := Path(folder) / "dense")
        assert path.stat().st_size <= dense.stat().st_size + 100  # the file also has the metadata "format" and "csr"
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_format_sizes_count_the_stored_numbers_without_file_overhead() -> None:
    weight = torch.zeros(10, 40)
    weight[:, 3] = torch.arange(10) + 1.5
    tensors = {"w": weight, "bias": torch.ones(10)}
    found = sizes(tensors, {"w"})
    assert found["dense"] == 4 * 400 + 40
    assert found["bitmask_and_values"] == 50 + 10 * 4 + 40
    assert found["csr"] == 10 * (4 + 1) + 4 * 11 + 40 == csr_bytes(weight) + 40
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        file.writestr("x", weight.numpy().tobytes() + torch.ones(10).numpy().tobytes())
    with zipfile.ZipFile(archive) as file:
        assert found["zip"] == pytest.approx(file.getinfo("x").compress_size, abs=16)


def test_the_size_of_a_format_is_at_most_the_size_of_dense_storage() -> None:
    tensors = {"w": torch.randn(30, 30)}
    found = sizes(tensors, {"w"})
    assert found["dense"] == found["bitmask_and_values"] == found["csr"] == 3600
