"""Record the files that a user's code opens for reading. A check uses the record to find files that an experiment does
not declare and that would be missing on other machines."""

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
    """Names the kind of code that reads a file. CODE stands for code that makes or trains networks, DATA for code that
    loads the data."""

    CODE = "code"
    """Code that runs in every process that makes or trains networks."""
    DATA = "data"
    """Code that loads the data: Experiment.load, or a torch data set."""


_read: dict[Reader, set[str]] = {reader: set() for reader in Reader}  # the recorded files; Python modules are left out
_watched: list[tuple[int, Reader]] = []  # thread and reader of each open block; only the last block records files
_installed: list[bool] = []


@contextmanager
def watching(reader: Reader = Reader.CODE) -> Iterator[None]:
    """Return a context manager. It records the files that the current thread opens for reading in its block. Files that
    only compiled libraries open are not recorded. Blocks may be nested.

    Args:
        reader: the kind of code that runs in the block.
    """
    if not _installed:
        sys.addaudithook(_notice)  # a hook cannot be removed
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
    """Return the recorded files in a folder and its subfolders. Hidden files and files of installed packages are left
    out.

    Args:
        folder: the folder.
        reader: the kind of code that has read the files.
    """
    found = {Path(path).parent.resolve() / Path(path).name for path in _read[reader]}
    inside = {path.relative_to(folder).parts: path for path in found if path.is_relative_to(folder)}
    own = [path for parts, path in inside.items() if not any(part.startswith(".") for part in parts)]
    return sorted(path for path in own if path.is_file() and is_users_own(str(path)))
