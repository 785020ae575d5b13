"""Which way the doors open: what each of the four packages may import, held for every file."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("sparsity", "search_spaces", "experiments", "tuner")
MAY_IMPORT = {
    "sparsity": {"sparsity"},
    "search_spaces": {"search_spaces", "sparsity"},
    "experiments": {"experiments", "sparsity"},
    "tuner": set(OURS),
}
ONLY_IN = {"ray": {"tuner"}, "mlflow": {"tuner"}, "optuna": {"tuner", "search_spaces"}}


def imported(source: str) -> set[str]:
    """The top-level packages that a source imports, anywhere in it; "." for relative imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else str(node.module).split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            found |= {str(arg.value).split(".")[0] for arg in node.args if isinstance(arg, ast.Constant)}
    return found


FILES = [
    pytest.param(package, path, id=str(path.relative_to(ROOT)))
    for package in OURS
    for path in sorted((ROOT / package).rglob("*.py"))
]


def test_imports_are_found_wherever_they_stand() -> None:
    source = (
        "import ray.tune as t\nfrom mlflow.x import y\ndef f():\n  import optuna\n  import_module('a')\nfrom . import z"
    )
    assert imported(source) == {"ray", "mlflow", "optuna", "."}
    assert imported("importlib.import_module('tune_sparsity.tuner.cli')") == {"tuner"}


def test_every_package_has_files() -> None:
    assert {param.values[0] for param in FILES} >= {"sparsity", "experiments"}


@pytest.mark.parametrize(("package", "path"), FILES)
def test_doors(package: str, path: Path) -> None:
    names = imported(path.read_text(encoding="utf-8"))
    assert names & set(OURS) <= MAY_IMPORT[package]
    for library, homes in ONLY_IN.items():
        assert library not in names or package in homes, f"{library} belongs in {homes}"
    if package == "sparsity":
        assert names <= {"sparsity", "torch", "numpy", *sys.stdlib_module_names}


BLOCKED = """
import sys

for name in {blocked}:
    sys.modules[name] = None  # to import it is an ImportError
    try:
        __import__(name + ".anything")
    except ImportError:
        continue
    raise SystemExit("the blocker lets " + name + " through")
"""


def run_blocked(blocked: tuple[str, ...], code: str, folder: Path) -> None:
    """Runs code in a fresh interpreter that cannot import `blocked`; fails with what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(blocked=blocked) + code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_sparsity_serves_alone(tmp_path: Path) -> None:
    blocked = ("ray", "optuna", "mlflow", "pandas", "plotly", "sklearn", "tuner", "experiments", "search_spaces")
    code = """
import torch
import tune_sparsity.sparsity
model = torch.nn.Sequential(torch.nn.Linear(9, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
sparse = sparsity.lpss(model, total_steps=3, sparsity=0.5)
for _ in range(3):
    sparse.zero_grad()
    model(torch.ones(4, 9)).square().sum().backward()
    sparse.step()
assert sparse.zeros() == (44, 88)
assert all(hasattr(sparsity, name) for name in sparsity.__all__)
"""
    run_blocked(blocked, code, tmp_path)


def test_experiments_need_no_search(tmp_path: Path) -> None:
    blocked = ("ray", "optuna", "mlflow", "pandas", "plotly", "tuner", "search_spaces")
    code = "import experiments; assert experiments.find('mnist').name == 'mnist'"
    run_blocked(blocked, code, tmp_path)
