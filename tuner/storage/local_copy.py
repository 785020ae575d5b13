"""Provide local folders for studies in an object store: working folders of running studies, and copies for reading."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from urllib.parse import quote

from tune_sparsity.cache import cache_folder
from tune_sparsity.tuner.storage.s3 import S3Prefix, parts_of
from tune_sparsity.tuner.study.layout import WEIGHTS
from tune_sparsity.tuner.system.leaving import temporary_folder

CACHE_VARIABLE = "TUNE_SPARSITY_CACHE"  # this environment variable names the folder for working folders


def working_folder(store: S3Prefix, study: str) -> Path:
    """Return the folder on this machine in which a driver works on a study of the object store. On one machine, all
    drivers of a study use the same folder.

    Args:
        store: the prefix in the object store that contains the studies.
        study: the study's name.
    """
    home = os.environ.get(CACHE_VARIABLE)
    base = Path(home) if home else cache_folder()
    # The storage becomes one folder name without slashes. If its parts were nested folders, the storage PREFIX/STUDY
    # would lie inside the working folder of the study STUDY in the storage PREFIX.
    where = quote(f"{store.endpoint.partition('://')[2] or 's3'}/{store.bucket}/{store.prefix}", safe="")
    if len(where) > 150:
        where = f"{where[:100]}-{hashlib.sha256(where.encode()).hexdigest()[:16]}"
    return base.absolute() / where / study


def belongs(name: str) -> bool:
    """Return whether a file with this name is part of a study. Temporary files, locks and other programs' files are no
    part of it.

    Args:
        name: the file's name relative to the study's folder.
    """
    try:
        parts = parts_of(name)
    except ValueError:
        return False
    if any(part.startswith(".") for part in (parts[1:] if parts[0] == WEIGHTS else parts)):
        return False
    return parts != ("tracking", "lock") and ".journal.lock" not in name


def download(study: S3Prefix, folder: Path, *, hidden: bool = True) -> list[str]:
    """Write the study's files into the folder.

    Args:
        study: the study's prefix in the store.
        hidden: whether to write the files whose names begin with ".", too. Only a study that is resumed needs them.

    Returns:
        The names of the files, relative to the folder.

    Raises:
        OSError: if the store cannot be read or the folder cannot be written to.
    """
    names = [name for name in study.names() if belongs(name) and (hidden or not name.startswith("."))]
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(study.read(name))
    return names


@functools.lru_cache
def looked_at(study: S3Prefix) -> Path:
    """Download the study, and return the folder of the copy. The copy is removed when this process ends. Raise OSError
    if the store cannot be read."""
    folder = temporary_folder() / study.prefix.rpartition("/")[2]
    download(study, folder, hidden=False)
    return folder


@functools.lru_cache
def file_of(study: S3Prefix, name: str) -> Path:
    """Download one file of the study, and return the path of the copy. The copy is removed when this process ends.
    Raise OSError if the store cannot be read."""
    path = temporary_folder() / name
    path.write_bytes(study.read(name))
    return path
