"""Of a user's own files, only the imported modules and the declared files are sent to other machines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.own_code import FILES, imports_of_its_own, write_files
from tune_sparsity.experiments import find
from tune_sparsity.experiments.user_files import code_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a user's folder with an experiment and other files."""
    return write_files(FILES, tmp_path / "own")


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    with imports_of_its_own():
        yield


def test_an_experiment_is_sent_with_its_imported_modules_and_declared_files(folder: Path) -> None:
    code = code_of(find(f"{folder}/mine.py:mine"), f"{folder}/mine.py:mine")
    assert code is not None
    expected = {"mine.py", "blocks.py", "deeper/__init__.py", "deeper/parts.py", "lazy.py", "sizes.json"}
    assert set(code.files) == expected
    assert code.name == "mine.py:mine"
    assert code.is_here()
    assert code.folder() == folder


@pytest.mark.parametrize(
    ("files", "sent"),
    [
        ((), set()),
        (("sizes.json", "words"), {"sizes.json", "words/a.txt", "words/deep/b.bin"}),
        (("words/*.txt",), {"words/a.txt"}),
        (("words/**/*", ".secret"), {"words/a.txt", "words/deep/b.bin", ".secret"}),
    ],
)
def test_declared_files_of_any_size_are_sent_with_the_experiment(
    folder: Path, files: tuple[str, ...], sent: set[str]
) -> None:
    (folder / "words" / "deep").mkdir(parents=True)
    (folder / "words" / "a.txt").write_text("a")
    (folder / "words" / ".hidden").write_text("not to be sent")
    with (folder / "words" / "deep" / "b.bin").open("wb") as file:
        file.truncate(11 << 20)
    (folder / "mine.py").write_text(FILES["mine.py"].replace('files=("sizes.json",)', f"files={files}"))
    code = code_of(find(f"{folder}/mine.py:mine"), f"{folder}/mine.py:mine")
    assert code is not None
    assert {name for name in code.files if not name.endswith(".py")} == sent
    assert all(len(content) == (folder / name).stat().st_size for name, content in code.files.items())


@pytest.mark.parametrize("name", ["none.json", "../parcel", "/etc/hostname", "words"])
def test_a_declared_path_that_is_no_file_of_the_folder_is_refused(folder: Path, name: str) -> None:
    (folder.parent / "parcel").write_text("")
    (folder / "words").mkdir()
    (folder / "mine.py").write_text(FILES["mine.py"].replace("sizes.json", name))
    with pytest.raises(ValueError, match=f"^files: .*{name!r}"):
        code_of(find(f"{folder}/mine.py:mine"), f"{folder}/mine.py:mine")


def test_only_the_imported_modules_of_a_package_are_sent(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "pack/__init__.py": "",
        "pack/mine.py": "import importlib\nfrom .model import net\nfrom pack import tools\nimport pack.deep.core\n"
        "importlib.import_module('pack.plug')\nfrom tune_sparsity import Experiment, Recipe\n"
        "mine = Experiment('mine', None, net, Recipe(1, 1), files=('sizes.json',))\n",
        "pack/model.py": "def net():\n    from ..pack.lazy import late\n    return late()\n",
        "pack/lazy.py": "from . import table\ndef late():\n    return 1\n",
        "pack/table.py": "",
        "pack/tools/__init__.py": "from .one import *\n",
        "pack/tools/one.py": "",
        "pack/tools/two.py": "",
        "pack/deep/core.py": "import helper\n",  # a folder without __init__.py
        "pack/plug.py": "",
        "pack/sizes.json": "{}",
        "pack/secrets.json": "{}",
        "pack/tests/test_mine.py": "",
        "helper.py": "",
        "stranger.py": "",
    }
    monkeypatch.chdir(write_files(files, tmp_path / "place"))
    code = code_of(find("pack.mine:mine"), "pack.mine:mine")
    assert code is not None
    left = {"pack/tools/two.py", "pack/secrets.json", "pack/tests/test_mine.py", "stranger.py"}
    assert set(code.files) == set(files) - left
