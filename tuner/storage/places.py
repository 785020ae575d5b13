"""Read and write files in a folder or an object store. Writing is atomic: readers never see a part of a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tune_sparsity.tuner.system.files import write_bytes


class Place(Protocol):
    """The interface of a place that contains files: a folder, or a prefix in an object store."""

    def read(self, name: str) -> bytes:
        """Return the content of a file. Raise FileNotFoundError if the file does not exist, and another OSError if it
        cannot be read."""

    def write(self, name: str, content: bytes) -> None:
        """Create or replace a file. Readers see either the old or the new file. Raise OSError if this fails."""

    def remove(self, name: str) -> None:
        """Remove a file if it exists. Raise OSError if this fails."""

    def names(self) -> list[str]:
        """Return the names of all files. Raise OSError if this fails."""


@dataclass(frozen=True)
class Folder:
    """A folder that contains only files, with the interface of a Place."""

    path: Path

    def __reduce__(self) -> tuple[Any, ...]:  # as text, because versions of Python pickle a Path differently
        return _folder, (str(self.path),)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        write_bytes(self.path / name, content)

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        return [path.name for path in self.path.glob("*")]


def _folder(path: str) -> Folder:
    return Folder(Path(path))
