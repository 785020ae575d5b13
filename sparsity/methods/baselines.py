"""The methods that people would use instead, over plain SGD: short recipes over the same parts as lpss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, nn

from tune_sparsity.sparsity.distributions import DISTRIBUTIONS, random_masks
from tune_sparsity.sparsity.layers import PAPER_RULES, Layer, LayerRules, prunable_layers, turned_back
from tune_sparsity.sparsity.methods.validation import numbers, whole, within
from tune_sparsity.sparsity.schedules import Schedule, warmup_cosine
from tune_sparsity.sparsity.selection import selection_for
from tune_sparsity.sparsity.topology.base import Topology, shortened
from tune_sparsity.sparsity.topology.drop_grow import DropGrow
from tune_sparsity.sparsity.topology.magnitude import GlobalMagnitude
from tune_sparsity.sparsity.topology.static import SnipAtInit, StaticMask
from tune_sparsity.sparsity.training import SparseTraining


@dataclass(frozen=True)
class DenseSettings:
    """lr: peak learning rate, > 0. momentum: Nesterov momentum in [0, 1). weight_decay: L2 coefficient, >= 0."""

    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        numbers(self)
        within("lr", self.lr, 0 < self.lr < float("inf"), "(0, inf)")
        within("momentum", self.momentum, 0 <= self.momentum < 1, "[0, 1)")
        within("weight_decay", self.weight_decay, 0 <= self.weight_decay < float("inf"), "[0, inf)")


@dataclass(frozen=True)
class SnipSettings(DenseSettings):
    """And final_sparsity: fraction of zero weights, in [0, 1), exact to the weight."""

    final_sparsity: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        within("final_sparsity", self.final_sparsity, 0 <= self.final_sparsity < 1, "[0, 1)")


@dataclass(frozen=True)
class GmpSettings(SnipSettings):
    """And begin, end: progress between which the sparsity rises, 0 <= begin < end <= 1; interval: steps between two
    prunings, shortened in a short training so that there are five; distribution: of what is kept over the layers,
    global, erk or uniform, as of lpss."""

    begin: float = 0.1
    end: float = 0.7
    interval: int = 40
    distribution: str = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        within("begin", self.begin, 0 <= self.begin < self.end, "[0, end)")
        within("end", self.end, self.end <= 1, "(begin, 1]")
        whole("interval", self.interval)
        within("distribution", self.distribution, self.distribution in DISTRIBUTIONS, ", ".join(DISTRIBUTIONS))


@dataclass(frozen=True)
class StaticSettings(SnipSettings):
    """And distribution: of the mask over the layers, uniform, erk or global."""

    distribution: str = "erk"

    def __post_init__(self) -> None:
        super().__post_init__()
        within("distribution", self.distribution, self.distribution in DISTRIBUTIONS, ", ".join(DISTRIBUTIONS))


@dataclass(frozen=True)
class DropGrowSettings(StaticSettings):
    """And drop_fraction: share of the connections that an update replaces at first, in (0, 1), a cosine to 0 at
    `end`, the progress at which the mask is fixed, in (0, 1]; interval: steps between two updates."""

    drop_fraction: float = 0.3
    end: float = 0.75
    interval: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        within("drop_fraction", self.drop_fraction, 0 < self.drop_fraction < 1, "(0, 1)")
        within("end", self.end, 0 < self.end <= 1, "(0, 1]")
        whole("interval", self.interval)


def _training(
    model: nn.Module,
    layers: list[Layer],
    s: DenseSettings,
    topology: Topology,
    masks: list[torch.Tensor],
    total_steps: int,
    **options: Any,
) -> SparseTraining:
    params = [param for param in model.parameters() if param.requires_grad]
    optimizer = torch.optim.SGD(
        params,
        lr=s.lr,
        momentum=s.momentum,
        nesterov=s.momentum > 0,
        weight_decay=s.weight_decay,
        fused=True if params[0].device.type == "cuda" else None,
    )
    return SparseTraining(
        model, layers, optimizer, topology, masks, total_steps=total_steps, learning_rate=warmup_cosine, **options
    )


def _ones(layers: list[Layer]) -> list[torch.Tensor]:
    return [torch.ones_like(layer.weight) for layer in layers]


def _random(layers: list[Layer], s: StaticSettings, generator: Generator) -> list[torch.Tensor]:
    turned = [layer.turned(layer.weight) for layer in layers]
    return turned_back(layers, random_masks(turned, s.final_sparsity, s.distribution, generator))


def dense(
    model: nn.Module, s: DenseSettings, *, total_steps: int, generator: Generator, rules: LayerRules = PAPER_RULES
) -> SparseTraining:
    """No sparsity at all: what the others are measured against."""
    layers = prunable_layers(model, rules, sphere=False)
    return _training(model, layers, s, StaticMask(), _ones(layers), total_steps, sparsity=0.0, mask_frozen_at=0.0)


def static(
    model: nn.Module, s: StaticSettings, *, total_steps: int, generator: Generator, rules: LayerRules = PAPER_RULES
) -> SparseTraining:
    """A random mask that never changes."""
    layers = prunable_layers(model, rules, sphere=False)
    masks = _random(layers, s, generator)
    return _training(model, layers, s, StaticMask(), masks, total_steps, sparsity=s.final_sparsity, mask_frozen_at=0.0)


def snip(
    model: nn.Module, s: SnipSettings, *, total_steps: int, generator: Generator, rules: LayerRules = PAPER_RULES
) -> SparseTraining:
    """The connections of largest |weight x gradient| on the first batch (Lee et al. 2019, arXiv 1810.02340)."""
    layers = prunable_layers(model, rules, sphere=False)
    topology = SnipAtInit(s.final_sparsity)
    mask_frozen_at = 1 / total_steps  # the step after the one at which the topology chooses
    return _training(
        model, layers, s, topology, _ones(layers), total_steps, sparsity=s.final_sparsity, mask_frozen_at=mask_frozen_at
    )


def gmp(
    model: nn.Module, s: GmpSettings, *, total_steps: int, generator: Generator, rules: LayerRules = PAPER_RULES
) -> SparseTraining:
    """Gradual magnitude pruning: a cubic ramp of the sparsity (Zhu and Gupta 2017, arXiv 1710.01878)."""
    layers = prunable_layers(model, rules, sphere=False)
    selection = selection_for(model, s.distribution)
    rising = Schedule("cubic", 0.0, s.final_sparsity, s.begin, s.end)
    topology = GlobalMagnitude(rising, shortened(s.interval, rising, total_steps), selection)
    options = {"sparsity": s.final_sparsity, "mask_frozen_at": s.end, "selection": selection}
    return _training(model, layers, s, topology, _ones(layers), total_steps, **options)


def _drop_grow(growth: str, doc: str) -> Callable[..., SparseTraining]:
    def make(
        model: nn.Module,
        s: DropGrowSettings,
        *,
        total_steps: int,
        generator: Generator,
        rules: LayerRules = PAPER_RULES,
    ) -> SparseTraining:
        layers = prunable_layers(model, rules, sphere=False)
        masks = _random(layers, s, generator)
        topology = DropGrow(Schedule("cosine", s.drop_fraction, 0.0, 0.0, s.end), growth, s.interval, generator)
        return _training(
            model, layers, s, topology, masks, total_steps, sparsity=s.final_sparsity, mask_frozen_at=s.end
        )

    make.__doc__ = doc
    return make


set_ = _drop_grow("random", "SET: drops the smallest weights, grows at random (Mocanu et al. 2018).")
rigl = _drop_grow("gradient", "RigL: drops the smallest weights, grows by gradient (Evci et al. 2020, 1911.11134).")
sparse_momentum = _drop_grow("momentum", "Sparse momentum: grows by momentum (Dettmers, Zettlemoyer 2019, 1907.04840).")
