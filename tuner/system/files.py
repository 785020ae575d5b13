"""Write files atomically: readers never see a part of a file. Convert values into JSON."""

from __future__ import annotations

import json
import math
import os
import uuid
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    """Create or replace a file atomically. The content is on the disk when this function returns.

    A reader sees either the old or the new file, also after a crash of this process or of the machine.

    Raises:
        OSError: if the file cannot be written. The old file is then unchanged.
    """
    # The temporary file is in the same folder, because a rename is atomic only within one file system. A file from
    # `tempfile` could be read only by its owner, but a group often shares the disk of its studies.
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
    """Create or replace a text file atomically, in UTF-8 and with unchanged line ends. Create its folder if the folder
    is missing.

    A reader sees either the old or the new file, also after a crash of this process or of the machine.

    Raises:
        OSError: if the file cannot be written. The old file is then unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The text of an exception may hold bytes that cannot be encoded. They are escaped, so that the file is not lost.
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def plain(value: Any) -> Any:
    """Convert a value into types that strictly valid JSON can represent. NumPy arrays and tensors become numbers or
    lists, and NaN and infinite numbers become None."""
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
    """Return the document as strictly valid, indented JSON. The text ends with a line break."""
    return json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
