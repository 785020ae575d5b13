"""The place that a study is kept in, held by this process: its folder, or its prefix in an object store."""

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
def claim_study(storage: Path | S3Prefix, name: str, folder: Path, *, resume: bool) -> Iterator[Mirror | None]:
    """Within it the study is this process's; in an object store it is kept up to date there.

    Args:
        storage: the place of studies.
        name: the study's.
        folder: the study's own on this machine.
        resume: go on with a study that is there.

    Yields:
        What brings the study's folder to the store; None where the folder is the place.

    Raises:
        UsageError: if another process runs the study, or if the store cannot be read or written.
    """
    if not resume or not isinstance(storage, Path):
        folder.mkdir(parents=True, exist_ok=True)
    with lock_study(folder):
        if isinstance(storage, Path):
            if resume:
                tidy(folder)
            yield None
            return
        study = storage / name
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
