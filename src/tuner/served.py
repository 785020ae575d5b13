"""Load a model that an earlier version of tune-sparsity has logged in MLflow.

Such a model names this module as its loader. New models name `tune_sparsity.tuner.tracking.pyfunc_model`.
"""

from tune_sparsity.tuner.tracking.pyfunc_model import _load_pyfunc

__all__ = ["_load_pyfunc"]
