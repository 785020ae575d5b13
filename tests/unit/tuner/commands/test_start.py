"""The command does not import large packages before it needs them. The test checks the imported modules and not the
seconds that a start takes, because these depend on the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

HEAVY = {"torch", "numpy", "ray", "optuna", "mlflow", "pandas", "plotly", "jinja2", "sklearn", "scipy", "torchvision"}
SCRIPT = """
import json, sys
from tune_sparsity.tuner.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["resume", "--help"], 0),
        (["check", "--help"], 0),
        (["--target", "0.9", "--trails", "3"], 2),
    ],
)
def test_the_command_answers_without_heavy_imports(arguments: list[str], code: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    ended, modules = json.loads(done.stderr.splitlines()[-1])
    assert ended == code
    assert not HEAVY & set(modules)
    assert len(modules) < 800
