"""Run users' own training loops. A loop is a function with one argument, a `Trial`. The trial gives the loop its
optimizer and its epochs."""

from tune_sparsity.experiments.own.loop import OwnLoop, own_loop
from tune_sparsity.experiments.own.training import OwnTraining
from tune_sparsity.experiments.own.trial import LoopError, Trial

__all__ = ["LoopError", "OwnLoop", "OwnTraining", "Trial", "own_loop"]
