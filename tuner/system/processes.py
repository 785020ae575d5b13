"""Build commands that run a module of this package in a new process."""

from __future__ import annotations

import sys
from pathlib import Path

import tune_sparsity


def own_process(module: str, *arguments: str) -> list[str]:
    """Return a command for subprocess.Popen. It starts the Python interpreter of this process and calls the function
    `main` of a module.

    Args:
        module: the full name of the module.
        arguments: the arguments of `main`.
    """
    # -P hides modules in the current folder. Our folder is last in sys.path, so that it hides no installed module.
    ours = str(Path(str(tune_sparsity.__file__)).parents[1])
    code = f"import sys; sys.path.append({ours!r}); from {module} import main; main(*sys.argv[1:])"
    return [sys.executable, "-P", "-c", code, *arguments]
