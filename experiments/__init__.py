"""What one trial trains: a data set, a network and a loop, and how a user adds one.

An experiment is an `Experiment`: plain functions for the data, the network, the loss and the metric, and a recipe.
This room may import `sparsity`, and neither Ray nor Optuna nor MLflow. It reads data sets and trains; it does not
search.
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

if __name__ != "tune_sparsity.experiments":  # found in the current folder
    raise ImportError(f"{__name__} is part of tune_sparsity: import tune_sparsity.experiments", name=__name__)
