"""Load a model that an earlier version of tune-sparsity has logged in MLflow.

Such a model names this module as its loader, and a user's code inside it imports `experiments` and `sparsity`. New
models name `tune_sparsity.tuner.tracking.pyfunc_model`. This folder has no `__init__.py`: a package or module called
`tuner` of a user's own comes first.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import tune_sparsity
from tune_sparsity.tuner.tracking import pyfunc_model

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
"""What a user's code may have imported, and where it is in `tune_sparsity`."""


def _load_pyfunc(path: str) -> Any:
    """Load the model in this folder. MLflow calls it."""
    if (Path(path) / pyfunc_model.CODE).is_dir():
        for package, modules in _OLD.items():
            if _is_free(package):
                sys.modules.update({old: import_module(f"tune_sparsity.{new}") for old, new in modules.items()})
    return pyfunc_model._load_pyfunc(path)


def _is_free(package: str) -> bool:
    """Return whether nothing else has this name: a package of a user's own is meant as it is."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return True
    ours = Path(str(tune_sparsity.__file__)).parent / package
    return Path(spec.origin).resolve().parent == ours.resolve()
