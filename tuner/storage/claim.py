"""Claim a study for this process, in a folder or in an object store. While a process has the claim, no other process
can run the study."""

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
    """Claim the study in this folder until the end of the `with` block. See StudyStorage.claim.

    Args:
        folder: the study's folder.
        resume: whether to continue an existing study. In this case, temporary files of a killed process are removed.
    """
    if not resume:
        folder.mkdir(parents=True, exist_ok=True)
    with lock_study(folder):
        if resume:
            tidy(folder)
        yield


@contextmanager
def claim_prefix(study: S3Prefix, folder: Path, *, resume: bool) -> Iterator[Mirror]:
    """Claim the study in an object store until the end of the `with` block. Within the block, copy the study's files to
    the store. See StudyStorage.claim.

    Args:
        study: the study's prefix in the store.
        folder: the folder on this machine in which the driver works.
        resume: whether to continue an existing study. In this case, temporary files of a killed process are removed.

    Yields:
        The object that copies the files.
    """
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
    """Replace the contents of the folder by the files in the store, and return their names. The folder itself is not
    replaced, because this process has locked it."""
    for old in folder.iterdir():
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink()
    return download(study, folder)
