"""Run training loops of users: a loop is a function that gets its optimizer and its epochs from a `Trial`."""

from tune_sparsity.experiments.own.loop import OwnLoop, own_loop
from tune_sparsity.experiments.own.training import OwnTraining
from tune_sparsity.experiments.own.trial import LoopError, Trial

__all__ = ["LoopError", "OwnLoop", "OwnTraining", "Trial", "own_loop"]
