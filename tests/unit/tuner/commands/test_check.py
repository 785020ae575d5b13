"""The command `tune-sparsity check`, and the quick checks that run at the start of every study."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tune_sparsity.experiments.checks import CHECKS
from tune_sparsity.tuner.cli import main
from tune_sparsity.tuner.config.study_config import make_config
from tune_sparsity.tuner.driver.prepare import prepare

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
# (old text in SOUND, new text, texts in the error message of the study)
STUDIES = {
    "outputs": ("nn.Linear(8, 12)", "nn.Linear(9, 12)", ["mine.py:mine", "outputs", "float32 (4, 8)", "check"]),
    "prunable": ("nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)", "nn.BatchNorm1d(8)", ["nothing to prune"]),
    "labels": ("nn.Linear(12, 3)", "nn.Linear(12, 2)", ["labels 0..2", "2 outputs"]),
    "metric": ("Recipe(2, 16)", "Recipe(2, 16), metric=lambda o, t: o.sum()", ["one score for each example"]),
    "metric of all": ("Recipe(2, 16)", "Recipe(2, 16), metric=Metric('m', lambda o, t: o.mean(0))", ["m cannot be"]),
    "metric of NaN": ("Recipe(2, 16)", "Recipe(2, 16), metric=Metric('m', lambda o, t: 0 * 1e999)", ["m is nan"]),
    "name of a metric": ("Recipe(2, 16)", "Recipe(2, 16), metric=Metric('RMSE', load)", ["macro_f1", "mine.py:16"]),
    "no direction": ("Recipe(2, 16)", "Recipe(2, 16), metric=UNKNOWN", ["PearsonCorrCoef", "maximize=..."]),
    "loss": ("Recipe(2, 16)", "Recipe(2, 16), loss=lambda o, t: 1 / 0", ["ZeroDivisionError", "mine.py:16"]),
    "load raises": ("    g = ", "    open('/no/such/file')\n    g = ", ["FileNotFoundError", "mine.py:7"]),
    "load exits": ("    g = ", "    raise SystemExit\n    g = ", ["loading the data", "SystemExit", "mine.py:7"]),
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


def test_check_exits_with_0_for_a_valid_experiment(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "mine.py:mine"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", check.name] for check in CHECKS]
    # The network has 132 weights and 15 biases, so 90% of the weights are .9 x 132/147 = 80.8% of the parameters.
    shares = "90.0% of all weight matrices and 80.8% of all parameters"
    assert f"ok       prunable      90% of the prunable weights are {shares}" in lines
    assert printed.err == f"mine.py:mine is valid: {len(CHECKS)} ok\n"
    assert [path.name for path in folder.iterdir()] == ["mine.py"]


def test_a_fault_gives_exit_code_1_and_says_how_to_mend_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, "nn.Linear(12, 3)", "nn.Dropout(0.5), nn.Linear(12, 2)")
    assert main(["check", "mine.py:mine"]) == 1
    printed = capsys.readouterr()
    assert "failed   labels        the train split has labels 0..2, and the network 2 outputs" in printed.out
    assert "skipped  steps" in printed.out
    assert "is not valid: " in printed.err


def test_check_exits_with_0_if_there_are_only_warnings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, "torch.eye(3, 8)[y]", "1000 * torch.eye(3, 8)[y]")
    assert main(["check", "mine.py:mine"]) == 0
    assert "warning  inputs" in capsys.readouterr().out


def test_check_writes_its_results_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, "split(30), split(30)", "split(30), split(0)")
    assert main(["check", "mine.py:mine", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["experiment"] == "mine.py:mine"
    assert document["sound"] is False
    assert [one["check"] for one in document["checks"]] == [check.name for check in CHECKS]
    assert {one["check"]: one["level"] for one in document["checks"]}["data"] == "failed"


def test_check_reports_the_line_of_an_error_in_the_load_function(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
def test_check_exits_with_2_if_it_has_nothing_to_check(
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


READS = """
import json, os
import numpy as np
from pathlib import Path
HERE = Path(__file__).parent
TOP = (HERE / "top.txt").read_text()

def sizes():
    with open(HERE / "sizes.json", "rb") as file:
        return json.load(file)

def prepare(x):
    return x - torch.from_numpy(np.load(HERE / "deep" / "mean.npy")).to(x.device)
"""


def reading(folder: Path, files: tuple[str, ...] = ()) -> None:
    """Write an experiment that reads files in its own folder: when it is imported, and in `load`, `model` and
    `prepare`."""
    (folder / "top.txt").write_text("")
    (folder / "sizes.json").write_text("12")
    (folder / "data.csv").write_text("")
    (folder / "deep").mkdir()
    np.save(folder / "deep" / "mean.npy", np.zeros(8, np.float32))
    text = SOUND.replace("def load(data_dir):", READS + "\ndef load(data_dir):\n    open(HERE / 'data.csv').close()")
    text = text.replace("nn.Linear(8, 12)", "nn.Linear(8, sizes())")
    text = text.replace("Recipe(2, 16)", f"Recipe(2, 16), prepare=prepare, files={files}")
    (folder / "mine.py").write_text(text)


def told_of_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["check", f"{folder}/mine.py:mine"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " files " in line]
    return line


def test_files_that_are_read_and_not_declared_are_a_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reading(folder)
    assert told_of_files(folder, capsys) == (
        "warning  files         the code reads deep/mean.npy, sizes.json, top.txt, but workers on other machines "
        "and the model in MLflow do not get these files: declare them, "
        "Experiment(..., files=('deep/mean.npy', 'sizes.json', 'top.txt',))"
    )


def test_check_does_not_warn_of_declared_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reading(folder, ("*.json", "top.txt", "deep", "data.csv"))
    assert told_of_files(folder, capsys).startswith("ok ")


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ("memory", "workers get the loaded data, but not these files. To send them with the code, declare them"),
        ("files", "other machines may lack these files. Put them into --data-dir on each machine, or declare them"),
    ],
)
def test_the_advice_about_undeclared_data_files_depends_on_the_type_of_the_data(
    of: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reading(folder, ("*.json", "top.txt", "deep"))
    text = (folder / "mine.py").read_text()
    if of == "files":
        text = text.replace("return Data(", "return Data(*(torch.utils.data.TensorDataset(*one) for one in (").replace(
            "split(30))\n", "split(30))))\n"
        )
    (folder / "mine.py").write_text(text)
    assert told_of_files(folder, capsys) == (
        f"warning  files         load reads data.csv: {said}, Experiment(..., files=('data.csv',))"
    )


def test_a_study_does_not_warn_of_files_in_the_data_folder(folder: Path) -> None:
    reading(folder, ("*.json", "top.txt", "deep"))
    (folder / "data").mkdir()
    (folder / "data.csv").rename(folder / "data" / "data.csv")
    text = (folder / "mine.py").read_text().replace("HERE / 'data.csv'", "data_dir / 'data.csv'")
    (folder / "mine.py").write_text(text)
    options = {"target": 0.5, "experiment": "mine.py:mine", "storage": folder, "data_dir": folder / "data"}
    assert prepare(make_config(options).resolved()).warnings == ()


LOOP = (
    SOUND
    + """
from pathlib import Path
BESIDE = Path(__file__).with_name

def loop(trial):
    words = BESIDE("words.txt").read_text(), open(trial.data_dir / "more.csv").read()
    net = nn.Sequential(nn.Embedding(8, 12), nn.Flatten(), nn.Linear(96, 4), nn.Linear(4, 3))
    x, y = torch.arange(64).reshape(8, 8) % 8, torch.arange(8) % 3
    sparse = trial.sparsify(net, total_steps=2)
    for _ in trial.epochs(2):
        sparse.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        sparse.step()
        trial.report(lambda: 0.5)
"""
)


def test_a_study_of_a_training_loop_gives_the_same_warnings_as_check(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mine.py").write_text(LOOP)
    (folder / "words.txt").write_text("")
    (folder / "data").mkdir()
    (folder / "data" / "more.csv").write_text("")
    options = {"target": 0.5, "experiment": "mine.py:loop", "storage": folder, "data_dir": folder / "data"}
    prepared = prepare(make_config(options).resolved())
    told = {finding.check: finding.text for finding in prepared.warnings}
    assert list(told) == ["prunable", "files"]
    assert told["prunable"] == (
        "90% of the prunable weights are 72.4% of all weight matrices and 71.4% of all parameters; "
        "these weight matrices stay dense: 0.weight 19.5% (an embedding)"
    )
    assert told["files"].startswith("the code reads words.txt, but workers")
    assert told["files"].endswith("declare them, loop.files = ('words.txt',)")
    assert main(["check", "mine.py:loop", "--data-dir", "data"]) == 0
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert {(level, text) for level, name, text in lines if name in told} == {("warning", one) for one in told.values()}


def test_check_finds_undeclared_files_through_a_symbolic_link(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reading(folder, ("top.txt", "deep"))
    (folder / "link").symlink_to(folder)
    assert "files=('sizes.json',)" in told_of_files(folder / "link", capsys)


def test_a_study_gives_the_warnings_of_check(folder: Path) -> None:
    reading(folder, ("*.json", "deep"))
    text = (folder / "mine.py").read_text()
    text = text.replace("torch.eye(3, 8)[y]", "1000 * torch.eye(3, 8)[y]").replace(
        "    return nn.Seq", "    net = nn.Seq"
    )
    text = text.replace("mine = Exp", "    net[1].spare = nn.Embedding(5, 7)\n    return net\n\nmine = Exp")
    (folder / "mine.py").write_text(text)
    prepared = prepare(make_config({"target": 0.5, "experiment": "mine.py:mine", "storage": folder}).resolved())
    told = {finding.check: finding.text for finding in prepared.warnings}
    assert list(told) == ["prunable", "inputs", "files"]
    assert "spare.weight 21.0% (an embedding)" in told["prunable"]
    assert told["inputs"].startswith("the inputs reach ")
    assert "files=('top.txt',)" in told["files"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ("('none.json',)", "files: there is no file 'none.json' in "),
        ("('../other.json',)", "files: '../other.json' must lie in "),
        ("'sizes.json'", "its files must be names in a tuple"),
    ],
)
def test_a_wrong_declaration_of_files_is_refused_in_one_line(
    files: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder, "Recipe(2, 16)", f"Recipe(2, 16), files={files}")
    assert main(["--target", "0.9", "--experiment", "mine.py:mine"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert [path.name for path in folder.iterdir()] == ["mine.py"]
