"""Test the arithmetic of the throughput benchmark: the parts of the time, and the memory of all processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.throughput import PARTS, memory_of, memory_of_tree, our_split, table, user_split
from tune_sparsity.tuner.results.tables import StudySeconds

MIB = 2**20


def test_the_time_parts_of_each_compared_program_sum_to_its_wall_clock() -> None:
    names = ("data", "forward_backward", "optimizer", "topology", "validation", "setup", "reporting")
    found = {
        "trials": 4,
        "startup": 9.0,
        "worker_seconds": {name: 10.0 + k for k, name in enumerate(names)},
        "driver_seconds": {"sampling": 0.5, "tracking": 3.0},
    }
    user = user_split(found, wall=100.0, cores=2)
    assert user["forward and backward"] == 5.5  # 11 seconds of two workers side by side
    assert user["data"] == (10.0 + 15.0) / 2
    seconds = StudySeconds(total=40.0, startup=10.0, training=20.0, sampling=1.0, tracking=2.0, finishing=3.0).to_dict()
    shares = {"data": 0.1, "forward and backward": 0.5, "optimizer": 0.3, "topology": 0.02, "validation": 0.08}
    ours = our_split(seconds, wall=41.0, parts=shares)
    # The wall clock shows 41 s, the command's own clock 40 s. The difference counts as start-up.
    assert ours["start-up"] == 11.0
    for split, wall in ((user, 100.0), (ours, 41.0)):
        assert tuple(split) == PARTS
        assert sum(split.values()) == pytest.approx(wall)
    best = {"val_accuracy": 0.98, "test_accuracy": 0.97, "sparsity": 0.9}
    line = {"experiment": "digits", "side": "ours", "seed": 0, "trials_run": 4, "wall": 41.0, "best": best}
    text = table([{**line, "split": ours, "reached": None, "memory": [5 * MIB]}])
    assert "| digits | ours | 351 | 98.00 | 97.00 | never | 5 (5, 5) |" in text


def test_the_memory_column_shows_whether_memory_grows() -> None:
    assert memory_of([50 * MIB] * 20) == "50 (50, 50)"
    assert memory_of([k * MIB for k in range(1, 101)]) == "100 (30, 90)"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_memory_of_tree_counts_a_process_and_its_child_processes() -> None:
    hold = "import sys; held = bytearray(60 << 20); held[::4096] = b'1' * len(held[::4096]); {}; input()"
    inner = (
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {hold.format('print(1, flush=True)')!r}])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", f"{inner}; p.wait()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    assert 60 * MIB < memory_of_tree(process.pid) < 150 * MIB
    process.communicate("\n", timeout=60)
