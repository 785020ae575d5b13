"""Files that appear whole or not at all, and folders of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tune_sparsity.tuner.system.files import write_bytes


class Place(Protocol):
    """Where files with names are: a folder, or a prefix in an object store."""

    def read(self, name: str) -> bytes:
        """Return a file's content. Raises FileNotFoundError, or another OSError."""

    def write(self, name: str, content: bytes) -> None:
        """Replaces a file, which is seen whole or not at all. Raises OSError."""

    def remove(self, name: str) -> None:
        """Removes a file if it is there. Raises OSError."""

    def names(self) -> list[str]:
        """Of all files. Raises OSError."""


@dataclass(frozen=True)
class Folder:
    """A folder as a Place; folders in it are not looked into."""

    path: Path

    def __reduce__(self) -> tuple[Any, ...]:  # as text: versions of Python pickle a Path in ways of their own
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
