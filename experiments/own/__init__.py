"""Loops of one's own: a user's training function, which asks its trial for the optimizer and the epochs."""

from tune_sparsity.experiments.own.loop import OwnLoop, own_loop
from tune_sparsity.experiments.own.training import OwnTraining
from tune_sparsity.experiments.own.trial import LoopError, Trial

__all__ = ["LoopError", "OwnLoop", "OwnTraining", "Trial", "own_loop"]
