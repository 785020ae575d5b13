"""Define the method lpss (Lp-spherical sparse training). It trains the weights of each neuron on the unit Lp sphere."""

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

# p by sparsity. arXiv 2103.16013 has, for the first 4 layers/the others, 1.4/1.3 at .5, 1.3/1.15 at .8 and 1.2/1.07 at
# .9. p is linear between these values and constant beyond them, where nothing was published.
published_p_early = PiecewiseLinear(((0.5, 1.4), (0.8, 1.3), (0.9, 1.2)))
published_p = PiecewiseLinear(((0.5, 1.3), (0.8, 1.15), (0.9, 1.07)))


DROPS = ("ramp", "threshold")
FEEDBACKS = ("published", "pi")
LEARNING_RATES = ("cosine", "hold", "published")
# The default of `gain_lr` with optimizer="adamw". SGD trains the gains also in this case, and the learning rates that
# suit AdamW are too small for SGD.
_GAIN_LR = 0.1
THRESHOLD = Schedule("cosine", 0.2, 0.0, 0.1, 0.7)


@dataclass(frozen=True)
class LpssSettings(TailSettings):
    """Holds the settings of lpss, in addition to those of TailSettings. A search can vary all of them.

    The incoming weights of a neuron are gain x w. The vector w lies on the unit Lp sphere: its Lp norm is 1. The gain
    is one number for each neuron. Weights that are trained in this way are "on the sphere". All other parameters, for
    example biases, are "off the sphere". "published" refers to arXiv 2103.16013.

    Attributes:
        final_sparsity: fraction of the prunable weights that are zero at the end, in [0, 1). The number of zeros is
            rounded up to a whole number.
        p: exponent of the sphere, in [1.02, 2]. It may also be a schedule with values in this range.
        p_early: exponent for the first `early_layers` layers on the sphere, in [1.02, 2]. If None, these layers use
            `p`. The published values for wide residual networks, with 4 early layers, are p_early = 1.2 and p = 1.07
            for the sparsity .9; p_early = 1.3 and p = 1.15 for .8; p_early = 1.4 and p = 1.3 for .5.
        early_layers: the number of layers with `p_early`, at least 1.
        sphere_lr: peak learning rate on the sphere, in (0, 0.25].
        lr: peak learning rate off the sphere, > 0.
        momentum: Nesterov momentum on and off the sphere, in [0, 1). With AdamW, it is
            beta_1 of AdamW off the sphere, and Nesterov momentum on the sphere.
        weight_decay: >= 0. With SGD, this is the L2 coefficient for all parameters off the sphere and for trained
            gains. With AdamW, this is the weight decay of AdamW for parameters off the sphere, and trained gains have
            no weight decay. Reason for weight decay: if a network has learned almost all examples, its gradients are
            small, but its steps on the sphere do not become shorter. Without weight decay, the network could then fit
            noise in the few examples that it has not learned.
        learning_rate: shape of both learning rates over the training. "cosine" rises during the first .05 of the
            training and then falls to 0. "hold" rises in the same way, stays at the peak for a long time and then falls
            to the peak times `tail`, an attribute of TailSettings. "published" is piecewise linear, with its peak after
            a sixth of the training. The shape may also be a schedule with values in [0, 1], by which the peak learning
            rates are multiplied.
        knots_for_epochs: for the learning rate "published", the number of epochs in the training, at least 1. This
            number is needed because the slope of this learning rate changes 3 epochs before the end.
        drop: "ramp" prunes by magnitude. The sparsity rises as a cubic function from the initial to the final sparsity.
            On the sphere, the optimizer keeps a magnitude for each pruned weight. If this magnitude is large enough at
            a later update of the masks, the weight becomes active again. "threshold" is the published rule, threshold
            adaptation: a connection is dropped if its `|w|` is less than rho x the mean `|w|` of its neuron, and
            inactive connections with large gradients become active. The attribute `threshold` describes rho.
        threshold: a schedule for rho, the drop threshold relative to the mean `|w|` of a neuron's active weights. The
            default schedule is a cosine from .2 to 0. The value may also be a dict from names of fields to values.
            These fields then replace those of the default schedule. The fields `begin` and `end` are fractions of the
            training, 0 <= begin < end <= 1. They have an effect for both values of `drop`: the masks change only
            between them, and at `end`, the network is pruned to its final sparsity, and its mask is fixed. The fields
            `shape`, `start` and `stop` have an effect only if drop = "threshold". `start` lies in (0, 1], and `stop` in
            [0, 1].
        threshold_interval: steps between two updates of the masks, at least 1. In a short training, the interval is
            reduced to allow five updates.
        feedback: if drop = "threshold", the controller of the sparsity: "published" or "pi" (proportional-integral). It
            computes from the current sparsity how many connections become active.
        feedback_gain: a number in [0, 1). For the feedback "pi" it is the integral gain. For the feedback "published"
            it is the attribute `delta` of PaperFeedback.
        optimizer: "sgd" or "adamw", for all parameters off the sphere. The optimizer on the sphere is always LpSGD.
            Trained gains always use SGD.
        gain_lr: peak learning rate of trained gains, > 0. If None, this is `lr` with SGD, and .1 with AdamW.
        initial_sparsity: sparsity of the random initial mask, in [0, 1). A pretrained network begins without a mask.
        distribution: how the nonzero weights are distributed over the layers. "global" keeps the largest weights of all
            layers together. "erk" and "uniform" fix the number of weights in each layer. Every neuron keeps at least
            one weight if enough weights are nonzero; see `selection_for`.
        width: a number in (0, 1]. A layer of n neurons begins with n^width neurons. The weights of its other neurons
            are always zero. A width less than 1 needs drop = "ramp".

    Raises:
        ValueError: if a setting is out of range.
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
    width: float = 1.0

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
        narrow = self.drop == "ramp" or self.width == 1
        within("width", self.width, 0 < self.width <= 1 and narrow, '(0, 1], and 1 with drop = "threshold"')
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
            raise ValueError("threshold must be a schedule with shape, begin and end: knots are not accepted")
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
    sparsity: float | None = None,
    generator: Generator | None = None,
    rules: LayerRules = PAPER_RULES,
    example: Any = None,
    trained: bool = False,
) -> SparseTraining:
    """Return an optimizer that trains a network on the Lp sphere and makes it sparse (arXiv 2103.16013).

    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> sparse = lpss(model, total_steps=20, sparsity=0.75)
    >>> for _ in range(20):
    ...     sparse.zero_grad()
    ...     model(torch.randn(4, 8)).square().mean().backward()
    ...     sparse.step()
    >>> sparse.zeros()  # (weights that are zero, prunable weights)
    (144, 192)

    Args:
        model: any network with weight matrices, already on its device. The weights of a neuron on the sphere become
            gain x w. The gain begins as their Lp norm. It is trained unless a batch or instance normalisation follows
            directly. In a new network without normalisations, each such neuron first gets the L2 norm sqrt(2).
        settings: all settings. If None, p is `suggest_p(sparsity)`, and the others are the defaults of LpssSettings.
        total_steps: the number of calls of `step()`, at least 1.
        sparsity: final sparsity in [0, 1). If None, the final sparsity of `settings` is used, or 0.9 without settings.
        generator: draws the random initial mask, on the CPU. If None, this is a generator with the seed 0.
        rules: rules that select the layers to prune and the layers on the sphere.
        example: a batch of inputs. One call of the network with it shows which layer is last, and which layers a batch
            or instance normalisation follows. If None, the order of the modules in the network decides.
        trained: whether the network is pretrained. The training then begins without a mask.

    Raises:
        ValueError: if an argument or a setting is not accepted, or if the network has no weights to prune.
    """
    s = _settings(model, settings, sparsity)
    rules = rules if example is None else with_neurons(rules, model, example, width=s.width)
    layers, steps = prunable_layers(model, rules, example=example), s.steps_of(total_steps)
    initial = 0.0 if trained or isinstance(rules.pattern, Neurons) else min(s.initial_sparsity, s.final_sparsity)
    selection = selection_of(model, layers, s.distribution, rules, s.final_sparsity, width=s.width, trained=trained)
    if not trained and not selection.normalised:
        _give_rows_norm([layer for layer in layers if layer.sphere], 2**0.5)
    return SparseTraining(
        model,
        layers,
        _sphere_optimizer(model, layers, s),
        _topology(s, selection.in_whole(initial), selection, steps),
        selection.first(_random_masks(layers, initial, generator or Generator().manual_seed(0))),
        sparsity=s.final_sparsity,
        total_steps=steps,
        mask_frozen_at=_threshold(s).end,
        learning_rate=_learning_rate(s),
        exponent=None if isinstance(s.p, Real) else cast("Curve", s.p),
        selection=selection,
        averaging=s.averaging_of(_threshold(s).end, steps),
        few_bits=s.few_bits_of(total_steps),
    )


def _settings(model: Any, settings: Any, sparsity: float | None) -> LpssSettings:
    """Return the settings for these arguments of `lpss`. Raise ValueError for a wrong argument."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a network, an nn.Module, got {model!r:.80}")
    if settings is None:
        sparsity = 0.9 if sparsity is None else sparsity
        within("sparsity", sparsity, 0 <= sparsity < 1, "[0, 1)")
        return LpssSettings(sparsity, suggest_p(sparsity))
    if not isinstance(settings, LpssSettings):
        raise ValueError(f"settings must be LpssSettings, got {type(settings).__name__}")
    if sparsity not in (None, settings.final_sparsity):
        raise ValueError(
            f"sparsity = {sparsity} contradicts final_sparsity = {settings.final_sparsity} of the settings"
        )
    return settings


def _threshold(s: LpssSettings) -> Schedule:
    return cast("Schedule", s.threshold)  # __post_init__ has converted it


@torch.no_grad()
def _give_rows_norm(layers: list[Layer], norm: float) -> None:
    """Scale the weights of every neuron to this L2 norm. Weights that are all zero do not change. With sqrt(2), neurons
    have the norm that He's initialisation for ReLU gives them on average."""
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
    """Return the optimizer's groups for these layers. Layers of a group have the same orientation and the same kind of
    gains, trained or constant."""
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
