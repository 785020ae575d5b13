"""Wrong use: one line that says what is wrong and what is accepted, exit code 2, nothing written."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

from tests.helpers.folders import tree
from tune_sparsity.tuner.cli import main

SPACE = "method: lpss\nparameters:\n  p: {type: float, low: 1.1, high: 1.9}\n  final_sparsity: target\n"
NETWORK = """
import torch
from tune_sparsity import Experiment, Recipe
mine = Experiment("mine", print, torch.nn.Linear(4, 2), Recipe(1, 2))
"""

# (arguments, files to write first, texts in the error message)
CASES: dict[str, tuple[list[str], dict[str, str], list[str]]] = {
    "no target": ([], {}, ["--target", "missing"]),
    "target of one": (["--target", "1"], {}, ["--target", "[0, 1)"]),
    "negative target": (["--target", "-0.1"], {}, ["--target", "[0, 1)"]),
    "target in per cent": (["--target", "90"], {}, ["--target", "[0, 1)"]),
    "target no number": (["--target", "high"], {}, ["--target", "high", "[0, 1)"]),
    "target not a number": (["--target", "nan"], {}, ["--target", "[0, 1)"]),
    "target infinite": (["--target", "inf"], {}, ["--target", "[0, 1)"]),
    "no trials": (["--target", ".9", "--trials", "0"], {}, ["--trials", "1"]),
    "negative trials": (["--target", ".9", "--trials", "-3"], {}, ["--trials"]),
    "half a trial": (["--target", ".9", "--trials", "2.5"], {}, ["--trials", "whole number"]),
    "no epochs": (["--target", ".9", "--epochs", "0"], {}, ["--epochs"]),
    "no concurrency": (["--target", ".9", "--concurrency", "0"], {}, ["--concurrency"]),
    "negative seed": (["--target", ".9", "--seed", "-1"], {}, ["--seed"]),
    "no worker": (["--target", ".9", "--workers-per-trial", "0"], {}, ["--workers-per-trial", "1"]),
    "more workers than examples": (
        ["--target", ".9", "--workers-per-trial", "17"],
        {},
        ["--workers-per-trial 17", "digits has 32 examples", "at most 16"],
    ),
    "workers that share a GPU": (
        ["--target", ".9", "--workers-per-trial", "2", "--gpus-per-trial", "0.5"],
        {},
        ["--workers-per-trial 2", "--gpus-per-trial 0 or 1"],
    ),
    "no CPU": (["--target", ".9", "--cpus-per-trial", "0"], {}, ["--cpus-per-trial"]),
    "bad GPUs": (["--target", ".9", "--gpus-per-trial", "some"], {}, ["--gpus-per-trial", "auto"]),
    "one and a half GPUs": (["--target", ".9", "--gpus-per-trial", "1.5"], {}, ["--gpus-per-trial", "whole number"]),
    "an argument that begins with =": (["resume", "s", "=x"], {}, ["unrecognized arguments: =x (tune-sparsity resume"]),
    "an empty argument": (["resume", "s", ""], {}, ["unrecognized arguments"]),
    "unknown sampler": (["--target", ".9", "--sampler", "tpee"], {}, ["did you mean tpe", "nsgaii"]),
    "sampler that cannot": (
        ["--target", ".9", "--sampler", "cmaes", "--method", "lpss,rigl"],
        {},
        ["cmaes", "several methods", "tpe"],
    ),
    "sampler without fronts": (["--front", ".5:.9", "--sampler", "cmaes"], {}, ["cmaes", "several sparsities", "tpe"]),
    "a space of samplers": (["list", "samplers", "--show", "tpe"], {}, ["--show", "spaces"]),
    "an unknown space to show": (["list", "spaces", "--show", "lpps"], {}, ["lpps", "did you mean lpss"]),
    "unknown scheduler": (["--target", ".9", "--scheduler", "ashaa"], {}, ["did you mean asha"]),
    "unknown method": (
        ["--target", ".9", "--method", "lpps"],
        {},
        ["--method: unknown method 'lpps' (did you mean lpss"],
    ),
    "no whole number": (["--target", ".9", "--trials", "zero"], {}, ["--trials 'zero': it should be a whole number"]),
    "method twice": (["--target", ".9", "--method", "lpss,lpss"], {}, ["twice"]),
    "unknown experiment": (["--target", ".9", "--experiment", "digit"], {}, ["did you mean digits", "mnist"]),
    "file without a name": (["--target", ".9", "--experiment", "mine.py"], {}, ["give the name", "mine.py:NAME"]),
    "no experiment file": (["--target", ".9", "--experiment", "no.py:x"], {}, ["no.py"]),
    "no such module": (["--target", ".9", "--experiment", "no_such_module:x"], {}, ["no_such_module"]),
    "experiment file broken": (["--target", ".9", "--experiment", "e.py:x"], {"e.py": "1/0"}, ["ZeroDivisionError"]),
    "nothing of that name": (["--target", ".9", "--experiment", "e.py:x"], {"e.py": "y = 1"}, ["e.py", "'x'"]),
    "network for a function": (
        ["--target", ".9", "--experiment", "e.py:mine"],
        {"e.py": NETWORK},
        ["e.py:mine", "model is a network", "the function that makes one"],
    ),
    "unknown space": (["--target", ".9", "--space", "lpsss"], {}, ["did you mean lpss"]),
    "no space file": (["--target", ".9", "--space", "no.yaml"], {}, ["no.yaml", "cannot be read"]),
    "space not YAML": (["--target", ".9", "--space", "s.yaml"], {"s.yaml": "a: 1\nb: [1,\n"}, ["s.yaml:3"]),
    "space of a list": (["--target", ".9", "--space", "s.yaml"], {"s.yaml": "- 1\n"}, ["s.yaml:1", "mapping"]),
    "empty space": (["--target", ".9", "--space", "s.yaml"], {"s.yaml": ""}, ["s.yaml:1", "empty"]),
    "space without p": (
        ["--target", ".9", "--space", "s.yaml"],
        {"s.yaml": "method: lpss\nparameters:\n  final_sparsity: target\n"},
        ["s.yaml:2", "'p'"],
    ),
    "space's bounds swapped": (
        ["--target", ".9", "--space", "s.yaml"],
        {"s.yaml": SPACE.replace("low: 1.1", "low: 1.95")},
        ["s.yaml:3", "above"],
    ),
    "space beyond p": (
        ["--target", ".9", "--space", "s.yaml"],
        {"s.yaml": SPACE.replace("1.9", "2.9")},
        ["s.yaml:3", "p = 2.9", "[1.02, 2]"],
    ),
    "space's unknown parameter": (
        ["--target", ".9", "--space", "s.yaml"],
        {"s.yaml": SPACE + "  moment: 0.9\n"},
        ["s.yaml:5", "did you mean momentum"],
    ),
    "space with a key twice": (
        ["--target", ".9", "--space", "s.yaml"],
        {"s.yaml": SPACE + "  p: 1.2\n"},
        ["s.yaml:5", "twice"],
    ),
    "space of another type": (
        ["--target", ".9", "--space", "s.yaml"],
        {"s.yaml": SPACE.replace("float", "flaot")},
        ["s.yaml:3", "float, int, categorical, fixed"],
    ),
    "space that runs code": (
        ["--target", ".9", "--space", "s.yaml"],
        {"s.yaml": "method: !!python/object/apply:os.system ['touch x']\n"},
        ["s.yaml:1"],
    ),
    "no config file": (["--config", "no.yaml"], {}, ["no.yaml", "cannot be read"]),
    "config not YAML": (["--config", "c.yaml"], {"c.yaml": "target: 0.9\ntrials: {\n"}, ["c.yaml:3"]),
    "config's wrong value": (
        ["--config", "c.yaml"],
        {"c.yaml": "target: 0.9\ntrials: many\n"},
        ["c.yaml:2", "--trials"],
    ),
    "config's unknown key": (
        ["--config", "c.yaml"],
        {"c.yaml": "target: 0.9\nsmapler: tpe\n"},
        ["c.yaml:2", "sampler"],
    ),
    "config a folder": (["--config", "."], {}, ["cannot be read"]),
    "unknown option": (["--target", ".9", "--trails", "3"], {}, ["--trails", "did you mean --trials?"]),
    "unknown option of export": (
        ["export", "a", "--format", "onnx", "--netwrok", "best"],
        {},
        ["did you mean --network?", "tune-sparsity export --help"],
    ),
    "option without value": (["--target"], {}, ["--target"]),
    "stray word": (["--target", ".9", "digits"], {}, ["digits"]),
    "unknown command": (["resum", "x"], {}, ["did you mean resume"]),
    "unknown list": (["list", "sampler"], {}, ["did you mean samplers"]),
    "bad budget": (["--target", ".9", "--time-budget", "soon"], {}, ["--time-budget", "30m"]),
    "no budget": (["--target", ".9", "--time-budget", "0s"], {}, ["--time-budget"]),
    "study that is a path": (["--target", ".9", "--study", "../up"], {}, ["--study", "letters"]),
    "other object storage": (["--target", ".9", "--storage", "gs://bucket"], {}, ["--storage", "s3://BUCKET"]),
    "file store": (["--target", ".9", "--tracking-uri", "file:///tmp/mlruns"], {}, ["--tracking-uri", "sqlite"]),
    "storage in a file": (["--target", ".9", "--storage", "f/in"], {"f": "a file"}, ["--storage", "cannot write"]),
    "read-only storage": (["--target", ".9", "--storage", "/proc/studies"], {}, ["/proc/studies", "cannot write"]),
    "study that exists": (["--target", ".9", "--study", "a", "--storage", "."], {"a/x": ""}, ["resume a", "--study"]),
    "study to resume is none": (["resume", "a"], {}, ["no study 'a'"]),
    "method of another space": (
        ["--target", ".9", "--space", "s.yaml"],
        {"s.yaml": SPACE.replace("method: lpss", "method: rig")},
        ["s.yaml:1", "lpss"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_wrong_use_prints_one_line_and_writes_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, files, said = CASES[name]
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    before = tree(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    for text in said:
        assert text in printed.err
    assert tree(tmp_path) == before


def test_data_that_cannot_be_downloaded_are_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # No proxy listens on this port, so a download fails as on a machine without a network.
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # urlopen keeps an opener with the former proxies
    assert main(["--target", "0.9", "--experiment", "fashion-mnist", "--data-dir", "nowhere"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--data-dir" in line
    assert "FashionMNIST" in line
    assert not any(tmp_path.iterdir())


def test_an_address_without_a_cluster_is_wrong_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "somewhere"):
        assert main(["--target", "0.9", "--address", address]) == 2
        printed = capsys.readouterr().err
        assert address in printed
        assert printed.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["experiments", "methods", "spaces", "samplers"])
def test_the_list_command_prints_names_that_the_options_accept(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", kind]) == 0
    names = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    expected = {
        "experiments": {"digits", "mnist", "fashion-mnist"},
        "methods": {"lpss"},
        "spaces": {"lpss"},
        "samplers": {"tpe", "gp", "nsgaii", "qmc", "random"},
    }
    assert names >= expected[kind]


@pytest.mark.parametrize("arguments", [["--target", "0.9"], ["doctor"], ["resume", "x"]])
def test_an_unsupported_operating_system_is_reported_in_one_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.platform", "win32")
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "win32" in line
    assert "Linux or macOS" in line
    assert list(tmp_path.iterdir()) == []
