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
    """Return the folder for data sets without --data-dir: TUNE_SPARSITY_DATA, or a folder in the user's cache."""
    if folder := os.environ.get("TUNE_SPARSITY_DATA"):
        return Path(folder)
    return cache_folder() / "data"


def check_md5(raw: bytes, expected: str) -> None:
    """Raise ValueError unless the bytes have this MD5 checksum."""
    if hashlib.md5(raw, usedforsecurity=False).hexdigest() != expected:
        raise ValueError("its MD5 checksum is not the published one")


def read_checked(path: Path, md5: str, origin: str) -> bytes:
    """Read a file that this program never downloads, and check its contents.

    Args:
        md5: the checksum of the whole file.
        origin: a description of the file and its source, for the error message.

    Raises:
        DataUnavailable: if the file is missing, cannot be read or is not the published file.
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
    """Within this block, torchvision may download a data set into root/folder. Its output goes to standard error.

    If the download fails, the block removes the empty folders of the download and raises DataUnavailable.
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
    """Remove the empty folders that a failed download left, but not folders in `keep` or above."""
    while folder not in keep:
        if folder.is_dir():
            if any(folder.iterdir()):
                return
            folder.rmdir()
        folder = folder.parent
