"""Studies of an object store on this machine's disk: where a study that runs is worked on, and copies to look at."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from pathlib import Path
from urllib.parse import quote

from tune_sparsity.cache import cache_folder
from tune_sparsity.tuner.storage.s3 import S3Prefix, parts_of
from tune_sparsity.tuner.study.layout import WEIGHTS

CACHE_VARIABLE = "TUNE_SPARSITY_CACHE"  # the folder of working copies, in the place of ~/.cache/tune-sparsity
_COPIES: list[tempfile.TemporaryDirectory[str]] = []  # each is removed when this process ends


def working_folder(store: S3Prefix, study: str) -> Path:
    """Return where a driver on this machine works on a study of the store: the same one whenever it is called."""
    home = os.environ.get(CACHE_VARIABLE)
    base = Path(home) if home else cache_folder()
    # One folder for each place: a study's name may be another study's prefix in the store, and not here.
    where = quote(f"{store.endpoint.partition('://')[2] or 's3'}/{store.bucket}/{store.prefix}", safe="")
    if len(where) > 150:
        where = f"{where[:100]}-{hashlib.sha256(where.encode()).hexdigest()[:16]}"
    return base.absolute() / where / study


def belongs(name: str) -> bool:
    """Return whether a file of this name is part of the study, and not scratch, a lock or somebody's own."""
    try:
        parts = parts_of(name)
    except ValueError:
        return False
    if any(part.startswith(".") for part in (parts[1:] if parts[0] == WEIGHTS else parts)):
        return False
    return parts != ("tracking", "lock") and ".journal.lock" not in name


def download(study: S3Prefix, folder: Path, *, hidden: bool = True) -> list[str]:
    """Writes the study's files into the folder.

    Args:
        study: its prefix in the store.
        hidden: also what only a study that goes on needs.

    Returns:
        The names of the files, relative to the folder.

    Raises:
        OSError: if the store cannot be read, or the folder not be written to.
    """
    names = [name for name in study.names() if belongs(name) and (hidden or not name.startswith("."))]
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(study.read(name))
    return names


@functools.lru_cache
def looked_at(study: S3Prefix) -> Path:
    """A copy of the study to look at, which is gone when this process ends. Raises OSError."""
    folder = _temporary() / study.prefix.rpartition("/")[2]
    download(study, folder, hidden=False)
    return folder


@functools.lru_cache
def file_of(study: S3Prefix, name: str) -> Path:
    """A copy of one file of the study, which is gone when this process ends. Raises OSError."""
    path = _temporary() / name
    path.write_bytes(study.read(name))
    return path


def _temporary() -> Path:
    _COPIES.append(tempfile.TemporaryDirectory(prefix="tune-sparsity-"))
    return Path(_COPIES[-1].name)
