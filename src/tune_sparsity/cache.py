"""The folder in the user's cache for files that can be made or fetched again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return our folder in XDG_CACHE_HOME, or in ~/.cache if that is not set. The folder need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tune-sparsity"
