"""Define experiments (data, network, loss and recipe for training), and train one network of an experiment.

A user adds an experiment as an `Experiment`: functions for the data, the network, the loss and the metric, and a
`Recipe`. This package does not search. It may import `sparsity`, but not Ray, Optuna or MLflow.
"""

from tune_sparsity.experiments.base import Data, DataUnavailable, Experiment, Recipe
from tune_sparsity.experiments.examples import Loaded, Split
from tune_sparsity.experiments.metrics import Metric
from tune_sparsity.experiments.own import LoopError, OwnLoop, OwnTraining, Trial, own_loop
from tune_sparsity.experiments.registry import BUILT_IN, find
from tune_sparsity.experiments.training import NotFinite, Training

__all__ = [
    "BUILT_IN",
    "Data",
    "DataUnavailable",
    "Experiment",
    "Loaded",
    "LoopError",
    "Metric",
    "NotFinite",
    "OwnLoop",
    "OwnTraining",
    "Recipe",
    "Split",
    "Training",
    "Trial",
    "find",
    "own_loop",
]

if __name__ != "tune_sparsity.experiments":  # imported from the current folder
    raise ImportError(f"{__name__} is part of tune_sparsity: import tune_sparsity.experiments", name=__name__)
