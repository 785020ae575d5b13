"""Find the most accurate sparse network: Lp-spherical sparse training, tuned with Ray, Optuna and MLflow.

`import tune_sparsity` loads nothing else. A public name is loaded when it is used:

    from tune_sparsity import Data, Experiment, LayerRules, Recipe, Split   # to describe an experiment
    from tune_sparsity import lpss                                          # to train in a loop of your own
    from tune_sparsity import load_study, tune                              # to search from Python and notebooks

The code is in four packages. `tune_sparsity.tuner` searches, `tune_sparsity.search_spaces` describes what is searched,
`tune_sparsity.experiments` describes and trains one trial, and `tune_sparsity.sparsity` makes a network sparse.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tune_sparsity.experiments import Data, DataUnavailable, Experiment, Metric, Recipe, Split, Trial
    from tune_sparsity.experiments.data.augment import Augmentation, Normalise
    from tune_sparsity.experiments.own.lightning import LightningSparsity as LightningSparsity
    from tune_sparsity.experiments.own.transformers import TrainerSparsity as TrainerSparsity
    from tune_sparsity.sparsity import (
        METHODS,
        LayerRules,
        LpSGD,
        LpssSettings,
        PiecewiseLinear,
        Schedule,
        SparseTraining,
        hoyer,
        lpss,
        suggest_p,
    )
    from tune_sparsity.tuner.api import load_study, tune

__all__ = [
    "METHODS",
    "Augmentation",
    "Data",
    "DataUnavailable",
    "Experiment",
    "LayerRules",
    "LpSGD",
    "LpssSettings",
    "Metric",
    "Normalise",
    "PiecewiseLinear",
    "Recipe",
    "Schedule",
    "SparseTraining",
    "Split",
    "Trial",
    "hoyer",
    "load_study",
    "lpss",
    "suggest_p",
    "tune",
]

_EXPERIMENTS = ("Data", "DataUnavailable", "Experiment", "Metric", "Recipe", "Split", "Trial")
_AUGMENT = ("Augmentation", "Normalise")
_API = ("load_study", "tune")
_HOMES = {
    **dict.fromkeys(__all__, "tune_sparsity.sparsity"),
    **dict.fromkeys(_EXPERIMENTS, "tune_sparsity.experiments"),
    **dict.fromkeys(_API, "tune_sparsity.tuner.api"),
    **dict.fromkeys(_AUGMENT, "tune_sparsity.experiments.data.augment"),
}


# Not in __all__, since each needs a library that is an extra.
_HOMES["LightningSparsity"] = "tune_sparsity.experiments.own.lightning"
_HOMES["TrainerSparsity"] = "tune_sparsity.experiments.own.transformers"


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
