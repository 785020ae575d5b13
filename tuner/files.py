"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


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
