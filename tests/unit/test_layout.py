"""The layout: what each part of the code may import, and how large folders, files and functions may be."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.layout import (
    LAYERS,
    MOST_FILES,
    MOST_FUNCTION_LINES,
    MOST_LINES,
    OURS,
    Module,
    cycles,
    depth,
    files_by_folder,
    folder_graph,
    imported,
    private_names,
    read,
    report,
    unit_of,
    upward,
)

MODULES = read(ROOT)
EVERYTHING = read(ROOT, (*OURS, "tests", "benchmarks"))
MAY_IMPORT = {"sparsity": {"sparsity"}, "search_spaces": {"search_spaces", "sparsity"}}
MAY_IMPORT["experiments"] = {"experiments", "sparsity"}
ONLY_IN = {
    "ray": {"tuner.cluster", "tuner.driver", "tuner.worker"},
    "mlflow": {"tuner.tracking"},
    "optuna": {"tuner.search", "tuner.driver.live_plots", "search_spaces"},
    "torch_pruning": {"sparsity.neurons.graph"},
}
PRIVATE_IN = {"ray": "tuner.cluster.ray_patches", "torch": "sparsity.torch_internals", "mlflow": "tuner.tracking"}


def test_imports_are_found_wherever_they_stand() -> None:
    source = (
        "import ray.tune as t\nfrom mlflow.x import y\ndef f():\n  import optuna\n  import_module('a')\nfrom . import z"
    )
    assert set(imported(ast.parse(source))) == {"ray.tune", "mlflow.x.y", "optuna", "..z"}
    assert set(imported(ast.parse("importlib.import_module('tune_sparsity.tuner.cli')"))) == {"tune_sparsity.tuner.cli"}


def test_private_names_are_found() -> None:
    source = "import torch\nfrom ray._private import node\nimport mlflow.a as m\nm._b(torch._foreach_add_, torch.c._d)"
    assert set(private_names(ast.parse(source))) == {"ray._private.node", "mlflow.a._b", "torch.c._d"}


def test_the_cycles_and_the_depth_of_a_known_graph_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"b"}, "d": set()}
    assert cycles(graph) == [["b", "c"]]
    assert depth(graph) == 3


def test_every_module_has_its_layer() -> None:
    without = {name for name in MODULES if not unit_of(name)}
    assert without == {"tuner"}
    assert {unit_of(name) for name in MODULES} >= {unit for layer in LAYERS for unit in layer}


def test_no_import_leads_upward() -> None:
    assert upward(MODULES) == []


def test_nothing_imports_in_a_circle() -> None:
    assert cycles({name: module.imports for name, module in MODULES.items()}) == []
    assert cycles(folder_graph(MODULES)) == []


@pytest.mark.parametrize("module", MODULES.values(), ids=lambda module: module.name)
def test_a_module_imports_only_the_packages_and_libraries_it_may(module: Module) -> None:
    package = module.name.partition(".")[0]
    ours = {name.partition(".")[0] for name in module.imports} - {"tune_sparsity"}
    assert ours <= MAY_IMPORT.get(package, set(OURS))
    for library, homes in ONLY_IN.items():
        at_home = any(f"{module.name}.".startswith(f"{home}.") for home in homes)
        assert library not in module.libraries or at_home, f"{library} belongs in {homes}"
    if package == "sparsity":
        assert module.libraries <= {"torch", "torch_pruning", "numpy", *sys.stdlib_module_names}
    for library, home in PRIVATE_IN.items():
        found = [name for name in module.private if name.startswith(f"{library}.")]
        assert not found or module.name == home, f"private names of {library} belong in {home}"


def test_no_folder_has_too_many_files() -> None:
    folders = files_by_folder(ROOT, (*OURS, "tests", "benchmarks"))
    assert {folder: count for folder, count in folders.items() if count > MOST_FILES} == {}


def test_no_file_is_too_long() -> None:
    assert {name: module.lines for name, module in EVERYTHING.items() if module.lines > MOST_LINES} == {}


def test_no_function_is_too_long() -> None:
    lengths = {f"{m.name}.{name}": n for m in MODULES.values() for name, n in m.functions.items()}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_FUNCTION_LINES} == {}


def test_the_report_of_the_layout_can_be_printed() -> None:
    assert "imports upward: 0" in report(ROOT)


def ours(*packages: str) -> tuple[str, ...]:
    return tuple(f"tune_sparsity.{package}" for package in packages)


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
    """Run code in a new interpreter that cannot import the packages in `blocked`. If the code fails, this test fails
    and shows its output."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(blocked=blocked) + code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_sparsity_works_without_the_other_packages(tmp_path: Path) -> None:
    blocked = ("ray", "optuna", "mlflow", "pandas", "plotly", "sklearn", *ours("tuner", "experiments", "search_spaces"))
    code = """
import torch
from tune_sparsity import sparsity
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


def test_the_package_experiments_works_without_the_packages_for_search(tmp_path: Path) -> None:
    blocked = ("ray", "optuna", "mlflow", "pandas", "plotly", *ours("tuner", "search_spaces"))
    code = "from tune_sparsity import experiments; assert experiments.find('mnist').name == 'mnist'"
    run_blocked(blocked, code, tmp_path)
