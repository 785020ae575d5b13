"""Load a model that an earlier version of tune-sparsity has logged in MLflow: such a model names this module.

New models name `tune_sparsity.tuner.tracking.pyfunc_model`. This folder has no `__init__.py`: a package or module
called `tuner` of a user's own comes first.
"""

from tune_sparsity.tuner.tracking.pyfunc_model import _load_pyfunc

__all__ = ["_load_pyfunc"]
