"""Make modules importable by the names that they had in earlier versions of this package. A model that an earlier
version has logged may contain code of a user that imports these names."""

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
"""For each old top-level package: the new name in `tune_sparsity` of each module, by its old name."""


def make_known() -> None:
    """Allow imports of this package's modules by their old names. An old and a new name give the same module, which is
    loaded only once."""
    for package, modules in _OLD.items():
        if _is_free(package):
            sys.modules.update({old: import_module(f"tune_sparsity.{new}") for old, new in modules.items()})


def _is_free(package: str) -> bool:
    """Return whether no package of another project has this name. If there is one, the name belongs to that package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return True
    ours = Path(str(tune_sparsity.__file__)).parent / package
    return Path(spec.origin).resolve().parent == ours.resolve()
