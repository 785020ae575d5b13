"""lpss: Lp-spherical sparse training, the method that this project is for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Generator, nn

from sparsity.checks import numbers, whole, within
from sparsity.feedback import Feedback, ProportionalIntegral, Published
from sparsity.hoyer import suggest_p
from sparsity.layers import PUBLISHED, Layer, LayerRules, has_normalisation, prunable_layers
from sparsity.masks import random_mask
from sparsity.optimizer import LR_MAX, LpSGD
from sparsity.schedules import KINDS, Schedule, published_learning_rate, warmup_cosine
from sparsity.sphere import P_MAX, P_MIN
from sparsity.topology import Ramp, ThresholdAdaptation, Topology
from sparsity.training import SparseTraining

DROPS = ("ramp", "threshold")
FEEDBACKS = ("published", "pi")
LEARNING_RATES = ("cosine", "published")


@dataclass(frozen=True)
class LpssSettings:
    """What can be set, and searched, of Lp-spherical sparse training. Raises ValueError for what is out of range.

    Attributes:
        final_sparsity: fraction of zero weights at the end, in [0, 1), exact to the weight.
        p: the sphere's exponent, in [1.02, 2].
        p_early: another exponent for the first `early_layers` layers on the sphere; None for the same. The published
            recipes for wide residual nets take 4 of them and p_early/p 1.2/1.07 for sparsity .9, 1.3/1.15 for .8 and
            1.4/1.3 for .5.
        sphere_lr: peak learning rate on the sphere, in (0, 0.25].
        lr: peak learning rate of everything else, gains included, > 0.
        momentum: Nesterov momentum of both, in [0, 1).
        weight_decay: L2 coefficient of everything off the sphere, gains included, >= 0. Since steps on the sphere have
            the same length however small the gradient, it is what keeps a network that has learned all its examples
            from following the noise of the last few.
        learning_rate: shape of both rates over training: "cosine" after a short rise, or "published", piecewise linear
            with its peak after a sixth.
        knots_for_epochs: how many epochs the training has, at least 1: the published shape has a knot 3 before the end.
        drop: "ramp" keeps the globally largest gain x |w| at a sparsity that rises as a cubic from the initial to the
            final one; what is dropped lives on in v and comes back where others fall behind it. "threshold" is the
            published semi-pruning with threshold adaptation: connections below rho x their neuron's mean |w| go, and
            others come back by gradient.
        threshold_begin, threshold_end: progress between which connections move, 0 <= begin < end <= 1. At the end
            the network is projected to its final sparsity, and trains on under that mask.
        threshold_interval: steps between two updates of the masks, at least 1.
        threshold: shape of rho over training: constant, cosine, exponential, linear or cubic. This and what follows
            up to feedback_gain is for drop = "threshold".
        threshold_start: rho at the beginning, relative to a neuron's mean active |w|, in (0, 1]; it falls to 0.
        feedback: what answers the measured sparsity with regrowth: "published" or "pi".
        feedback_gain: delta of the published feedback, in [0, 1); the integral gain of "pi".
        initial_sparsity: of the random initial mask, in [0, 1).
    """

    final_sparsity: float
    p: float
    sphere_lr: float = 0.01
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 3e-4
    drop: str = "ramp"
    threshold: str = "cosine"
    threshold_start: float = 0.2
    threshold_begin: float = 0.1
    threshold_end: float = 0.7
    threshold_interval: int = 40
    feedback: str = "pi"
    feedback_gain: float = 0.1
    initial_sparsity: float = 0.2
    p_early: float | None = None
    early_layers: int = 4
    learning_rate: str = "cosine"
    knots_for_epochs: int = 50

    def __post_init__(self) -> None:
        numbers(self)
        within("final_sparsity", self.final_sparsity, 0 <= self.final_sparsity < 1, "[0, 1)")
        within("p", self.p, P_MIN <= self.p <= P_MAX, f"[{P_MIN}, {P_MAX:g}]")
        if self.p_early is not None:
            good = isinstance(self.p_early, Real) and P_MIN <= self.p_early <= P_MAX
            within("p_early", self.p_early, good, f"[{P_MIN}, {P_MAX:g}]")
        whole("early_layers", self.early_layers)
        within("learning_rate", self.learning_rate, self.learning_rate in LEARNING_RATES, ", ".join(LEARNING_RATES))
        whole("knots_for_epochs", self.knots_for_epochs)
        within("sphere_lr", self.sphere_lr, 0 < self.sphere_lr <= LR_MAX, f"(0, {LR_MAX}]")
        within("lr", self.lr, 0 < self.lr < float("inf"), "(0, inf)")
        within("momentum", self.momentum, 0 <= self.momentum < 1, "[0, 1)")
        within("weight_decay", self.weight_decay, 0 <= self.weight_decay < float("inf"), "[0, inf)")
        within("drop", self.drop, self.drop in DROPS, ", ".join(DROPS))
        within("threshold", self.threshold, self.threshold in KINDS, ", ".join(KINDS))
        within("threshold_start", self.threshold_start, 0 < self.threshold_start <= 1, "(0, 1]")
        within("threshold_begin", self.threshold_begin, 0 <= self.threshold_begin < self.threshold_end, "[0, end)")
        within("threshold_end", self.threshold_end, self.threshold_end <= 1, "(begin, 1]")
        whole("threshold_interval", self.threshold_interval)
        within("feedback", self.feedback, self.feedback in FEEDBACKS, ", ".join(FEEDBACKS))
        within("feedback_gain", self.feedback_gain, 0 <= self.feedback_gain < 1, "[0, 1)")
        within("initial_sparsity", self.initial_sparsity, 0 <= self.initial_sparsity < 1, "[0, 1)")


def lpss(
    model: nn.Module,
    settings: LpssSettings | None = None,
    *,
    total_steps: int,
    sparsity: float = 0.9,
    generator: Generator | None = None,
    rules: LayerRules = PUBLISHED,
) -> SparseTraining:
    """Lp-spherical sparse training with semi-pruning and threshold adaptation (arXiv 2103.16013).

    Args:
        model: any network with linear or convolution layers, on its device. Its prunable weights are put on the
            sphere; every neuron gets a learnable gain unless the network has normalisation layers.
        settings: all settings; by default the theory's p for `sparsity`, and the defaults of LpssSettings.
        total_steps: how many times `step()` will be called.
        sparsity: final sparsity in [0, 1), used when no settings are given.
        generator: of the random initial mask; on the CPU. Default: seeded with 0.
        rules: which layers are pruned, and which of them lie on the sphere.
    """
    s = settings or LpssSettings(sparsity, suggest_p(sparsity))
    layers = prunable_layers(model, rules)
    initial = min(s.initial_sparsity, s.final_sparsity)
    return SparseTraining(
        model,
        layers,
        _sphere_optimizer(model, layers, s),
        _topology(s, initial),
        _random_masks(layers, initial, generator or Generator().manual_seed(0)),
        sparsity=s.final_sparsity,
        total_steps=total_steps,
        fix_at=s.threshold_end,
        learning_rate=_learning_rate(s),
    )


def _sphere_optimizer(model: nn.Module, layers: list[Layer], s: LpssSettings) -> LpSGD:
    sphere = [(layer.name, layer.weight) for layer in layers if layer.sphere]
    ids = {id(weight) for _, weight in sphere}
    named = model.named_parameters()
    ordinary = [(name, param) for name, param in named if param.requires_grad and id(param) not in ids]
    gain = not has_normalisation(model)
    early = s.early_layers if s.p_early is not None else 0
    on_sphere = {"lr": s.sphere_lr, "gain": gain, "gain_lr": s.lr, "weight_decay": s.weight_decay if gain else 0.0}
    groups: list[dict[str, Any]] = [
        {"params": sphere[:early], "p": s.p_early, **on_sphere},
        {"params": sphere[early:], "p": s.p, **on_sphere},
        {"params": ordinary, "lr": s.lr, "weight_decay": s.weight_decay},
    ]
    return LpSGD([group for group in groups if group["params"]], momentum=s.momentum)


def _learning_rate(s: LpssSettings) -> Callable[[float], float]:
    return published_learning_rate(s.knots_for_epochs) if s.learning_rate == "published" else warmup_cosine


def _topology(s: LpssSettings, initial: float) -> Topology:
    rising = Schedule("cubic", initial, s.final_sparsity, s.threshold_begin, s.threshold_end)
    if s.drop == "ramp":
        return Ramp(rising, s.threshold_interval)
    falling = Schedule(s.threshold, s.threshold_start, 0.0, s.threshold_begin, s.threshold_end)
    return ThresholdAdaptation(falling, _feedback(s, rising), s.threshold_interval)


def _feedback(s: LpssSettings, rising: Schedule) -> Feedback:
    if s.feedback == "published":
        return Published(s.final_sparsity, s.feedback_gain)
    return ProportionalIntegral(rising, ki=s.feedback_gain)


def _random_masks(layers: list[Layer], sparsity: float, generator: Generator) -> list[torch.Tensor]:
    return [random_mask(layer.weight.shape, sparsity, generator, layer.weight.dtype) for layer in layers]
