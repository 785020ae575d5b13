"""The names that our modules had in earlier versions, for the user's code in models which those have logged."""

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
"""By the top-level name: what a user's code may import, and where it is in `tune_sparsity`."""


def make_known() -> None:
    """Let our modules be imported by their old names too. They are the same modules, and not loaded again."""
    for package, modules in _OLD.items():
        if _is_free(package):
            sys.modules.update({old: import_module(f"tune_sparsity.{new}") for old, new in modules.items()})


def _is_free(package: str) -> bool:
    """Return whether nothing else has this name: a package of a user's own is meant as it is."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return True
    ours = Path(str(tune_sparsity.__file__)).parent / package
    return Path(spec.origin).resolve().parent == ours.resolve()
