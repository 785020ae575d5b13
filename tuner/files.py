"""Files that appear whole or not at all, and folders of them."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Place(Protocol):
    """Where files with names are: a folder, or a prefix in an object store."""

    def read(self, name: str) -> bytes:
        """A file's content. Raises FileNotFoundError, or another OSError."""

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

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        write_bytes(self.path / name, content)

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        return [path.name for path in self.path.glob("*")]


def place_of(where: Path | Place) -> Place:
    """A path is the folder there."""
    return Folder(where) if isinstance(where, Path) else where


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces the file by one with this content, on the disk itself when this returns.

    A reader sees the old file or the new one, and a crash leaves one of the two.

    Raises:
        OSError: if the folder cannot be written to; the old file is then untouched.
    """
    # In the same folder, because only a rename within one file system is atomic; and not made by tempfile, whose files
    # are private to their owner, while studies are often on a disk that a group shares.
    temporary = path.with_name(f".{path.name[:80]}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
