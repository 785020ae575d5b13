"""Find data files on this machine and check that they are complete."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tune_sparsity.cache import cache_folder
from tune_sparsity.experiments.base import DataUnavailable


def default_data_dir() -> Path:
    """Return the folder of data sets if the user gives no --data-dir. It is the value of the environment variable
    TUNE_SPARSITY_DATA. Without this variable, it is a folder in the user's cache."""
    if folder := os.environ.get("TUNE_SPARSITY_DATA"):
        return Path(folder)
    return cache_folder() / "data"


def check_md5(raw: bytes, expected: str) -> None:
    """Raise ValueError if the bytes have another MD5 checksum than `expected`."""
    if hashlib.md5(raw, usedforsecurity=False).hexdigest() != expected:
        raise ValueError("its MD5 checksum is not the published one")


def read_checked(path: Path, md5: str, origin: str) -> bytes:
    """Read a file, and check its MD5 checksum. The file is never downloaded.

    Args:
        path: the file.
        md5: the expected checksum.
        origin: a description of the file and its source, for the error message.

    Raises:
        DataUnavailable: if the file is missing, cannot be read or has another checksum.
    """
    try:
        raw = path.read_bytes()
        check_md5(raw, md5)
    except FileNotFoundError as error:
        raise DataUnavailable(
            f"{path} is missing: put {origin} there, or name another folder with --data-dir"
        ) from error
    except (OSError, ValueError) as error:
        raise DataUnavailable(f"{path} is damaged ({error}): replace it by {origin}") from error
    return raw


@contextlib.contextmanager
def downloading(data_set: str, root: Path, folder: str) -> Iterator[None]:
    """Return a context manager for a block in which torchvision downloads a data set. In the block, standard output is
    redirected to standard error.

    If the download fails, the context manager removes the empty folders that the download has created, and raises
    DataUnavailable.

    Args:
        data_set: the name of the data set, for the message.
        root: the folder of all data sets.
        folder: the folder in `root` into which torchvision writes.
    """
    target = root / folder
    before = {path for path in (target, *target.parents) if path.exists()}
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (OSError, RuntimeError) as error:
        _remove_empty(target, before)
        reason = " ".join(str(error).split())
        raise DataUnavailable(
            f"{data_set} is not in {root} and could not be downloaded ({reason[:200]}): "
            f"give the folder that holds {folder} with --data-dir, or connect to the network"
        ) from error


def _remove_empty(folder: Path, keep: set[Path]) -> None:
    """Remove `folder` and its parents if they are empty, up to the first folder in `keep`, which stays."""
    while folder not in keep:
        if folder.is_dir():
            if any(folder.iterdir()):
                return
            folder.rmdir()
        folder = folder.parent
