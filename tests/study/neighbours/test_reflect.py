"""Test studies with --group reflect, which trains the large network of a group again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.in_process import run_in_process
from tune_sparsity.experiments import find
from tune_sparsity.experiments.cascade import Cascade
from tune_sparsity.tuner.cli import main
from tune_sparsity.tuner.results import cascade
from tune_sparsity.tuner.results.networks import split_masks

OPTIONS: dict[str, Any] = {"front": "0.5:0.97", "trials": 6, "epochs": 4, "scheduler": "none", "group": "reflect"}


def result_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, experiment_file: Path) -> Path:
    """A study that keeps the retrained network, because a patch gives the groups without it the accuracy 0."""
    tell = cascade.group_document

    def worse(*args: Any) -> dict[str, Any]:
        document = tell(*args)
        return {**document, "groups": [{**group, "val_accuracy": 0.0} for group in document["groups"]]}

    storage = tmp_path_factory.mktemp("reflected") / "studies"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade, "group_document", worse)
        return run_in_process(storage, "again", experiment=f"{experiment_file}:steady", **OPTIONS)


@torch.no_grad()
def test_a_better_retrained_network_is_written_and_its_group_is_exported(
    kept: Path, experiment_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = result_of(kept)["group"]
    assert document["kind"] == "reflect"
    about, row = document["reflection"], document["groups"][-1]
    assert about["kept"] is True
    assert (row["name"], row["large"]) == ("group-reflected", about["large"])
    described = json.loads((kept / "best-reflected" / "model.json").read_text())
    assert described["trial"] == about["large"] == f"{about['large'][:5]}-reflected"
    assert (
        described["metrics"]["size_bytes"]
        + json.loads((kept / "front" / row["small"] / "model.json").read_text())["metrics"]["size_bytes"]
        == (row["size_bytes"])
    )
    experiment = find(f"{experiment_file}:steady")
    parts = []
    for folder in (kept / "front" / row["small"], kept / "best-reflected"):
        network = experiment.network_with(split_masks(load_file(folder / "model.safetensors"))[0])
        parts.append(lambda x, network=network: experiment.outputs(network, x))
    data, group = experiment.load(None), Cascade(parts[0], parts[1], row["theta"])
    for split, value in ((data.val, "val_accuracy"), (data.test, "test_accuracy")):
        assert row[value] == pytest.approx(float((group(split.x).argmax(1) == split.y).double().mean()), abs=1e-12)
    arguments = ["export", "again", "--storage", str(kept.parent), "--format", "packed", "--json"]
    with torch.enable_grad():
        assert main([*arguments, "--network", "group-reflected"]) == 0
    exported = json.loads(capsys.readouterr().out)
    assert exported["bytes"] == row["size_bytes"]
    with torch.enable_grad():
        assert main([*arguments, "--network", "best-reflected"]) == 0


def test_the_report_describes_the_retrained_network(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "again", "--storage", str(kept.parent)]) == 0
    page = next(kept.glob("report*.html")).read_text()
    assert "was trained again, with the hard examples of" in page
    assert "and is kept" in page


def test_a_retrained_network_is_kept_only_if_its_group_is_better(experiment_file: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "experiment": f"{experiment_file}:steady"}
    reflected = run_in_process(tmp_path / "s", "one", **options)
    plain = result_of(run_in_process(tmp_path / "s", "other", **{**options, "group": "cascade"}))["group"]
    found = result_of(reflected)["group"]
    about = found.pop("reflection")
    names = [group["name"] for group in plain["groups"]]
    assert found["groups"][: len(names)] == plain["groups"]
    assert about["against"] in names
    assert (reflected / "best-reflected").exists() == about["kept"] == (len(found["groups"]) > len(names))
    against = next(group for group in plain["groups"] if group["name"] == about["against"])
    assert about["kept"] == ((about["val_accuracy"] or 0.0) > against["val_accuracy"])


STREAM = """
import torch
from torch import nn
from torch.utils.data import IterableDataset
from tune_sparsity import Data, Experiment, Recipe, Split

class Stream(IterableDataset):
    def __iter__(self):
        return ((torch.zeros(4), 0) for _ in range(40))
    def __len__(self):
        return 40

val = Split(torch.randn(20, 4), torch.arange(20) % 3)
net = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
stream = Experiment("stream", lambda _: Data(Stream(), val, val), net, Recipe(1, 20))
"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "0.9"], "--group reflect: a group needs two networks"),
        (["--front", "0.5:0.9", "--workers-per-trial", "2"], "--group reflect trains in one process"),
        (
            ["--front", "0.5:0.9", "--experiment", "{own}:stream"],
            "--group reflect: stream has an IterableDataset as training data",
        ),
    ],
)
def test_the_option_group_reflect_refuses_unsupported_options_in_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_stream.py").write_text(STREAM)
    given = [one.format(own=tmp_path / "own_stream.py") for one in arguments]
    assert main([*given, "--group", "reflect", "--trials", "1"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert words in said.err
    assert not (tmp_path / "studies").exists()
