"""`tune-sparsity check`, and the quick checks that every study begins with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tune_sparsity.experiments.checks import CHECKS
from tune_sparsity.tuner.cli import main

SOUND = """
import torch
from torch import nn
from tune_sparsity import Data, Experiment, Metric, Recipe, Split

def load(data_dir):
    g = torch.Generator().manual_seed(0)
    def split(n):
        y = torch.arange(n) % 3
        return Split(torch.randn(n, 8, generator=g) + 3 * torch.eye(3, 8)[y], y)
    return Data(split(96), split(30), split(30))

def model():
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))

mine = Experiment("mine", load, model, Recipe(2, 16))
"""
# A change of the file above, and what the line of the study must say.
STUDIES = {
    "outputs": ("nn.Linear(8, 12)", "nn.Linear(9, 12)", ["mine.py:mine", "outputs", "float32 (4, 8)", "check"]),
    "prunable": ("nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)", "nn.BatchNorm1d(8)", ["nothing to prune"]),
    "labels": ("nn.Linear(12, 3)", "nn.Linear(12, 2)", ["labels 0..2", "2 outputs"]),
    "metric": ("Recipe(2, 16)", "Recipe(2, 16), metric=lambda o, t: o.sum()", ["one score each"]),
    "metric of all": ("Recipe(2, 16)", "Recipe(2, 16), metric=Metric('m', lambda o, t: o.mean(0))", ["m cannot be"]),
    "metric of NaN": ("Recipe(2, 16)", "Recipe(2, 16), metric=Metric('m', lambda o, t: 0 * 1e999)", ["m is nan"]),
    "name of a metric": ("Recipe(2, 16)", "Recipe(2, 16), metric=Metric('RMSE', load)", ["macro_f1", "mine.py:16"]),
    "no direction": ("Recipe(2, 16)", "Recipe(2, 16), metric=UNKNOWN", ["PearsonCorrCoef", "maximize=..."]),
    "loss": ("Recipe(2, 16)", "Recipe(2, 16), loss=lambda o, t: 1 / 0", ["ZeroDivisionError", "mine.py:16"]),
    "load raises": ("    g = ", "    open('/no/such/file')\n    g = ", ["FileNotFoundError", "mine.py:7"]),
    "load exits": ("    g = ", "    raise SystemExit\n    g = ", ["do not load", "SystemExit", "mine.py:7"]),
    "load of another type": ("return Data(", "return (", ["return tune_sparsity.Data"]),
    "empty split": ("split(30), split(30)", "split(30), split(0)", ["test split is empty"]),
    "syntax": ("def load(data_dir):", "def load(data_dir:", ["SyntaxError", "mine.py:6"]),
    "missing name": ("Recipe(2, 16)", "recipe", ["NameError", "mine.py:16"]),
    "wrong recipe": ("Recipe(2, 16)", "Recipe(0, 16)", ["at least 1", "mine.py:16"]),
    "too few arguments": (", Recipe(2, 16)", "", ["TypeError", "recipe", "mine.py:16"]),
    "missing import": ("import torch\n", "import torch, no_such_thing\n", ["no_such_thing", "mine.py:2"]),
    "wrong type": ("mine = Experiment(", "mine = dict(name=", ["no experiment 'mine'", "a dict"]),
    "other name": ("mine = Exp", "yours = Exp", ["no experiment 'mine'", "it has yours"]),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    (tmp_path / "mine.py").write_text(SOUND)
    return tmp_path


def change(folder: Path, old: str, new: str) -> None:
    assert old in SOUND
    text = SOUND.replace(old, new).replace("UNKNOWN", "__import__('torchmetrics').PearsonCorrCoef()")
    if new.startswith("mine = dict"):
        text = text.replace('"mine", load, model, Recipe(2, 16)', '"mine"')
    (folder / "mine.py").write_text(text)


def test_a_sound_experiment_is_0(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "mine.py:mine"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", check.name] for check in CHECKS]
    assert printed.err == f"mine.py:mine is sound: {len(CHECKS)} ok\n"
    assert [path.name for path in folder.iterdir()] == ["mine.py"]


def test_a_fault_is_1_and_says_how_to_mend_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, "nn.Linear(12, 3)", "nn.Dropout(0.5), nn.Linear(12, 2)")
    assert main(["check", "mine.py:mine"]) == 1
    printed = capsys.readouterr()
    assert "failed   labels        the train split has labels 0..2, and the network 2 outputs" in printed.out
    assert "skipped  steps" in printed.out
    assert "is not sound: " in printed.err


def test_a_warning_is_0(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, "torch.eye(3, 8)[y]", "1000 * torch.eye(3, 8)[y]")
    assert main(["check", "mine.py:mine"]) == 0
    assert "warning  inputs" in capsys.readouterr().out


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, "split(30), split(30)", "split(30), split(0)")
    assert main(["check", "mine.py:mine", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["experiment"] == "mine.py:mine"
    assert document["sound"] is False
    assert [one["check"] for one in document["checks"]] == [check.name for check in CHECKS]
    assert {one["check"]: one["level"] for one in document["checks"]}["data"] == "failed"


def test_an_error_in_load_is_a_fault_with_its_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, *STUDIES["load raises"][:2])
    assert main(["check", "mine.py:mine"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed")]
    assert "FileNotFoundError" in line
    assert line.endswith("mine.py:7)")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "EXPERIMENT"),
        (["mine.py:theirs"], "it has mine"),
        (["none.py:mine"], "no file none.py"),
        (["digit"], "unknown experiment 'digit'"),
        (["mine.py:mine", "--target", "0.9"], "--target"),
        (["broken.py:mine"], "SyntaxError"),
        (["mnist", "--data-dir", "mine.py"], "mine.py"),
        (["uci-dna", "--data-dir", "nowhere"], "--data-dir"),
    ],
)
def test_where_there_is_nothing_to_check_it_is_2(
    arguments: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.py").write_text("def f(:\n")
    assert main(["check", *arguments]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_of_a_broken_experiment_does_not_begin(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, said = STUDIES[name]
    change(folder, old, new)
    assert main(["--target", "0.9", "--experiment", "mine.py:mine"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    for text in said:
        assert text in printed.err
    assert [path.name for path in folder.iterdir()] == ["mine.py"]
