"""Test that experiments are found by their names, and that the error for an unknown name is one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tune_sparsity.experiments import BUILT_IN, Experiment, find

SOURCE = """
from dataclasses import dataclass

import torch

from tune_sparsity.experiments import Data, Experiment, Recipe, Split


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
    """Return the message of the ValueError that `find` raises for a name. The message must be one line."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is what is tested
        find(name)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_experiment_is_found_by_its_name(name: str) -> None:
    experiment = find(name)
    assert isinstance(experiment, Experiment)
    assert experiment.name == name
    assert BUILT_IN[name][2]


@pytest.mark.parametrize(
    ("name", "epochs", "batch"),
    [
        ("mnist-wrn", 40, 256),
        ("fashion-mnist-wrn", 50, 256),
        ("cifar10", 250, 256),
        ("tiny-imagenet", 250, 256),
        ("uci-dna", 40, None),  # no batch size was published for the UCI data sets
        ("uci-mushroom", 20, None),
        ("uci-climate", 20, None),
    ],
)
def test_published_experiments_have_the_published_recipes(name: str, epochs: int, batch: int | None) -> None:
    recipe = find(name).recipe
    assert recipe.epochs == epochs
    assert batch in (None, recipe.batch_size)


def test_mnist_lenet5_has_the_431080_parameters_of_lenet_5_in_caffe() -> None:
    assert sum(one.numel() for one in find("mnist-lenet5").network().parameters()) == 431_080


def test_an_experiment_is_found_in_a_file(source: Path) -> None:
    experiment = find(f"{source}:mine")
    assert experiment.name == "mine"
    assert experiment.load(None).train.x.shape == (4, 3)


def test_an_experiment_is_found_in_a_file_of_the_current_folder(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    assert find("my_experiments.py:other").name == "other"


def test_an_experiment_is_found_in_a_module(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = source.parent / "a_package_for_the_registry"
    package.mkdir()
    source.rename(package / "inside.py")
    monkeypatch.syspath_prepend(str(source.parent))
    assert find("a_package_for_the_registry.inside:mine").name == "mine"
    assert "has no experiment 'theirs': it has mine, other" in one_line("a_package_for_the_registry.inside:theirs")


def test_an_experiment_file_does_not_replace_a_module_with_the_same_name(source: Path) -> None:
    import json

    taken = source.with_name("json.py")
    source.rename(taken)
    assert find(f"{taken}:mine").name == "mine"
    assert sys.modules["json"] is json
    taken.write_text("raise RuntimeError('broken')")
    one_line(f"{taken}:mine")
    assert sys.modules["json"] is json


@pytest.mark.parametrize("name", ["", "imagenet", "a.module", ":mine", "file.py:"])
def test_the_error_for_an_unknown_name_lists_the_accepted_names(name: str) -> None:
    message = one_line(name)
    assert message.startswith(f"unknown experiment {name!r}")
    for accepted in (*BUILT_IN, "path/to/file.py:name", "package.module:name"):
        assert accepted in message


def test_a_file_path_without_an_experiment_name_is_refused() -> None:
    assert one_line("file.py") == "file.py: give the name of an experiment or loop in the file, as file.py:NAME"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert one_line(f"{tmp_path}/none.py:mine") == f"there is no file {tmp_path}/none.py with an experiment"


def test_a_file_that_lacks_the_named_experiment_is_refused(source: Path) -> None:
    for attribute, but in (
        ("theirs", ""),
        ("number", ", but a int of that name"),
        ("Size", ", but a class of that name"),
    ):
        message = one_line(f"{source}:{attribute}")
        assert message == f"{source} has no experiment {attribute!r}{but}: it has mine, other"
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
def test_a_file_that_cannot_be_imported_is_refused_in_one_line(source: Path, text: str, reason: str) -> None:
    source = source.rename(source.with_name(f"broken_{reason[:6].lower()}.py"))
    source.write_text(text)
    before = set(sys.modules)
    message = one_line(f"{source}:mine")
    assert message.startswith(f"{source} cannot be imported: {reason}")
    assert message.endswith(f"({source}:1)")
    assert not set(sys.modules) - before


@pytest.mark.parametrize("name", ["there.is.no.such", "json.nothing", ".relative", "a b"])
def test_a_module_that_cannot_be_imported_is_refused_in_one_line(name: str) -> None:
    assert one_line(f"{name}:mine").startswith(f"module {name} cannot be imported: ")


def test_an_error_in_an_imported_neighbour_file_is_reported_with_its_line(source: Path) -> None:
    source.with_name("beside_it.py").write_text("import json\n\n\njson.loads('{')\n")
    source.write_text("x = 1\nimport beside_it\n")
    message = one_line(f"{source}:mine")
    assert message.startswith(f"{source} cannot be imported: JSONDecodeError: ")
    assert message.endswith(f"({source.with_name('beside_it.py')}:4)")
    assert "beside_it" not in sys.modules


def test_a_file_that_calls_sys_exit_is_refused_in_one_line(source: Path) -> None:
    source.write_text("import sys\nsys.exit('bye')\n")
    assert one_line(f"{source}:mine") == f"{source} cannot be imported: SystemExit: bye ({source}:2)"


def test_the_error_for_a_file_with_relative_imports_suggests_the_module_form(source: Path) -> None:
    source.write_text("from . import json\n")
    assert "package.module:name" in one_line(f"{source}:mine")


def test_files_in_different_folders_import_their_own_neighbour_modules(tmp_path: Path) -> None:
    found = []
    for number in (1, 2, 1):
        folder = tmp_path / str(number)
        folder.mkdir(exist_ok=True)
        (folder / "beside_them.py").write_text(f"name = 'from {number}'\n")
        (folder / "one.py").write_text(SOURCE.replace("import torch\n", "import torch\nimport beside_them\n", 1)
                                       .replace('"mine"', "beside_them.name"))  # fmt: skip
        found.append(find(f"{folder}/one.py:mine").name)
    assert found == ["from 1", "from 2", "from 1"]
    assert [sys.path.count(str(tmp_path / one)) for one in "12"] == [1, 1]


def test_an_installed_module_is_imported_before_a_neighbour_file_of_its_name(source: Path) -> None:
    source.with_name("sklearn.py").write_text("raise RuntimeError('not this one')")
    source.write_text("import sklearn\n" + SOURCE)
    assert find(f"{source}:mine").name == "mine"


def test_an_experiment_is_found_in_a_module_of_the_current_folder(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.rename(source.with_name("in_the_current_folder.py"))
    monkeypatch.chdir(source.parent)
    assert find("in_the_current_folder:mine").name == "mine"
