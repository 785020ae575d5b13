"""Find, create and claim studies by name, in a folder or below a prefix in an object store."""

from __future__ import annotations

import os
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.storage.local_copy import file_of, looked_at, working_folder
from tune_sparsity.tuner.storage.places import Folder, Place
from tune_sparsity.tuner.storage.s3 import ACCEPTED, S3Prefix, StoreError, parse_store
from tune_sparsity.tuner.study.layout import CHECKPOINTS, STUDY_YAML

if TYPE_CHECKING:
    from tune_sparsity.tuner.storage.sync import Mirror

STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class StudyStorage(ABC):
    """The place in which a user's studies are stored. `str(storage)` returns the value of --storage.

    Attributes:
        synced: True for an object store: the driver works in a folder of its machine, and a thread copies the files to
            the store. False for a folder: the driver works in this folder, which all nodes of a cluster share.
    """

    synced: ClassVar[bool]

    @abstractmethod
    def absolute(self) -> StudyStorage:
        """Return this storage with an absolute path. An object store is returned unchanged."""

    @abstractmethod
    def check(self) -> None:
        """Check that files can be created in this storage, by creating and removing one. Raise UsageError if this
        fails."""

    @abstractmethod
    def probe(self, name: str) -> AbstractContextManager[Place]:
        """Create a temporary `Place` (a folder or a prefix) in this storage, to test whether other machines can use the
        storage. Use the result in a `with` statement, which removes the place at its end. Raise OSError if the place
        cannot be created."""

    @abstractmethod
    def studies(self, file: str = STUDY_YAML) -> list[str]:
        """Return the sorted names of the studies in this storage. Raise OSError if the storage cannot be read.

        Args:
            file: a file name, such as "study.yaml". If this storage is a folder, return only the studies that have this
                file. An object store ignores this argument.
        """

    @abstractmethod
    def address(self, study: str) -> str:
        """Return the study's location as a text for the user: a folder, or s3://BUCKET/PREFIX/STUDY."""

    @abstractmethod
    def folder(self, study: str) -> Path:
        """Return the folder on this machine in which a driver works on the study."""

    @abstractmethod
    def results(self, name: str) -> Path:
        """Return the path on this machine for a file or folder that a command makes from ended studies, for example the
        page of `compare`. If the studies are in an object store, the path is in the current folder.

        Args:
            name: the last part of the returned path, such as the name of a study.
        """

    @abstractmethod
    def exists(self, study: str) -> bool:
        """Return whether a study with this name exists in the storage. For an object store, a working folder of the
        study on this machine is enough. Raise OSError if the storage cannot be read."""

    @abstractmethod
    def find(self, study: str) -> tuple[StudyStorage, str]:
        """Return the storage that contains a study, and the study's name in that storage.

        Args:
            study: the study's name in this storage. If this storage is a folder, the study's folder is accepted, too.

        Raises:
            UsageError: if no study can have this name, or if this storage is a folder and does not contain the study.
                For an object store, this method does not check whether the study exists.
        """

    @abstractmethod
    def study_yaml(self, study: str) -> Path:
        """Return the path of the study's study.yaml on this machine. If this storage is a folder, the file may be
        missing. For an object store, the path is that of a downloaded copy, or that of the file in the study's working
        folder if the store does not have the file yet. Raise UsageError if the store cannot be read or there is no such
        file."""

    @abstractmethod
    def readable(self, study: str) -> Path:
        """Return a folder on this machine from which the study can be read. For an object store, this folder is a copy.
        Raise OSError if the storage cannot be read."""

    @abstractmethod
    def folder_with(self, study: str, file: str) -> Path | None:
        """Return a folder on this machine from which a study can be read. For an object store, this folder is a copy.

        Args:
            study: the study's name in this storage, or its folder.
            file: a file that the study must have.

        Returns:
            None if there is no such study, or if it does not have the file.

        Raises:
            UsageError: if no study can have this name.
            OSError: if the storage cannot be read.
        """

    @abstractmethod
    def checkpoints(self, study: str) -> Place:
        """Return the place for the checkpoints of a study. Create the place if it is missing. Call this method only
        while this process has claimed the study."""

    @abstractmethod
    def claim(self, study: str, *, resume: bool) -> AbstractContextManager[Mirror | None]:
        """Claim the study for this process until the end of the `with` block, so that no other process can run the
        study. For an object store, also copy the study's files to the store within the block.

        Args:
            study: the study's name.
            resume: whether to continue an existing study.

        Yields:
            The object that copies the files, or None if the storage is a folder.

        Raises:
            UsageError: if another process runs the study, or if the storage cannot be read or written.
        """

    @contextmanager
    def new_name(self, wanted: str) -> Iterator[str]:
        """Reserve a name for a new study, and yield it: `wanted`, or `wanted` with a number at its end if another study
        has the name `wanted`.

        This method creates the study's folder, so that other processes see that the name is taken. At the end of the
        `with` block, the folder is removed if it is empty.

        Raises:
            OSError: if the folder cannot be created, or the storage cannot be read.
        """
        for name in (wanted, *(f"{wanted}-{number}" for number in range(2, 10_000))):
            folder = self.folder(name)
            made = [one for one in (folder, *folder.parents) if not one.exists()]
            if folder in made and not self.exists(name):
                folder.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError):
                    folder.mkdir()
                    break
        try:
            yield name
        finally:
            with suppress(OSError):
                for one in made:
                    one.rmdir()

    def unknown(self, study: str) -> UsageError:
        """Return a UsageError for a study that does not exist. The message lists the existing studies. Raise OSError if
        the storage cannot be read."""
        return UsageError(f"there is no study {study!r} in {self}; {self.known()}")

    def known(self, file: str = STUDY_YAML) -> str:
        """Return a text for an error message: the names of the stored studies that have the file `file`. Raise OSError
        if the storage cannot be read."""
        there = ", ".join(self.studies(file))
        return f"the studies there are: {there}" if there else "there are no studies"


@dataclass(frozen=True)
class LocalStorage(StudyStorage):
    """A folder with a subfolder for each study."""

    path: Path
    synced = False

    def __str__(self) -> str:
        return str(self.path)

    def absolute(self) -> LocalStorage:
        return LocalStorage(self.path.absolute())

    def check(self) -> None:
        try:
            existing = self.path
            while not existing.exists():
                existing = existing.parent
            probe = existing / f".tune-sparsity-{os.getpid()}"
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            raise UsageError(
                f"--storage {self}: cannot write there ({error.strerror}): give a folder with write permission"
            ) from None

    @contextmanager
    def probe(self, name: str) -> Iterator[Place]:
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        probe = self.path / name
        try:
            probe.mkdir(parents=True)
            yield Folder(probe)
        finally:
            with suppress(OSError):
                for file in probe.iterdir():
                    file.unlink()
                for folder in (probe, *made):
                    folder.rmdir()

    def studies(self, file: str = STUDY_YAML) -> list[str]:
        return sorted(path.parent.name for path in self.path.glob(f"*/{file}"))

    def address(self, study: str) -> str:
        return str(self.folder(study))

    def folder(self, study: str) -> Path:
        return self.path / study

    def results(self, name: str) -> Path:
        return self.path / name

    def exists(self, study: str) -> bool:
        return self.folder(study).exists()

    def find(self, study: str) -> tuple[StudyStorage, str]:
        folder = self.folder_with(study, STUDY_YAML)
        if folder is None:
            raise self.unknown(study)
        return LocalStorage(folder.parent), folder.name

    def study_yaml(self, study: str) -> Path:
        return self.folder(study) / STUDY_YAML

    def readable(self, study: str) -> Path:
        return self.folder(study)

    def folder_with(self, study: str, file: str) -> Path | None:
        folders = (self.folder(study), Path(study).absolute())
        return next((folder for folder in folders if _is_file(folder / file)), None)

    def checkpoints(self, study: str) -> Place:
        folder = self.folder(study) / CHECKPOINTS
        folder.mkdir(exist_ok=True)
        return Folder(folder)

    def claim(self, study: str, *, resume: bool) -> AbstractContextManager[None]:
        from tune_sparsity.tuner.storage.claim import claim_folder

        return claim_folder(self.folder(study), resume=resume)


@dataclass(frozen=True)
class S3Storage(StudyStorage):
    """A prefix in an object store, with a prefix below it for each study."""

    prefix: S3Prefix
    synced = True

    def __str__(self) -> str:
        return str(self.prefix)

    def study(self, name: str) -> S3Prefix:
        """Return the prefix of a study. Raise UsageError if no study can have this name, for example if it is a path
        such as "a/b"."""
        if not STUDY_NAME.fullmatch(name):
            raise UsageError(f"{name[:100]!r} is no study's name: for a study in {self}, give its name without a path")
        return self.prefix / name

    def absolute(self) -> S3Storage:
        return self

    def check(self) -> None:
        probe = f".tune-sparsity-probe-{secrets.token_hex(4)}"
        try:
            self.prefix.reach()
            self.prefix.write(probe, b"")
            self.prefix.remove(probe)
        except StoreError as error:
            raise UsageError(f"--storage {error}") from None

    @contextmanager
    def probe(self, name: str) -> Iterator[Place]:
        probe = self.prefix / name
        try:
            yield probe
        finally:
            with suppress(OSError):
                for file in probe.names():
                    probe.remove(file)

    def studies(self, file: str = STUDY_YAML) -> list[str]:
        return self.prefix.children()

    @contextmanager
    def new_name(self, wanted: str) -> Iterator[str]:
        """Reserve a name with a random suffix, and yield it. This method creates only a folder on this machine, so
        another machine could reserve the same name. The suffix prevents this."""
        with super().new_name(f"{wanted}-{secrets.token_hex(3)}") as name:
            yield name

    def address(self, study: str) -> str:
        return str(self.study(study))

    def folder(self, study: str) -> Path:
        return working_folder(self.prefix, study)

    def results(self, name: str) -> Path:
        return Path(name)

    def exists(self, study: str) -> bool:
        return self.folder(study).exists() or bool(self.study(study).names())

    def find(self, study: str) -> tuple[StudyStorage, str]:
        self.study(study)
        return self, study

    def study_yaml(self, study: str) -> Path:
        try:
            return file_of(self.study(study), STUDY_YAML)
        except FileNotFoundError:
            waiting = self.folder(study) / STUDY_YAML  # an earlier process could not copy it to the store
            if _is_file(waiting):
                return waiting
            try:
                self.prefix.reach()
                raise self.unknown(study) from None
            except OSError as error:
                raise UsageError(f"--storage {error}") from None
        except OSError as error:
            raise UsageError(f"--storage {error}") from None

    def readable(self, study: str) -> Path:
        return looked_at(self.study(study))

    def folder_with(self, study: str, file: str) -> Path | None:
        folder = Path(study) if _is_file(Path(study) / file) else self.readable(study)
        return folder if _is_file(folder / file) else None

    def checkpoints(self, study: str) -> Place:
        return self.study(study) / CHECKPOINTS

    def claim(self, study: str, *, resume: bool) -> AbstractContextManager[Mirror]:
        from tune_sparsity.tuner.storage.claim import claim_prefix

        return claim_prefix(self.study(study), self.folder(study), resume=resume)


def parse_storage(given: Any) -> StudyStorage:
    """Return the storage for a value of --storage.

    Args:
        given: a Path of a folder, or a text: a folder or s3://BUCKET/PREFIX.

    Raises:
        ValueError: if the value is wrong. The message is one line without secrets.
    """
    if isinstance(given, Path):
        return LocalStorage(given)
    if not isinstance(given, str) or not given or "\0" in given:
        raise ValueError(ACCEPTED)
    if given.startswith("s3:") or "://" in given:
        return S3Storage(parse_store(given))
    return LocalStorage(Path(given))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # for example a name that is too long, or a folder without permission
        return False
