"""Tests what a process does when it ends: it flushes its output and removes its temporary folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ENDS = {"leave": "leave(3)", "normal": "sys.exit(3)", "with a file": "open(folder / 'x', 'w').close(); leave(3)"}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_an_ending_process_flushes_output_and_removes_its_temporary_folder(tmp_path: Path, end: str) -> None:
    code = (
        "import sys; from tune_sparsity.tuner.system.leaving import leave, temporary_folder\n"
        f"folder = temporary_folder(); print(folder, folder.is_dir(), end=''); {end}"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env={"TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    path, made = ran.stdout.split()
    assert (ran.returncode, made) == (3, "True"), ran.stderr
    assert Path(path).parent == tmp_path
    assert not list(tmp_path.iterdir())
