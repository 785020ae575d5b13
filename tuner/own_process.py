"""A process of our own beside the command."""

from __future__ import annotations

import sys
from pathlib import Path


def own_process(module: str, *arguments: str) -> list[str]:
    """The command that calls the `main` of one of our modules with these arguments, in this Python.

    Args:
        module: its full name.
    """
    # -P: what lies in the current folder under a module's name is not meant. These packages may lie there, and then
    # come last.
    ours = str(Path(__file__).parents[1])
    code = f"import sys; sys.path.append({ours!r}); from {module} import main; main(*sys.argv[1:])"
    return [sys.executable, "-P", "-c", code, *arguments]
