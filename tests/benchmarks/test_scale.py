"""Test that the benchmark runs a study with simulated workers to its end, and prints a row with all columns."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_benchmark_prints_a_table_row_for_a_simulated_study() -> None:
    command = [sys.executable, "-m", "benchmarks.scale", "--trials", "20", "--slots", "5", "--epochs", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    header, _, row = (line.strip("| ").split(" | ") for line in done.stdout.splitlines())
    assert len(row) == len(header)
    assert row[:3] == ["20", "5", "60"]
