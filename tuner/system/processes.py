"""Start a module of this package in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import tune_sparsity


def own_process(module: str, *arguments: str) -> list[str]:
    """Return a command that calls the function `main` of a module of this package, with this Python.

    Args:
        module: the full name of the module.
        arguments: the arguments of `main`.
    """
    # -P hides modules in the current folder. Our folder is last in sys.path, so that it hides no installed module.
    ours = str(Path(str(tune_sparsity.__file__)).parents[1])
    code = f"import sys; sys.path.append({ours!r}); from {module} import main; main(*sys.argv[1:])"
    return [sys.executable, "-P", "-c", code, *arguments]
