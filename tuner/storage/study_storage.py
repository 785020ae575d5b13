"""Where a user keeps studies, each under its name: a folder, or a prefix in an object store."""

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
    """A place of studies. As text it is the value of --storage.

    Attributes:
        synced: whether a study is worked on in a folder of the driver's machine, whose files are brought to the
            storage. If not, the storage has that folder itself, and all nodes of a cluster share it.
    """

    synced: ClassVar[bool]

    @abstractmethod
    def absolute(self) -> StudyStorage:
        """Return the same place, named so that it does not depend on the current folder."""

    @abstractmethod
    def check(self) -> None:
        """Raise UsageError unless files can be made here; leave no trace."""

    @abstractmethod
    def probe(self, name: str) -> AbstractContextManager[Place]:
        """Make a place of this name for the block; afterwards there is no trace of it. Raises OSError."""

    @abstractmethod
    def studies(self, file: str = STUDY_YAML) -> list[str]:
        """Return the names of the studies that have this file; in an object store those of all. Raises OSError."""

    @abstractmethod
    def address(self, study: str) -> str:
        """Return where the study is kept, for people."""

    @abstractmethod
    def folder(self, study: str) -> Path:
        """Return the folder in which this machine works on the study."""

    @abstractmethod
    def results(self, name: str) -> Path:
        """Return the place on this machine for what is made from ended studies, under a study's or another name."""

    @abstractmethod
    def exists(self, study: str) -> bool:
        """Return whether there is a study of that name, here or on its way here. Raises OSError."""

    @abstractmethod
    def find(self, study: str) -> tuple[StudyStorage, str]:
        """Return the storage and the name of a study that is given by its name here, or by its folder.

        Raises:
            UsageError: if there is none, or if that cannot be a study's name.
        """

    @abstractmethod
    def study_yaml(self, study: str) -> Path:
        """Return the study's study.yaml, or a copy of it on this machine. Raises UsageError if there is none."""

    @abstractmethod
    def readable(self, study: str) -> Path:
        """Return the study's folder, or a copy of it on this machine. Raises OSError."""

    @abstractmethod
    def folder_with(self, study: str, file: str) -> Path | None:
        """Return a folder to read a study in, which is given by its name here or by its folder.

        Returns:
            None if there is no such study, or if it has no such file.

        Raises:
            UsageError: if that cannot be a study's name.
            OSError: if the storage cannot be read.
        """

    @abstractmethod
    def checkpoints(self, study: str) -> Place:
        """Return the place of the checkpoints of a study that this process has claimed. The place exists already."""

    @abstractmethod
    def claim(self, study: str, *, resume: bool) -> AbstractContextManager[Mirror | None]:
        """Make the study this process's for the block, and keep its files here up to date.

        Args:
            resume: the study is there, and goes on.

        Yields:
            The thread that brings the study's files here; None where they lie here.

        Raises:
            UsageError: if another process runs the study, or if the storage cannot be read or written.
        """

    @contextmanager
    def new_name(self, wanted: str) -> Iterator[str]:
        """Take a new study's name for this process alone: the wanted one, or that with a number if there is one.

        The study's folder is made here, for other processes that want the same name meanwhile. It is gone after the
        block if the study has left nothing in it.

        Raises:
            OSError: if the folder cannot be made.
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
        """Return the error that there is no such study. Raises OSError."""
        return UsageError(f"no study {study!r} in {self}: {self.known()}")

    def known(self, file: str = STUDY_YAML) -> str:
        """Return in words which studies have this file, see `studies`. Raises OSError."""
        there = ", ".join(self.studies(file))
        return f"there is {there}" if there else "there are none"


@dataclass(frozen=True)
class LocalStorage(StudyStorage):
    """A folder, in which each study is a folder."""

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
                f"--storage {self}: cannot write there ({error.strerror}): give a folder that can be written to"
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
    """A prefix in an object store, below which each study has a prefix."""

    prefix: S3Prefix
    synced = True

    def __str__(self) -> str:
        return str(self.prefix)

    def study(self, name: str) -> S3Prefix:
        """Return the prefix of a study. Raises UsageError for other names: none may lead out of the storage."""
        if not STUDY_NAME.fullmatch(name):
            raise UsageError(f"{name[:100]!r} is no study's name: a study in {self} is given by its name alone")
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
        """See StudyStorage.new_name. A random ending keeps apart the names that other machines take: they do not see
        the folder that is made here."""
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
            waiting = self.folder(study) / STUDY_YAML  # an earlier process could not bring it to the store
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
    """Return the storage that a value of --storage names; a path is that folder.

    Raises:
        ValueError: in one line, without what may be a secret.
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
    except (OSError, ValueError):  # a name that is too long for a file, a folder that may not be entered
        return False
