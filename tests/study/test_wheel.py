"""Test the wheel: its content, and that it works without a checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import ROOT
from tune_sparsity.sparsity.optim import fused

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "tune_sparsity"]
PACKAGES = ("tuner", "search_spaces", "experiments", "sparsity")


def run(arguments: Sequence[str | Path], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "PYTHONPATH"))}
    done = subprocess.run(
        [str(argument) for argument in arguments],
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources, because other files of the checkout must not get into the wheel."""
    source = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    for folder in ("src", *PACKAGES):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored, symlinks=True)
    shutil.copytree(ROOT / "tests", source / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", source / "dist"], source)
    (built,) = (source / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run([*pip, "install", "--no-deps", "--no-index", "--target", folder, wheel], folder)
    return folder


def test_the_wheel_has_only_our_package_its_data_and_the_module_tuner_served(wheel: Path) -> None:
    assert wheel.name.startswith("tune_sparsity-")
    assert "-cp311-abi3-" in wheel.name  # this one wheel is for all Python versions from 3.11 on
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        f"tune_sparsity/{path.relative_to(ROOT)}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".so") and not path.name.startswith(".")
    }
    expected |= {f"tune_sparsity/{name}" for name in ("__init__.py", "__main__.py", "cache.py", "py.typed")}
    expected.add("tuner/served.py")
    if fused.kernel is not None:  # where there is a compiler
        expected.add("tune_sparsity/sparsity/optim/_kernel.abi3.so")
        expected.add("tune_sparsity/experiments/spiking/neurons/_scan.abi3.so")
    assert names == expected
    assert {
        "tune_sparsity/search_spaces/lpss.yaml",
        "tune_sparsity/tuner/cli.py",
        "tune_sparsity/sparsity/optim/lpsgd.py",
        "tune_sparsity/experiments/builtin/digits.py",
    } <= names


def test_the_wheel_has_its_license_its_entry_point_and_its_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        about = {name.partition(".dist-info/")[2]: name for name in archive.namelist() if ".dist-info/" in name}
        texts = {name: archive.read(path).decode() for name, path in about.items()}
    assert texts["licenses/LICENSE"] == (ROOT / "LICENSE").read_text()
    assert "tune-sparsity = tune_sparsity.tuner.cli:entry" in texts["entry_points.txt"]
    metadata = texts["METADATA"]
    assert "\nName: tune-sparsity\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nRequires-Dist: optuna>=5.0\n" in metadata
    assert "# tune-sparsity" in metadata


def test_the_installed_packages_are_imported_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = f"from tune_sparsity import {', '.join(PACKAGES)}; print(*[m.__file__ for m in ({', '.join(PACKAGES)})])"
    files = run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(installed)).stdout.split()
    assert [Path(file).parent for file in files] == [installed / "tune_sparsity" / package for package in PACKAGES]


def test_the_entry_point_works(installed: Path, tmp_path: Path) -> None:
    command = installed / "bin" / "tune-sparsity"
    done = run([command, "--version"], tmp_path, PYTHONPATH=str(installed))
    assert done.stdout.split() == ["tune-sparsity", "0.1.0"]


def test_the_installed_command_finds_its_spaces(installed: Path, tmp_path: Path) -> None:
    listed = run([*COMMAND, "list", "spaces"], tmp_path, PYTHONPATH=str(installed)).stdout
    spaces = {path.stem for path in installed.rglob("search_spaces/*.yaml")}
    spaces |= {f"SPACE+{path.stem}" for path in installed.rglob("search_spaces/overlays/*.yaml")}
    assert {line.split()[0] for line in listed.splitlines()} == spaces
    shown = run([*COMMAND, "list", "spaces", "--show", "lpss+adamw"], tmp_path, PYTHONPATH=str(installed)).stdout
    assert "method: lpss" in shown


@pytest.fixture(scope="module")
def studied(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The folder in which the installed command has run a study, and the result that it printed."""
    folder = tmp_path_factory.mktemp("studied")
    arguments = ["--target", "0.9", "--trials", "2", "--epochs", "2", "--scheduler", "none", "--study", "installed"]
    done = run([*COMMAND, *arguments, "--json"], folder, PYTHONPATH=str(installed))
    return folder, json.loads(done.stdout)


def test_the_installed_command_runs_a_study(studied: tuple[Path, dict]) -> None:
    tmp_path, result = studied
    assert result["states"] == {"completed": 2, "pruned": 0, "failed": 0}
    assert result["best"]["sparsity"] >= 0.9
    assert (tmp_path / "studies" / "installed" / "best" / "model.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlartifacts", "mlflow.db", "studies"]


SAFETENSORS = """
from torch import nn
import torch
from safetensors.torch import load_file
from tune_sparsity.experiments.builtin.digits import load
net = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
net.load_state_dict(load_file("net"))
test = load().test
print(float((net(test.x).argmax(1) == test.y).double().mean()))
"""
LOGGED = """
import sys
import mlflow, tune_sparsity
from tune_sparsity.experiments.builtin.digits import load
mlflow.set_tracking_uri(sys.argv[1])
test = load().test
outputs = mlflow.pyfunc.load_model(f"runs:/{sys.argv[2]}/best").predict(test.x.numpy())
print((outputs.argmax(1) == test.y.numpy()).mean())
print(tune_sparsity.__file__, file=sys.stderr)
"""
ONNX = """
import onnxruntime
from tune_sparsity.experiments.builtin.digits import load
test = load().test
(outputs,) = onnxruntime.InferenceSession("net").run(None, {"inputs": test.x.numpy()})
print((outputs.argmax(1) == test.y.numpy()).mean())
"""


@pytest.mark.parametrize(("kind", "code"), [("safetensors", SAFETENSORS), ("onnx", ONNX)])
def test_a_fresh_process_gets_the_reported_accuracy_from_an_exported_file(
    installed: Path, studied: tuple[Path, dict], tmp_path: Path, kind: str, code: str
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    folder, result = studied
    out = ["--format", kind, "--out", tmp_path / "net"]
    run([*COMMAND, "export", "installed", *out], folder, PYTHONPATH=str(installed))
    told = run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(installed)).stdout
    assert float(told) == pytest.approx(result["best"]["test_accuracy"], abs=1e-12)


def test_a_fresh_process_gets_the_reported_accuracy_from_the_logged_model(
    installed: Path, studied: tuple[Path, dict], tmp_path: Path
) -> None:
    folder, result = studied
    where = [f"sqlite:///{folder / 'mlflow.db'}", result["mlflow"]["run_id"]]
    done = run([sys.executable, "-c", LOGGED, *where], tmp_path, PYTHONPATH=str(installed))
    assert str(installed / "tune_sparsity" / "__init__.py") in done.stderr  # the wheel's code, not the checkout's
    assert float(done.stdout) == pytest.approx(result["best"]["test_accuracy"], abs=1e-12)
