"""Load a model that an earlier version of tune-sparsity has logged in MLflow.

Such a model names this module as its loader. New models name `tune_sparsity.tuner.served`.
"""

from tune_sparsity.tuner.served import _load_pyfunc

__all__ = ["_load_pyfunc"]
