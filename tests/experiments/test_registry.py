"""Experiments by name, and one line for every way not to find one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from experiments import BUILT_IN, Experiment, find

SOURCE = """
from dataclasses import dataclass

import torch

from experiments import Data, Experiment, Recipe, Split


@dataclass
class Size:
    features: int


def load(data_dir):
    part = Split(torch.zeros(4, Size(3).features), torch.zeros(4).long())
    return Data(part, part, part)


mine = Experiment("mine", load, lambda: torch.nn.Linear(3, 2), Recipe(1, 2))
other = Experiment("other", load, lambda: torch.nn.Linear(3, 2), Recipe(1, 2))
number = 7
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "my_experiments.py"
    path.write_text(SOURCE)
    return path


def one_line(name: str) -> str:
    """The message of the ValueError, which must be one line."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is what is tested
        find(name)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in(name: str) -> None:
    experiment = find(name)
    assert isinstance(experiment, Experiment)
    assert experiment.name == name
    assert BUILT_IN[name][2]


def test_from_a_file(source: Path) -> None:
    experiment = find(f"{source}:mine")
    assert experiment.name == "mine"
    assert experiment.load(None).train.x.shape == (4, 3)


def test_from_a_file_in_the_current_folder(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    assert find("my_experiments.py:other").name == "other"


def test_from_a_module(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = source.parent / "a_package_for_the_registry"
    package.mkdir()
    source.rename(package / "inside.py")
    monkeypatch.syspath_prepend(str(source.parent))
    assert find("a_package_for_the_registry.inside:mine").name == "mine"
    assert "has no experiment 'theirs': it has mine, other" in one_line("a_package_for_the_registry.inside:theirs")


def test_file_does_not_take_the_place_of_a_module_of_its_name(source: Path) -> None:
    import json

    taken = source.with_name("json.py")
    source.rename(taken)
    assert find(f"{taken}:mine").name == "mine"
    assert sys.modules["json"] is json
    taken.write_text("raise RuntimeError('broken')")
    one_line(f"{taken}:mine")
    assert sys.modules["json"] is json


@pytest.mark.parametrize("name", ["", "imagenet", "a.module", ":mine", "file.py:", "file.py"])
def test_unknown_names_are_told_what_is_accepted(name: str) -> None:
    message = one_line(name)
    assert message.startswith(f"unknown experiment {name!r}")
    for accepted in (*BUILT_IN, "path/to/file.py:name", "package.module:name"):
        assert accepted in message


def test_missing_file(tmp_path: Path) -> None:
    assert one_line(f"{tmp_path}/none.py:mine") == f"no file {tmp_path}/none.py to read an experiment from"


def test_file_without_the_experiment(source: Path) -> None:
    for attribute in ("theirs", "number", "load"):
        message = one_line(f"{source}:{attribute}")
        assert message == f"{source} has no experiment {attribute!r}: it has mine, other"
    source.write_text("")
    assert one_line(f"{source}:mine").endswith("it has none")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def f(:", "SyntaxError"),
        ("import there_is_no_such_module", "ModuleNotFoundError: No module named 'there_is_no_such_module'"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
    ],
)
def test_file_that_cannot_be_imported(source: Path, text: str, reason: str) -> None:
    source = source.rename(source.with_name(f"broken_{reason[:6].lower()}.py"))
    source.write_text(text)
    before = set(sys.modules)
    message = one_line(f"{source}:mine")
    assert message.startswith(f"{source} cannot be imported: {reason}")
    assert not set(sys.modules) - before


@pytest.mark.parametrize("name", ["there.is.no.such", "json.nothing", ".relative", "a b"])
def test_module_that_cannot_be_imported(name: str) -> None:
    assert one_line(f"{name}:mine").startswith(f"module {name} cannot be imported: ")
