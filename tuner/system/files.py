"""Files that appear whole or not at all, and values as JSON."""

from __future__ import annotations

import json
import math
import os
import uuid
from pathlib import Path
from typing import Any


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


def write_atomically(path: Path, text: str) -> None:
    """Replaces the file by one with this text (UTF-8, line ends as they are), creating its folder where needed.

    A reader sees the old file or the new one, and a crash leaves one of the two.

    Raises:
        OSError: if the folder cannot be written to; the old file is then untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # An exception's text may hold bytes that no encoding takes: they are escaped rather than lose the file.
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def plain(value: Any) -> Any:
    """Return the value as strictly valid JSON can hold it: NumPy scalars as Python's, NaN and infinities as None."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)  # a StrEnum becomes its value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy scalars and arrays, tensors
        listed = value.tolist()
        return plain(listed) if isinstance(listed, bool | int | float | str | list) else str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return str(value)


def to_json(document: dict[str, Any]) -> str:
    """Return the document as strictly valid, indented JSON with a line end."""
    return json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
