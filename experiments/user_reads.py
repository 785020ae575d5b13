"""Notices which files a user's code reads while it is looked at: where the code travels to, they may be missing."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from tune_sparsity.experiments.user_code import is_module, is_users_own


class Reader(Enum):
    """Says what reads a file."""

    CODE = "code"
    """Code that runs wherever networks are made or trained."""
    DATA = "data"
    """The loader of the data, or a data set."""


_read: dict[Reader, set[str]] = {reader: set() for reader in Reader}  # in this process; no modules
_watched: list[tuple[int, Reader]] = []  # threads, of which the last one is watched
_installed: list[bool] = []


@contextmanager
def watching(reader: Reader = Reader.CODE) -> Iterator[None]:
    """Within it the files are noticed that this thread opens in Python to read. It may stand in another such block."""
    if not _installed:
        sys.addaudithook(_notice)  # which cannot be removed
        _installed.append(True)
    _watched.append((threading.get_ident(), reader))
    try:
        yield
    finally:
        _watched.pop()


def _notice(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _watched or _watched[-1][0] != threading.get_ident():
        return
    path, _, flags = arguments
    if not isinstance(path, str | bytes | os.PathLike) or flags & (os.O_WRONLY | os.O_CREAT):
        return
    if not is_module(name := os.fsdecode(path)):
        _read[_watched[-1][1]].add(os.path.abspath(name))


def read_in(folder: Path, reader: Reader = Reader.CODE) -> list[Path]:
    """Return the files in a folder, and below, that a reader was noticed to read, but for hidden ones and what is
    installed there."""
    found = {Path(path).parent.resolve() / Path(path).name for path in _read[reader]}
    inside = {path.relative_to(folder).parts: path for path in found if path.is_relative_to(folder)}
    own = [path for parts, path in inside.items() if not any(part.startswith(".") for part in parts)]
    return sorted(path for path in own if path.is_file() and is_users_own(str(path)))
