"""Test studies with --group cascade (groups of two networks): results, exported files and MLflow's model."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.command import run_command
from tests.helpers.in_process import run_in_process
from tests.helpers.outcome import mlflow_runs
from tests.helpers.tracking import IDENTITY, InThread, client
from tune_sparsity.experiments import Experiment, find
from tune_sparsity.experiments.cascade import Cascade, margins
from tune_sparsity.sparsity.cost.writer import load
from tune_sparsity.tuner.cli import main
from tune_sparsity.tuner.results.export_formats import onnx_function, onnx_model
from tune_sparsity.tuner.results.networks import split_masks
from tune_sparsity.tuner.results.onnx_cascade import gated
from tune_sparsity.tuner.tracking.pyfunc_model import _load_pyfunc

OPTIONS: dict[str, Any] = {"trials": 8, "epochs": 6, "scheduler": "none", "group": "cascade"}


class Late:
    """A tracker that is made when a study first uses it. Before that, the study's folder does not exist."""

    def __init__(self, storage: Path) -> None:
        self._storage = storage

    @cached_property
    def _tracker(self) -> InThread:
        tracker = InThread(f"sqlite:///{self._storage.parent / 'mlflow.db'}", IDENTITY, self._storage / "g")
        tracker.start_study({}, {})
        return tracker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tracker, name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, experiment_file: Path) -> Path:
    """The folder of a study with --front and --group. MLflow has recorded the study."""
    storage = tmp_path_factory.mktemp("grouped") / "studies"
    own = f"{experiment_file}:steady"
    return run_in_process(storage, "g", front="0.5:0.97", experiment=own, tracker=Late(storage), **OPTIONS)


@pytest.fixture
def experiment(experiment_file: Path) -> Experiment:
    return find(f"{experiment_file}:steady")


def result_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


def answer_of(experiment: Experiment, state: dict[str, torch.Tensor]) -> Any:
    network = experiment.network_with(state)
    return lambda x: experiment.outputs(network, x)


def used(folder: Path, experiment: Experiment) -> tuple[dict[str, Any], Cascade]:
    """Return the last group in result.json, and a Cascade of the group's two networks."""
    group = result_of(folder)["group"]["groups"][-1]
    stored = (load_file(folder / "front" / group[part] / "model.safetensors") for part in ("small", "large"))
    return group, Cascade(*(answer_of(experiment, split_masks(one)[0]) for one in stored), group["theta"])


def exported(folder: Path, kind: str, capsys: pytest.CaptureFixture[str], name: str = "group") -> dict[str, Any]:
    arguments = ["export", "g", "--storage", str(folder.parent), "--network", name, "--format", kind, "--json"]
    with torch.enable_grad():
        code = main(arguments)
    said = capsys.readouterr()
    assert code == 0, said.err
    return dict(json.loads(said.out))


@torch.no_grad()
def test_result_json_has_the_true_costs_and_accuracies_of_a_group_of_networks(
    folder: Path, experiment: Experiment
) -> None:
    data, result = experiment.load(None), result_of(folder)
    group, function = used(folder, experiment)
    by_name = {one["trial"]: one for one in result["front"]["networks"]}
    small, large = by_name[group["small"]], by_name[group["large"]]
    assert small["macs"] < large["macs"]
    passed = float((margins(function.small(data.val.x)) < group["theta"]).double().mean())
    assert group["passed_on"] == pytest.approx(passed)
    assert group["expected_macs"] == pytest.approx(small["macs"] + passed * large["macs"])
    assert group["worst_macs"] == small["macs"] + large["macs"]
    assert group["size_bytes"] == small["size_bytes"] + large["size_bytes"]
    for split, value in ((data.val, "val_accuracy"), (data.test, "test_accuracy")):
        accuracy = float((function(split.x).argmax(1) == split.y).double().mean())
        assert group[value] == pytest.approx(accuracy, abs=1e-12)


@pytest.mark.parametrize("kind", ["packed", "torch", "csr"])
@torch.no_grad()
def test_an_exported_folder_computes_like_the_group(
    folder: Path, experiment: Experiment, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    group, function = used(folder, experiment)
    document = exported(folder, kind, capsys, group["name"])
    where = Path(document["file"])
    about = json.loads((where / "group.json").read_text())
    assert {name: about[name] for name in group} == group
    assert document["largest_difference"] == 0
    files = [where / about["files"][part] for part in ("small", "large")]
    assert document["bytes"] == sum(file.stat().st_size for file in files)
    assert sorted(path.name for path in where.iterdir()) == sorted(
        ["group.json", *(file.name for file in files), *(f"{file.name}.json" for file in files)]
    )
    if kind == "packed":
        assert document["bytes"] == group["size_bytes"]
        x = experiment.load(None).test.x
        again = Cascade(*(answer_of(experiment, load(file.read_bytes())) for file in files), about["theta"])
        assert torch.equal(again(x), function(x))


@pytest.mark.parametrize("size", [1, 120])
@torch.no_grad()
def test_an_onnx_graph_computes_the_outputs_of_the_group_at_any_batch_size(
    folder: Path, experiment: Experiment, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    _, function = used(folder, experiment)
    document = exported(folder, "onnx", capsys, used(folder, experiment)[0]["name"])
    assert Path(document["file"]).name == f"{document['network']}.onnx"
    run = onnx_function(Path(document["file"]))
    x = experiment.load(None).test.x
    for start in range(0, len(x), size):
        batch = x[start : start + size]
        assert torch.allclose(run(batch), function(batch), atol=1e-5)


class Convolution(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            *(torch.nn.Conv2d(1, width, 3, padding=1), torch.nn.BatchNorm2d(width), torch.nn.ReLU()),
            *(torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(width * 16, 3)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.float() / 255)


@pytest.mark.parametrize("passed", [0, 60, 256])
@torch.no_grad()
def test_the_onnx_graph_runs_if_no_some_or_all_rows_reach_the_large_network(passed: int, tmp_path: Path) -> None:
    """The networks are convolutional, with uint8 inputs. onnxruntime optimises the graph, and runs 1 and 256 rows."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    small, large = (Convolution(width).eval() for width in (2, 6))
    x = torch.randint(0, 256, (256, 1, 8, 8), dtype=torch.uint8)
    ordered = torch.cat([torch.zeros(1), margins(small(x)).sort().values, torch.full((1,), 2.0)])
    theta = float((ordered[passed] + ordered[passed + 1]) / 2)
    function = Cascade(small, large, theta)
    assert int((margins(small(x)) < theta).sum()) == passed
    models = [onnx_model(one, lambda network, inputs: network(inputs), x[:2]) for one in (small, large)]
    graph = gated(*models, theta)
    onnx.checker.check_model(graph)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(batch: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(["outputs"], {"inputs": batch.numpy()})[0])

    assert torch.allclose(run(x), function(x), atol=1e-5)
    for row in range(8):
        assert torch.allclose(run(x[row : row + 1]), function(x[row : row + 1]), atol=1e-5)


def test_mlflow_has_the_group_as_a_model_of_its_own(folder: Path, experiment: Experiment) -> None:
    result = result_of(folder)
    parents, _ = mlflow_runs(folder.parent.parent, result)
    (parent,) = [run for run in parents if run.info.run_id == result["mlflow"]["run_id"]]
    main_one = {one["name"]: one for one in result["group"]["groups"]}
    name = result["group"]["as_good_as_best"] or list(main_one)[-1]
    assert parent.data.metrics["group_expected_macs"] == pytest.approx(main_one[name]["expected_macs"])
    assert parent.data.metrics["group_test_accuracy"] == pytest.approx(main_one[name]["test_accuracy"])
    store = client(folder.parent.parent / "mlflow.db")
    models = {one.name: one for one in store.search_logged_models([result["mlflow"]["experiment_id"]])}
    assert set(models) == {"best", "group"}
    assert models["group"].tags["small"] == main_one[name]["small"]
    x = experiment.load(None).test.x
    with torch.no_grad():
        outputs = _load_pyfunc(str(folder / "tracking" / "group")).predict(x.numpy())
        files = (folder / "front" / main_one[name][part] / "model.safetensors" for part in ("small", "large"))
        parts = [answer_of(experiment, split_masks(load_file(file))[0]) for file in files]
        np.testing.assert_array_equal(outputs, Cascade(*parts, main_one[name]["theta"])(x).numpy())


def test_the_report_has_the_table_of_the_groups(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "g", "--storage", str(folder.parent)]) == 0
    page = next(folder.glob("report*.html")).read_text()
    assert "Groups of two networks" in page
    for group in result_of(folder)["group"]["groups"]:
        assert f"{group['worst_macs']:,}" in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "0.9"], "--group cascade: a group needs two networks"),
        (["--max-bytes", "10kB"], "--group cascade: a group needs two networks"),
        (["--front", "0.5:0.9", "--experiment", "{own}:loop"], "--group cascade: loop is a loop of your own"),
        (["--front", "0.5:0.9", "--experiment", "{own}:numbers"], "--group cascade: numbers is judged by rmse"),
        (["--front", "0.5:0.9", "--experiment", "{own}:boxes"], "--group cascade: boxes is no classification"),
    ],
)
def test_a_study_that_cannot_have_groups_is_refused_before_any_file_is_written(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "own_to_group.py"
    own.write_text(OWN)
    code = main([one.format(own=own) for one in arguments] + ["--group", "cascade", "--trials", "1"])
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert words in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "studies").exists()


OWN = """
import torch
from torch import nn
from torch.nn import functional as F
from tune_sparsity import Data, Experiment, Metric, Recipe, Split

x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
parts = [Split(x, x[:, :1].contiguous()) for _ in range(3)]
signs = [Split(x, (x[:, :1] > 0).float()) for _ in range(3)]
net = lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
rmse = Metric("rmse", lambda out, y: (out - y).square().mean().sqrt(), maximize=False)
numbers = Experiment("numbers", lambda _: Data(*parts), net, Recipe(1, 20), loss=F.mse_loss, metric=rmse)
right = lambda out, y: ((out > 0) == (y > 0)).float()[:, 0]
boxes = Experiment("boxes", lambda _: Data(*signs), net, Recipe(1, 20), loss=F.mse_loss, metric=right)

def loop(trial):
    model = net()
    sparse = trial.sparsify(model, total_steps=3)
    for epoch in trial.epochs(1):
        for _ in range(3):
            sparse.zero_grad()
            F.mse_loss(model(x), x[:, :1]).backward()
            sparse.step()
        trial.report(lambda: 0.5)
"""


def test_a_study_with_a_front_of_one_network_ends_without_groups(experiment_file: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "trials": 1}
    folder = run_in_process(tmp_path / "s", "one", front="0.5:0.9", experiment=f"{experiment_file}:steady", **options)
    result = result_of(folder)
    assert result["best"] is not None
    assert "group" not in result


@pytest.mark.slow
def test_an_ended_study_gets_groups_when_it_is_resumed(experiment_file: Path, tmp_path: Path) -> None:
    arguments = [
        "--front",
        "0.5:0.97",
        "--experiment",
        f"{experiment_file}:steady",
        "--study",
        "later",
        "--trials",
        "8",
    ]
    ran = run_command([*arguments, "--scheduler", "none", "--json"], tmp_path)
    assert ran.code == 0, ran.stderr
    assert "group" not in ran.result()
    again = run_command(["resume", "later", "--group", "cascade"], tmp_path)
    assert again.code == 0, again.stderr
    result = result_of(tmp_path / "studies" / "later")
    assert result["pareto"] == ran.result()["pareto"]
    assert result["group"]["groups"]
    lines = again.stdout.splitlines()
    heading = next(place for place, line in enumerate(lines) if line.startswith("group    small"))
    for row, group in zip(lines[heading + 1 :], result["group"]["groups"], strict=False):
        assert row.split()[:3] == [group["name"], group["small"], group["large"]]
    assert any(line.startswith("group ") and "of its multiply-adds" in line for line in lines)
    models = client(tmp_path / "mlflow.db").search_logged_models([result["mlflow"]["experiment_id"]])
    assert {one.name for one in models} == {"best", "group"}


def test_export_of_a_missing_group_names_the_option_that_adds_groups(
    experiment_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**OPTIONS, "group": None, "trials": 2, "epochs": 2}
    run_in_process(tmp_path / "s", "none", front="0.5:0.9", experiment=f"{experiment_file}:steady", **options)
    capsys.readouterr()
    arguments = ["export", "none", "--storage", str(tmp_path / "s"), "--network", "group", "--format", "packed"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "resume none --group cascade" in said
    assert said.count("\n") == 1
