"""Which files a user's code reads while it is looked at: where the code travels to, some of them may be missing."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tune_sparsity.experiments.user_code import is_module, is_users_own

_read: set[str] = set()  # by users' code, in this process; no modules
_watched: list[int] = []  # threads, of which the last one is watched; 0 stands for none
_installed: list[bool] = []


@contextmanager
def watching(on: bool = True) -> Iterator[None]:
    """Within it the files are noticed that this thread opens in Python to read.

    Args:
        on: False to notice nothing within another such block: where data are loaded, which only the command does.
    """
    if not _installed:
        sys.addaudithook(_notice)  # which cannot be removed
        _installed.append(True)
    _watched.append(threading.get_ident() if on else 0)
    try:
        yield
    finally:
        _watched.pop()


def _notice(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _watched or _watched[-1] != threading.get_ident():
        return
    path, _, flags = arguments
    if not isinstance(path, str | bytes | os.PathLike) or flags & (os.O_WRONLY | os.O_CREAT):
        return
    if not is_module(name := os.fsdecode(path)):
        _read.add(os.path.abspath(name))


def read_in(folder: Path) -> list[Path]:
    """Return the files in a folder, and below, that were noticed, but for hidden ones and what is installed there."""
    found = {Path(path).parent.resolve() / Path(path).name for path in _read}
    inside = {path.relative_to(folder).parts: path for path in found if path.is_relative_to(folder)}
    own = [path for parts, path in inside.items() if not any(part.startswith(".") for part in parts)]
    return sorted(path for path in own if path.is_file() and is_users_own(str(path)))
