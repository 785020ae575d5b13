"""Train sparse networks in any torch training loop: pruning methods, LpSGD, masks, schedules and Hoyer sparsity.

The package imports torch, NumPy and its own compiled code, but no other part of this project. An example::

    sparse = lpss(model, total_steps=epochs * len(loader), sparsity=0.9)
    for x, y in loader:
        sparse.zero_grad()
        loss(model(x), y).backward()
        sparse.step()
"""

from tune_sparsity.sparsity.hoyer import hoyer, suggest_p
from tune_sparsity.sparsity.layers import (
    DeadNeurons,
    Layer,
    LayerRules,
    NetworkSize,
    dead_neurons,
    left_dense,
    network_size,
    prunable_layers,
    with_last_layer,
)
from tune_sparsity.sparsity.masks import keep_largest, random_mask, zeros_for
from tune_sparsity.sparsity.methods.lpss import LpssSettings, lpss
from tune_sparsity.sparsity.methods.registry import METHODS
from tune_sparsity.sparsity.optim.lpsgd import LpSGD
from tune_sparsity.sparsity.orientation import Orientation
from tune_sparsity.sparsity.schedules import PiecewiseLinear, Schedule, published_learning_rate, warmup_cosine
from tune_sparsity.sparsity.selection import Selection
from tune_sparsity.sparsity.sphere import dual_exponent, from_dual, project, row_norm, stationary_dual, to_dual
from tune_sparsity.sparsity.topology.magnitude import GlobalMagnitude
from tune_sparsity.sparsity.topology.threshold_adaptation import ThresholdAdaptation
from tune_sparsity.sparsity.training import SparseTraining

__all__ = [
    "METHODS",
    "DeadNeurons",
    "GlobalMagnitude",
    "Layer",
    "LayerRules",
    "LpSGD",
    "LpssSettings",
    "NetworkSize",
    "Orientation",
    "PiecewiseLinear",
    "Schedule",
    "Selection",
    "SparseTraining",
    "ThresholdAdaptation",
    "dead_neurons",
    "dual_exponent",
    "from_dual",
    "hoyer",
    "keep_largest",
    "left_dense",
    "lpss",
    "network_size",
    "project",
    "prunable_layers",
    "published_learning_rate",
    "random_mask",
    "row_norm",
    "stationary_dual",
    "suggest_p",
    "to_dual",
    "warmup_cosine",
    "with_last_layer",
    "zeros_for",
]

if __name__ != "tune_sparsity.sparsity":  # imported from the current folder
    raise ImportError(f"{__name__} is part of tune_sparsity: import tune_sparsity.sparsity", name=__name__)
