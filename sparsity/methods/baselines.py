"""Define the methods that are compared with lpss, such as RigL. They come from other papers. Their optimizer is SGD or
AdamW."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Generator, Tensor, nn

from tune_sparsity.sparsity.distributions import DISTRIBUTIONS, layer_counts, random_masks
from tune_sparsity.sparsity.few_bits import FewBits
from tune_sparsity.sparsity.layers import PAPER_RULES, Layer, LayerRules, prunable_layers, turned_back
from tune_sparsity.sparsity.masks import keep_largest, zeros_for
from tune_sparsity.sparsity.methods.tail import LEARNING_RATES, TailSettings
from tune_sparsity.sparsity.methods.validation import OPTIMIZERS, whole, within
from tune_sparsity.sparsity.neurons.selection import selection_of
from tune_sparsity.sparsity.optim.adamw import BETA_2
from tune_sparsity.sparsity.schedules import Schedule
from tune_sparsity.sparsity.topology.base import Topology, shortened
from tune_sparsity.sparsity.topology.drop_grow import DropGrow
from tune_sparsity.sparsity.topology.magnitude import GlobalMagnitude
from tune_sparsity.sparsity.topology.static import SnipAtInit, StaticMask
from tune_sparsity.sparsity.training import SparseTraining


@dataclass(frozen=True)
class DenseSettings(TailSettings):
    """Holds the settings of the method dense, in addition to those of TailSettings. The method dense makes no zeros.

    Attributes:
        lr: peak learning rate, > 0.
        momentum: Nesterov momentum of SGD or beta_1 of AdamW, in [0, 1).
        weight_decay: L2 coefficient of SGD or weight decay of AdamW, >= 0.
        optimizer: "sgd" or "adamw".
        learning_rate: shape of the learning rate over the training. "cosine" rises during the first .05 of the training
            and then falls to 0. "hold" rises in the same way, stays at the peak for a long time and then falls to the
            peak times `tail`, an attribute of TailSettings.

    Raises:
        ValueError: if a setting is out of range.
    """

    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    optimizer: str = "sgd"
    learning_rate: str = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        within("lr", self.lr, 0 < self.lr < float("inf"), "(0, inf)")
        within("momentum", self.momentum, 0 <= self.momentum < 1, "[0, 1)")
        within("weight_decay", self.weight_decay, 0 <= self.weight_decay < float("inf"), "[0, inf)")
        within("optimizer", self.optimizer, self.optimizer in OPTIMIZERS, ", ".join(OPTIMIZERS))
        within("learning_rate", self.learning_rate, self.learning_rate in LEARNING_RATES, ", ".join(LEARNING_RATES))


@dataclass(frozen=True)
class SnipSettings(DenseSettings):
    """Holds the settings of the method snip, in addition to those of DenseSettings.

    Attributes:
        final_sparsity: fraction of the prunable weights that are zero at the end, in [0, 1). The number of zeros is
            rounded up to a whole number.
    """

    final_sparsity: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        within("final_sparsity", self.final_sparsity, 0 <= self.final_sparsity < 1, "[0, 1)")


@dataclass(frozen=True)
class GmpSettings(SnipSettings):
    """Holds the settings of gmp (gradual magnitude pruning), in addition to those of SnipSettings.

    Attributes:
        begin, end: the sparsity rises between these fractions of the training, 0 <= begin < end <= 1.
        interval: steps between two prunings, at least 1. In a short training, the interval is reduced to allow five
            prunings.
        distribution: how the nonzero weights are distributed over the layers: "global", "erk" or "uniform". See
            LpssSettings.
        width: a number in (0, 1]. A layer of n neurons begins with n^width neurons. The weights of its other neurons
            are always zero.
    """

    begin: float = 0.1
    end: float = 0.7
    interval: int = 40
    distribution: str = "global"
    width: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        within("width", self.width, 0 < self.width <= 1, "(0, 1]")
        within("begin", self.begin, 0 <= self.begin < self.end, "[0, end)")
        within("end", self.end, self.end <= 1, "(begin, 1]")
        whole("interval", self.interval)
        within("distribution", self.distribution, self.distribution in DISTRIBUTIONS, ", ".join(DISTRIBUTIONS))


@dataclass(frozen=True)
class StaticSettings(SnipSettings):
    """Holds the settings of the method static, in addition to those of SnipSettings. The masks of the method static
    never change.

    Attributes:
        distribution: how the nonzero weights of the first mask are distributed over the layers: "uniform", "erk" or
            "global". See LpssSettings.
    """

    distribution: str = "erk"

    def __post_init__(self) -> None:
        super().__post_init__()
        within("distribution", self.distribution, self.distribution in DISTRIBUTIONS, ", ".join(DISTRIBUTIONS))


@dataclass(frozen=True)
class DropGrowSettings(StaticSettings):
    """Holds the settings of the methods set, rigl and sparse-momentum, in addition to those of StaticSettings.

    These methods replace a part of the connections in each update of the mask.

    Attributes:
        drop_fraction: share of the connections that an update at the beginning of the training replaces, in (0, 1). The
            share falls from this value to 0 at `end` as a cosine.
        end: fraction of the training at which the mask is fixed, in (0, 1].
        interval: steps between two updates of the mask, at least 1.
    """

    drop_fraction: float = 0.3
    end: float = 0.75
    interval: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        within("drop_fraction", self.drop_fraction, 0 < self.drop_fraction < 1, "(0, 1)")
        within("end", self.end, 0 < self.end <= 1, "(0, 1]")
        whole("interval", self.interval)


@dataclass(frozen=True)
class Start:
    """Holds the arguments that all methods of this module need to build a SparseTraining.

    Attributes:
        model: the network.
        layers: its prunable layers.
        total_steps: the number of steps before weights get few bits. Steps with few bits may follow; see `few_bits`.
        generator: draws random masks, on the CPU.
        trained: whether the network is pretrained.
        few_bits: the settings of the steps with few bits, or None if there are no such steps.
        rules: rules that select the layers to prune, and the pattern of the zeros.
    """

    model: nn.Module
    layers: list[Layer]
    total_steps: int
    generator: Generator
    trained: bool
    few_bits: FewBits | None
    rules: LayerRules

    def ones(self) -> list[Tensor]:
        return [torch.ones_like(layer.weight) for layer in self.layers]

    def training(
        self, s: DenseSettings, topology: Topology, masks: list[Tensor], *, mask_frozen_at: float, **options: Any
    ) -> SparseTraining:
        return SparseTraining(
            self.model,
            self.layers,
            _optimizer([param for param in self.model.parameters() if param.requires_grad], s),
            topology,
            masks,
            total_steps=self.total_steps,
            mask_frozen_at=mask_frozen_at,
            learning_rate=s.rate_of(s.learning_rate, mask_frozen_at),
            averaging=s.averaging_of(mask_frozen_at, self.total_steps),
            few_bits=self.few_bits,
            **options,
        )


def method(recipe: Callable[[Start, Any], SparseTraining]) -> Callable[..., SparseTraining]:
    """Convert a function (Start, settings) -> SparseTraining to the form (network, settings, total_steps=..., ...) ->
    SparseTraining."""

    @wraps(recipe)
    def make(
        model: nn.Module,
        s: DenseSettings,
        *,
        total_steps: int,
        generator: Generator,
        rules: LayerRules = PAPER_RULES,
        trained: bool = False,
    ) -> SparseTraining:
        layers = prunable_layers(model, rules, sphere=False)
        bits = s.few_bits_of(total_steps)
        return recipe(Start(model, layers, s.steps_of(total_steps), generator, trained, bits, rules), s)

    return make


def _optimizer(params: list[nn.Parameter], s: DenseSettings) -> torch.optim.Optimizer:
    if s.optimizer == "adamw":  # the fused form is fast on a CPU, too
        plain = all(param.is_floating_point() for param in params)
        return torch.optim.AdamW(
            params, lr=s.lr, betas=(s.momentum, BETA_2), weight_decay=s.weight_decay, fused=plain or None
        )
    return torch.optim.SGD(
        params,
        lr=s.lr,
        momentum=s.momentum,
        nesterov=s.momentum > 0,
        weight_decay=s.weight_decay,
        fused=True if params and params[0].device.type == "cuda" else None,
    )


def first_masks(start: Start, s: StaticSettings) -> list[Tensor]:
    """Return the first masks for a method that begins sparse. For a new network, the masks are random. For a pretrained
    network, the masks keep the largest weights."""
    turned = [layer.turned(layer.weight.detach()) for layer in start.layers]
    if start.trained:
        return turned_back(start.layers, _largest(turned, s.final_sparsity, s.distribution))
    return turned_back(start.layers, random_masks(turned, s.final_sparsity, s.distribution, start.generator))


def _largest(weights: Sequence[Tensor], sparsity: float, distribution: str) -> list[Tensor]:
    """Return masks that keep the weights with the largest magnitudes. With "global", all layers are compared together.
    Otherwise the distribution gives the number of weights in each layer."""
    scores = [weight.abs() for weight in weights]
    if distribution == "global":
        total = sum(score.numel() for score in scores)
        return keep_largest(scores, total - zeros_for(sparsity, total))
    counts = layer_counts([score.shape for score in scores], sparsity, distribution)
    return [keep_largest([score], count)[0] for score, count in zip(scores, counts, strict=True)]


@method
def dense(start: Start, s: DenseSettings) -> SparseTraining:
    """Return a training without pruning, for comparison with the other methods."""
    return start.training(s, StaticMask(), start.ones(), sparsity=0.0, mask_frozen_at=0.0)


@method
def static(start: Start, s: StaticSettings) -> SparseTraining:
    """Return a training with masks that never change.

    For a new network, the masks are random. For a pretrained network, the masks keep the largest weights.
    """
    return start.training(s, StaticMask(), first_masks(start, s), sparsity=s.final_sparsity, mask_frozen_at=0.0)


@method
def snip(start: Start, s: SnipSettings) -> SparseTraining:
    """Return a training that prunes once, at the first step: SNIP (Lee et al. 2019, arXiv 1810.02340).

    The connections with the largest |weight x gradient| on the first batch stay.
    """
    topology = SnipAtInit(s.final_sparsity)
    mask_frozen_at = 1 / start.total_steps  # the step after the topology has chosen the mask
    return start.training(s, topology, start.ones(), sparsity=s.final_sparsity, mask_frozen_at=mask_frozen_at)


@method
def gmp(start: Start, s: GmpSettings) -> SparseTraining:
    """Return a training that gradually prunes the smallest weights (Zhu and Gupta 2017, arXiv 1710.01878).

    The sparsity rises as a cubic function of the training's progress.
    """
    about = (s.distribution, start.rules, s.final_sparsity)
    selection = selection_of(start.model, start.layers, *about, width=s.width, trained=start.trained)
    first = selection.first(start.ones())
    rising = Schedule("cubic", selection.in_whole(0.0), s.final_sparsity, s.begin, s.end)
    topology = GlobalMagnitude(rising, shortened(s.interval, rising, start.total_steps), selection)
    return start.training(s, topology, first, sparsity=s.final_sparsity, mask_frozen_at=s.end, selection=selection)


def _drop_grow(growth: str, doc: str) -> Callable[..., SparseTraining]:
    def recipe(start: Start, s: DropGrowSettings) -> SparseTraining:
        masks = first_masks(start, s)
        falling = Schedule("cosine", s.drop_fraction, 0.0, 0.0, s.end)
        topology = DropGrow(falling, growth, s.interval, start.generator)
        return start.training(s, topology, masks, sparsity=s.final_sparsity, mask_frozen_at=s.end)

    recipe.__doc__ = doc
    return method(recipe)


set_ = _drop_grow("random", "Drop the smallest weights and grow others at random: SET (Mocanu et al. 2018).")
rigl = _drop_grow("gradient", "Drop the smallest weights and grow others by gradient: RigL (Evci et al. 2020).")
sparse_momentum = _drop_grow(
    "momentum", "Drop the smallest weights and grow others by momentum (Dettmers, Zettlemoyer 2019, arXiv 1907.04840)."
)
