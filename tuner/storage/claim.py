"""A study that this process holds: its folder, or its prefix in an object store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.storage.lease import Lease
from tune_sparsity.tuner.storage.local_copy import download
from tune_sparsity.tuner.storage.lock import lock_study, tidy
from tune_sparsity.tuner.storage.s3 import S3Prefix, StoreError
from tune_sparsity.tuner.storage.sync import Mirror


@contextmanager
def claim_folder(folder: Path, *, resume: bool) -> Iterator[None]:
    """Hold the study in this folder. See StudyStorage.claim."""
    if not resume:
        folder.mkdir(parents=True, exist_ok=True)
    with lock_study(folder):
        if resume:
            tidy(folder)
        yield


@contextmanager
def claim_prefix(study: S3Prefix, folder: Path, *, resume: bool) -> Iterator[Mirror]:
    """Hold the study below this prefix, and keep what the folder has of it up to date there. See StudyStorage.claim."""
    folder.mkdir(parents=True, exist_ok=True)
    with lock_study(folder):
        owner = Lease(study, folder)
        try:
            newer = owner.take()
            arrived = _fetched(study, folder) if newer else []
            owner.mark()
            mirror = Mirror(study, folder, owner, arrived)
        except StoreError as error:
            raise UsageError(f"--storage {error}") from None
        if resume:
            tidy(folder)
        with mirror:
            yield mirror


def _fetched(study: S3Prefix, folder: Path) -> list[str]:
    """Makes the folder what the store has; the folder itself stays, since the lock is on it."""
    for old in folder.iterdir():
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink()
    return download(study, folder)
