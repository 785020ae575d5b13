"""Tests locks between processes: one process holds a lock, and its end releases the lock."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from tune_sparsity.tuner.system.locks import lock

HOLD = """
import sys, time
from tune_sparsity.tuner.system.locks import lock
file = open(sys.argv[1], "w")
assert lock(file.fileno(), wait=True)
print("held", flush=True)
time.sleep(600)
"""


def test_a_lock_has_one_holder_and_is_free_when_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with path.open() as file:
            assert not lock(file.fileno(), wait=False)
            got: list[bool] = []
            waiting = threading.Thread(target=lambda: got.append(lock(file.fileno(), wait=True)))
            waiting.start()
            assert got == []
            holder.kill()
            waiting.join(60)
            assert got == [True]
            with path.open() as another:
                assert not lock(another.fileno(), wait=False)
        with path.open() as file:
            assert lock(file.fileno(), wait=False)
    finally:
        holder.kill()
        holder.communicate()
