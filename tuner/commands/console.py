"""What the commands say on the terminal, and their exit codes."""

from __future__ import annotations

from pathlib import Path

from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.system.files import write_atomically


def write_page(path: Path, text: str) -> None:
    """Raises UsageError if the file cannot be written."""
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UsageError(f"--out {path}: cannot be written ({error.strerror or error})") from None
