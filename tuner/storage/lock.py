"""Lock a study for one process at a time, and remove temporary files of a process that was killed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.system.locks import lock


@contextmanager
def lock_study(folder: Path) -> Iterator[None]:
    """Within this block, no other process can lock the study in this folder. The system releases the lock if this
    process dies.

    Raises:
        UsageError: if another process runs the study. Both would write the same trials.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not lock(descriptor, wait=False):
            raise UsageError(f"study {folder.name!r} is being run by another process: wait for it, or end it")
        yield
    finally:
        os.close(descriptor)


def tidy(folder: Path) -> None:
    """Remove the files that a killed process has left: incomplete files, Ray's temporary files, and Optuna's lock on
    its journal. Optuna would wait half a minute for this lock."""
    for pattern in (
        "*.journal.lock*",
        ".*.tmp",
        ".checkpoints/.*.tmp",
        ".weights/.*.tmp",
        "best*/.*.tmp",
        "front/*/.*.tmp",
    ):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    shutil.rmtree(folder / ".ray", ignore_errors=True)
