"""Lock a study's folder for one process, and remove the temporary files of a killed process."""

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
    """Lock the study in this folder until the end of the `with` block. If this process dies, the operating system
    releases the lock.

    Raises:
        UsageError: if another process runs the study, and therefore has the lock.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not lock(descriptor, wait=False):
            raise UsageError(f"study {folder.name!r} is being run by another process: wait for it, or end it")
        yield
    finally:
        os.close(descriptor)


def tidy(folder: Path) -> None:
    """Remove the files that a killed process has left in a study's folder: incomplete files, Ray's temporary files, and
    the lock file of Optuna's journal. Optuna would wait half a minute for this lock."""
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
