"""A process of our own beside the command."""

from __future__ import annotations

import sys
from pathlib import Path

import tune_sparsity


def own_process(module: str, *arguments: str) -> list[str]:
    """Return the command that calls the `main` of one of our modules with these arguments, in this Python.

    Args:
        module: its full name.
    """
    # -P keeps the current folder's modules out. Our package comes last: nothing else there may take another's place.
    ours = str(Path(str(tune_sparsity.__file__)).parents[1])
    code = f"import sys; sys.path.append({ours!r}); from {module} import main; main(*sys.argv[1:])"
    return [sys.executable, "-P", "-c", code, *arguments]
