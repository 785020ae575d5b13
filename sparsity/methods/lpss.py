"""lpss: Lp-spherical sparse training, the method that this project is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, cast

import torch
from torch import Generator, nn

from tune_sparsity.sparsity.distributions import DISTRIBUTIONS
from tune_sparsity.sparsity.hoyer import suggest_p
from tune_sparsity.sparsity.layers import PAPER_RULES, Layer, LayerRules, prunable_layers
from tune_sparsity.sparsity.masks import random_mask
from tune_sparsity.sparsity.methods.tail import TailSettings
from tune_sparsity.sparsity.methods.validation import OPTIMIZERS, whole, within
from tune_sparsity.sparsity.neurons.finding import with_neurons
from tune_sparsity.sparsity.neurons.selection import selection_of
from tune_sparsity.sparsity.optim.lpsgd import LR_MAX, LpSGD
from tune_sparsity.sparsity.orientation import STANDARD, Orientation
from tune_sparsity.sparsity.patterns import Neurons
from tune_sparsity.sparsity.schedules import (
    Curve,
    PiecewiseLinear,
    Schedule,
    extremes,
    published_learning_rate,
    schedule_from,
)
from tune_sparsity.sparsity.selection import Selection
from tune_sparsity.sparsity.sphere import P_MAX, P_MIN
from tune_sparsity.sparsity.topology.base import Topology, shortened
from tune_sparsity.sparsity.topology.controller import Feedback, PaperFeedback, ProportionalIntegral
from tune_sparsity.sparsity.topology.magnitude import GlobalMagnitude
from tune_sparsity.sparsity.topology.threshold_adaptation import ThresholdAdaptation
from tune_sparsity.sparsity.training import SparseTraining
from tune_sparsity.sparsity.wrappers import plain_parameters

# Over the sparsity (arXiv 2103.16013: 1.4/1.3 for .5, 1.3/1.15 for .8, 1.2/1.07 for .9, first 4 layers/the rest);
# linear between these, and constant beyond, where nothing was published.
published_p_early = PiecewiseLinear(((0.5, 1.4), (0.8, 1.3), (0.9, 1.2)))
published_p = PiecewiseLinear(((0.5, 1.3), (0.8, 1.15), (0.9, 1.07)))


DROPS = ("ramp", "threshold")
FEEDBACKS = ("published", "pi")
LEARNING_RATES = ("cosine", "hold", "published")
_GAIN_LR = 0.1  # beside AdamW, whose own rates are too small for SGD
THRESHOLD = Schedule("cosine", 0.2, 0.0, 0.1, 0.7)


@dataclass(frozen=True)
class LpssSettings(TailSettings):
    """What can be set, and searched, of Lp-spherical sparse training, with TailSettings. Raises ValueError for what is
    out of range.

    Attributes:
        final_sparsity: fraction of zero weights at the end, in [0, 1), exact to the weight.
        p: the sphere's exponent, in [1.02, 2]; or a schedule of it, all of whose values lie there.
        p_early: another exponent for the first `early_layers` layers on the sphere; None for the same. The published
            recipes for wide residual nets take 4 of them and p_early/p 1.2/1.07 for sparsity .9, 1.3/1.15 for .8 and
            1.4/1.3 for .5.
        sphere_lr: peak learning rate on the sphere, in (0, 0.25].
        lr: peak learning rate of everything else, gains that are learnt included, > 0.
        momentum: Nesterov momentum of both, in [0, 1); with AdamW the beta_1 of everything else.
        weight_decay: L2 coefficient of everything off the sphere, gains that are learnt included, >= 0. Since steps on
            the sphere have the same length however small the gradient, it is what keeps a network that has learned all
            its examples from following the noise of the last few.
        learning_rate: shape of both rates over training: "cosine" after a short rise; "hold", which ends on `tail`;
            "published", piecewise linear with its peak after a sixth; or a schedule, of which both rates are multiples,
            with values in [0, 1].
        knots_for_epochs: how many epochs the training has, at least 1: the published shape has a knot 3 before the end.
        drop: "ramp" keeps the globally largest gain x `|w|` at a sparsity that rises as a cubic from the initial to the
            final one; what is dropped lives on in v and comes back where others fall behind it. "threshold" is the
            published semi-pruning with threshold adaptation: connections below rho x their neuron's mean `|w|` go, and
            others come back by gradient.
        threshold: the drop threshold rho over training, relative to a neuron's mean active `|w|`: a schedule, or those
            of its parts that differ from the default's (a cosine from .2 to 0). Shape, start and stop, in [0, 1], are
            for drop = "threshold". Connections move between its begin and its end, 0 <= begin < end <= 1, with either
            drop; at the end the network is projected to its final sparsity, and trains on under that mask.
        threshold_interval: steps between two updates of the masks, at least 1. In a short training it is shortened, so
            that there are five.
        feedback: what answers the measured sparsity with regrowth: "published" or "pi"; for drop = "threshold".
        feedback_gain: delta of the published feedback, in [0, 1); the integral gain of "pi".
        optimizer: "sgd" or "adamw", of everything off the sphere. On the sphere LpSGD stays, with its momentum. Gains
            that are learnt take SGD, without decay beside AdamW.
        gain_lr: peak learning rate of gains that are learnt, > 0; None for `lr` beside SGD, and .1 beside AdamW.
        initial_sparsity: of the random initial mask, in [0, 1). A trained network has none.
        distribution: how many weights each layer keeps: "global" keeps the largest of all layers together, "erk" and
            "uniform" as many of each layer as they give it. With each of them every neuron keeps a connection, as long
            as there are enough.
    """

    final_sparsity: float
    p: float | Curve | Mapping[str, Any]
    sphere_lr: float = 0.01
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 3e-4
    drop: str = "ramp"
    threshold: Schedule | Mapping[str, Any] | str = THRESHOLD
    threshold_interval: int = 40
    feedback: str = "pi"
    feedback_gain: float = 0.1
    initial_sparsity: float = 0.2
    p_early: float | None = None
    early_layers: int = 4
    learning_rate: str | Curve | Mapping[str, Any] = "cosine"
    knots_for_epochs: int = 50
    optimizer: str = "sgd"
    gain_lr: float | None = None
    distribution: str = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        within("final_sparsity", self.final_sparsity, 0 <= self.final_sparsity < 1, "[0, 1)")
        self._check_p()
        if self.p_early is not None:
            good = isinstance(self.p_early, Real) and P_MIN <= self.p_early <= P_MAX
            within("p_early", self.p_early, good, f"[{P_MIN}, {P_MAX:g}]")
        whole("early_layers", self.early_layers)
        self._check_learning_rate()
        whole("knots_for_epochs", self.knots_for_epochs)
        within("sphere_lr", self.sphere_lr, 0 < self.sphere_lr <= LR_MAX, f"(0, {LR_MAX}]")
        within("lr", self.lr, 0 < self.lr < float("inf"), "(0, inf)")
        within("momentum", self.momentum, 0 <= self.momentum < 1, "[0, 1)")
        within("weight_decay", self.weight_decay, 0 <= self.weight_decay < float("inf"), "[0, inf)")
        within("drop", self.drop, self.drop in DROPS, ", ".join(DROPS))
        self._check_threshold()
        whole("threshold_interval", self.threshold_interval)
        within("feedback", self.feedback, self.feedback in FEEDBACKS, ", ".join(FEEDBACKS))
        within("feedback_gain", self.feedback_gain, 0 <= self.feedback_gain < 1, "[0, 1)")
        within("optimizer", self.optimizer, self.optimizer in OPTIMIZERS, ", ".join(OPTIMIZERS))
        within("gain_lr", self.gain_lr, self.gain_lr is None or 0 < self.gain_lr < float("inf"), "(0, inf), or None")
        within("distribution", self.distribution, self.distribution in DISTRIBUTIONS, ", ".join(DISTRIBUTIONS))
        within("initial_sparsity", self.initial_sparsity, 0 <= self.initial_sparsity < 1, "[0, 1)")

    def _check_p(self) -> None:
        accepted = f"[{P_MIN}, {P_MAX:g}]"
        if isinstance(self.p, Real):
            within("p", self.p, not isinstance(self.p, bool) and P_MIN <= self.p <= P_MAX, accepted)
            return
        if not isinstance(self.p, Curve | Mapping):
            within("p", self.p, False, f"a number in {accepted}, or a schedule")
        p = schedule_from("p", self.p)
        low, high = extremes(p)
        within("p", (low, high), P_MIN <= low <= high <= P_MAX, f"values in {accepted}")
        object.__setattr__(self, "p", p)

    def _check_learning_rate(self) -> None:
        if isinstance(self.learning_rate, str) or not isinstance(self.learning_rate, Curve | Mapping):
            within(
                "learning_rate",
                self.learning_rate,
                self.learning_rate in LEARNING_RATES,
                f"{', '.join(LEARNING_RATES)}, or a schedule",
            )
            return
        curve = schedule_from("learning_rate", self.learning_rate)
        low, high = extremes(curve)
        within("learning_rate", (low, high), 0 <= low <= high <= 1, "multiples of the peak in [0, 1]")
        object.__setattr__(self, "learning_rate", curve)

    def _check_threshold(self) -> None:
        threshold = schedule_from("threshold", self.threshold, THRESHOLD)
        if not isinstance(threshold, Schedule):
            raise ValueError("threshold must be a schedule with a shape, a begin and an end, not one of knots")
        within("threshold.start", threshold.start, 0 < threshold.start <= 1, "(0, 1]")
        within("threshold.stop", threshold.stop, 0 <= threshold.stop <= 1, "[0, 1]")
        within(
            "threshold.begin", threshold.begin, threshold.begin < threshold.end, f"[0, end), and end is {threshold.end}"
        )
        object.__setattr__(self, "threshold", threshold)


def lpss(
    model: nn.Module,
    settings: LpssSettings | None = None,
    *,
    total_steps: int,
    sparsity: float = 0.9,
    generator: Generator | None = None,
    rules: LayerRules = PAPER_RULES,
    example: Any = None,
    trained: bool = False,
) -> SparseTraining:
    """Make the optimizer that trains a network sparse on the Lp sphere (arXiv 2103.16013).

    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> sparse = lpss(model, total_steps=20, sparsity=0.75)
    >>> for _ in range(20):
    ...     sparse.zero_grad()
    ...     model(torch.randn(4, 8)).square().mean().backward()
    ...     sparse.step()
    >>> sparse.zeros()  # (weights that are zero, prunable weights)
    (144, 192)

    Args:
        model: any network with weight matrices, on its device. Its prunable weights are put on the sphere. Every
            neuron keeps its norm as a gain. The gain is learnt, unless a batch normalisation follows directly. Where no
            layer normalises, and the network was not trained before, the norms begin as sqrt(2).
        settings: all settings; by default the theory's p for `sparsity`, and the defaults of LpssSettings.
        total_steps: how many times `step()` will be called.
        sparsity: final sparsity in [0, 1), used when no settings are given.
        generator: of the random initial mask; on the CPU. Default: seeded with 0.
        rules: which layers are pruned, and which of them lie on the sphere.
        example: a batch of inputs, from which `prunable_layers` finds the last layer and the layers that a batch
            normalisation follows. Without it, the order in which layers were registered decides.
        trained: the network was trained before. It begins with the same outputs, and with no masked weight.

    Raises:
        ValueError: if a setting is out of range, or if the network has nothing to prune.
    """
    s = settings or LpssSettings(sparsity, suggest_p(sparsity))
    rules = rules if example is None else with_neurons(rules, model, example)
    layers, steps = prunable_layers(model, rules, example=example), s.steps_of(total_steps)
    initial = 0.0 if trained or isinstance(rules.pattern, Neurons) else min(s.initial_sparsity, s.final_sparsity)
    selection = selection_of(model, layers, s.distribution, rules.pattern)
    if not trained and not selection.normalised:
        _give_rows_norm([layer for layer in layers if layer.sphere], 2**0.5)
    return SparseTraining(
        model,
        layers,
        _sphere_optimizer(model, layers, s),
        _topology(s, initial, selection, steps),
        _random_masks(layers, initial, generator or Generator().manual_seed(0)),
        sparsity=s.final_sparsity,
        total_steps=steps,
        mask_frozen_at=_threshold(s).end,
        learning_rate=_learning_rate(s),
        exponent=None if isinstance(s.p, Real) else cast("Curve", s.p),
        selection=selection,
        averaging=s.averaging_of(_threshold(s).end, steps),
        few_bits=s.few_bits_of(total_steps),
    )


def _threshold(s: LpssSettings) -> Schedule:
    return cast("Schedule", s.threshold)  # the settings have made it one


@torch.no_grad()
def _give_rows_norm(layers: list[Layer], norm: float) -> None:
    """Scale every neuron's weights to this L2 norm; sqrt(2) is the one of He's initialisation for ReLU. What is zero
    stays so."""
    for layer in layers:
        rows = layer.rows()
        given = rows.norm(dim=1, keepdim=True)
        scaled = rows * (norm / given.masked_fill(given == 0, 1.0))
        layer.weight.copy_(layer.turned_back(scaled))


def _sphere_optimizer(model: nn.Module, layers: list[Layer], s: LpssSettings) -> LpSGD:
    sphere = [layer for layer in layers if layer.sphere]
    ids = {id(layer.weight) for layer in sphere}
    named = plain_parameters(model)
    ordinary = [(name, param) for name, param in named if param.requires_grad and id(param) not in ids]
    p = s.p if isinstance(s.p, Real) else cast("Curve", s.p)(0.0)
    early = s.early_layers if s.p_early is not None else 0
    groups: list[dict[str, Any]] = [
        *_alike(sphere[:early], s, p=s.p_early),
        *_alike(sphere[early:], s, p=p, p_moves=True),
        {"params": ordinary, "lr": s.lr, "weight_decay": s.weight_decay, "adamw": s.optimizer == "adamw"},
    ]
    return LpSGD([group for group in groups if group["params"]], momentum=s.momentum)


def _alike(layers: list[Layer], s: LpssSettings, **settings: Any) -> list[dict[str, Any]]:
    """Return a group of the optimizer for each orientation that there is, with gains that are learnt or constant."""
    sgd = s.optimizer == "sgd"
    gain_lr = s.gain_lr or (s.lr if sgd else _GAIN_LR)
    groups = dict[tuple[Orientation, bool], list[tuple[str, nn.Parameter]]]()
    for layer in layers:
        groups.setdefault((layer.orientation, not layer.normalised), []).append((layer.name, layer.weight))
    return [
        {
            "params": members,
            "orientation": None if orientation == STANDARD else tuple(orientation),
            "lr": s.sphere_lr,
            "gain": gain,
            "gain_lr": gain_lr,
            "weight_decay": s.weight_decay if gain and sgd else 0.0,
            **settings,
        }
        for (orientation, gain), members in groups.items()
    ]


def _learning_rate(s: LpssSettings) -> Callable[[float], float]:
    if not isinstance(s.learning_rate, str):
        return cast("Curve", s.learning_rate)
    if s.learning_rate == "published":
        return published_learning_rate(s.knots_for_epochs)
    return s.rate_of(s.learning_rate, _threshold(s).end)


def _topology(s: LpssSettings, initial: float, selection: Selection, total_steps: int) -> Topology:
    falling = _threshold(s)
    rising = Schedule("cubic", initial, s.final_sparsity, falling.begin, falling.end)
    interval = shortened(s.threshold_interval, falling, total_steps)
    if s.drop == "ramp":
        return GlobalMagnitude(rising, interval, selection)
    return ThresholdAdaptation(falling, _feedback(s, rising), interval)


def _feedback(s: LpssSettings, rising: Schedule) -> Feedback:
    if s.feedback == "published":
        return PaperFeedback(s.final_sparsity, s.feedback_gain)
    return ProportionalIntegral(rising, ki=s.feedback_gain)


def _random_masks(layers: list[Layer], sparsity: float, generator: Generator) -> list[torch.Tensor]:
    return [
        layer.turned_back(random_mask(layer.turned(layer.weight).shape, sparsity, generator, layer.weight.dtype))
        for layer in layers
    ]
