"""What one trial trains: a data set, a network and a loop, and how a user adds one.

An experiment is an `Experiment`: plain functions for the data, the network, the loss and the metric, and a recipe.
This room may import `sparsity`, and neither Ray nor Optuna nor MLflow. It reads data sets and trains; it does not
search.
"""

from experiments.base import Data, DataUnavailable, Experiment, Recipe, Split
from experiments.registry import BUILT_IN, find
from experiments.training import NotFinite, Training

__all__ = [
    "BUILT_IN",
    "Data",
    "DataUnavailable",
    "Experiment",
    "NotFinite",
    "Recipe",
    "Split",
    "Training",
    "find",
]
