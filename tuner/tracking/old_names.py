"""Make the module names of earlier versions importable. Earlier versions have logged models whose user code imports
these names."""

from __future__ import annotations

import importlib.util
import sys
from importlib import import_module
from pathlib import Path

import tune_sparsity

_OLD = {
    "experiments": {
        "experiments": "experiments",
        **{f"experiments.{name}": f"experiments.{name}" for name in ("base", "registry", "training")},
        **{f"experiments.{name}": f"experiments.data.{name}" for name in ("augment", "files", "splits")},
        "experiments.models": "experiments.builtin.mlp",
        "experiments.residual": "experiments.builtin.wide_resnet",
    },
    "sparsity": {
        "sparsity": "sparsity",
        **{f"sparsity.{name}": f"sparsity.{name}" for name in ("layers", "masks", "schedules", "training")},
    },
}
"""Top-level package -> old names of its modules -> their names in `tune_sparsity`."""


def make_known() -> None:
    """Allow imports of our modules by their old names. Both names give the same module, which is not loaded twice."""
    for package, modules in _OLD.items():
        if _is_free(package):
            sys.modules.update({old: import_module(f"tune_sparsity.{new}") for old, new in modules.items()})


def _is_free(package: str) -> bool:
    """Return whether no other package has this name. A user's own package keeps its name."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return True
    ours = Path(str(tune_sparsity.__file__)).parent / package
    return Path(spec.origin).resolve().parent == ours.resolve()
