"""Test user folders with packages named like our packages: `experiments`, `sparsity`, and so on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command import run_command
from tune_sparsity.experiments import find

FILES = {
    "experiments/__init__.py": "from experiments.sizes import HIDDEN\n",
    "experiments/sizes.py": "HIDDEN = 7\n",
    "sparsity/__init__.py": "INPUTS = 5\n",
    "search_spaces.py": "EPOCHS = 2\n",
    "tuner.py": "OUTPUTS = 3\n",
    "mine.py": """
import importlib
import os
import sys

import torch
from torch import nn

import search_spaces
import tuner
from experiments import HIDDEN
from sparsity import INPUTS
from tune_sparsity import Data, Experiment, Recipe, Split


def load(data_dir):
    x = torch.arange(60.0 * INPUTS).view(60, INPUTS).sin()
    y = torch.arange(60) % tuner.OUTPUTS
    return Data(*(Split(x + i, y) for i in range(3)))


def model():
    check()
    return nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, tuner.OUTPUTS))


def check():
    '''No file is imported under two names, and these names are the user's.'''
    users = [importlib.import_module(name) for name in ("experiments", "sparsity", "search_spaces", "tuner")]
    names = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and name != "__main__":
            names.setdefault(os.path.realpath(file), set()).add(name)
    twice = [found for found in names.values() if len(found) > 1 and any("tune_sparsity" in name for name in found)]
    assert not twice, twice
    here = os.path.dirname(os.path.realpath(__file__))
    for module in users:
        assert os.path.realpath(module.__file__).startswith(here), module


mine = Experiment("mine", load, model, Recipe(search_spaces.EPOCHS, 12))
""",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with packages and modules named like ours."""
    for path, text in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


@pytest.mark.slow
def test_command_and_workers_import_user_packages_named_like_our_packages(folder: Path) -> None:
    arguments = ["--target", "0.5", "--experiment", "mine.py:mine", "--trials", "2", "--scheduler", "none"]
    ran = run_command([*arguments, "--study", "s", "--json"], folder)
    assert ran.code == 0, ran.stderr
    assert ran.result()["states"] == {"completed": 2, "pruned": 0, "failed": 0}


def test_a_python_process_imports_user_packages_named_like_our_packages(folder: Path) -> None:
    code = "import mine; from tune_sparsity import lpss; mine.model(); print(lpss(mine.model(), total_steps=9).zeros())"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["experiments", "sparsity", "search_spaces", "tuner"])
def test_an_import_name_of_an_earlier_version_gives_a_one_line_error(module: str, tmp_path: Path) -> None:
    file = tmp_path / "old.py"
    file.write_text(f"import torch\nfrom {module} import Something\n")
    with pytest.raises(ValueError, match="from tune_sparsity import") as caught:
        find(f"{file}:mine")
    told = f"{file}:2 imports {module}, which is part of tune_sparsity now: write `from tune_sparsity import ...`"
    assert str(caught.value) == told


def test_an_import_error_in_a_users_package_is_shown_unchanged(folder: Path) -> None:
    (folder / "wrong.py").write_text("from experiments import nothing\n")
    ran = run_command(["check", "wrong.py:mine"], folder)
    assert ran.code == 2
    assert "cannot import name 'nothing' from 'experiments'" in ran.stderr


def test_the_public_names_exist_and_the_import_loads_no_large_library() -> None:
    code = """
import sys
import tune_sparsity
heavy = {"torch", "numpy", "ray", "pandas", "optuna", "mlflow", "plotly"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert set(tune_sparsity.__all__) <= set(dir(tune_sparsity))
assert all(getattr(tune_sparsity, name) is not None for name in tune_sparsity.__all__)
assert not {"ray", "pandas"} & set(sys.modules)
from tune_sparsity import *
assert Experiment.__module__ == "tune_sparsity.experiments.base"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
