"""A study belongs to one process at a time; and what a process that was killed has left in its folder."""

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
    """Within it no other process runs the study in this folder. However this one ends, the system lets go of it.

    Raises:
        UsageError: if another process runs it now: two would write the same trials.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not lock(descriptor, wait=False):
            raise UsageError(f"study {folder.name!r} is being run by another process: wait for it, or end it")
        yield
    finally:
        os.close(descriptor)


def tidy(folder: Path) -> None:
    """Removes what a process that was killed left behind: half written files, Ray's scratch files, and Optuna's lock on
    its journal, which Optuna itself would wait for, half a minute."""
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
