"""End a process at once, without leaving temporary folders behind."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


def temporary_folder() -> Path:
    """Create a folder that exists until this process ends, normally or with `leave`."""
    _FOLDERS.append(tempfile.TemporaryDirectory(prefix="tune-sparsity-"))
    return Path(_FOLDERS[-1].name)


def leave(code: int) -> NoReturn:
    """Remove the temporary folders, and end this process at once with an exit code. Python's own clean-up is skipped,
    because with torch, Ray and Optuna it takes seconds."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # the reader of the stream has ended
            stream.flush()
    for folder in _FOLDERS:
        with suppress(OSError):
            folder.cleanup()
    os._exit(code)
