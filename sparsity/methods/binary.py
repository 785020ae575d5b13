"""Define the method binary: weights, and usually activations, of one bit, trained in little memory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, nn

from tune_sparsity.sparsity.binary.convert import ACTIVATIONS
from tune_sparsity.sparsity.binary.optimizer import FLIPS
from tune_sparsity.sparsity.binary.training import BinaryTraining
from tune_sparsity.sparsity.layers import PAPER_RULES, LayerRules
from tune_sparsity.sparsity.methods.validation import numbers, within


@dataclass(frozen=True)
class BinarySettings:
    """Holds the settings of binary. The learning rate falls as a cosine.

    Attributes:
        lr: peak learning rate, > 0.
        activations: "binary" or "real". With "real", the activations between layers are real numbers, and only weights
            have one bit.
        flips: how signs change. With "signs", the mean of the gradients' signs moves a latent weight, whose sign is the
            weight. With "bop", a weight changes its sign where this mean is large and has the same sign.
        gamma: for Bop, the peak of the share of a new gradient in the mean, in (0, 1]. It falls with the learning rate.
        tau: for Bop, the magnitude of the mean at which a sign flips, in [0, 1).

    Raises:
        ValueError: if a setting is out of range.
    """

    lr: float = 2e-3
    activations: str = "binary"
    flips: str = "signs"
    gamma: float = 1e-2
    tau: float = 0.05

    def __post_init__(self) -> None:
        numbers(self)
        within("lr", self.lr, 0 < self.lr < float("inf"), "(0, inf)")
        within("activations", self.activations, self.activations in ACTIVATIONS, ", ".join(ACTIVATIONS))
        within("flips", self.flips, self.flips in FLIPS, ", ".join(FLIPS))
        within("gamma", self.gamma, 0 < self.gamma <= 1, "(0, 1]")
        within("tau", self.tau, 0 <= self.tau < 1, "[0, 1)")


def binary(
    model: nn.Module,
    s: BinarySettings,
    *,
    total_steps: int,
    generator: Generator,
    rules: LayerRules = PAPER_RULES,
    trained: bool = False,
) -> BinaryTraining:
    """Train weights and activations of one bit in little memory, without zeros (Wang et al. 2021, arXiv 2102.04270).

    The arguments `generator`, `rules` and `trained` have no effect: the method draws nothing, all layers are binary,
    and the training begins with the network's weights.
    """
    settings = {"lr": s.lr, "flips": s.flips, "gamma": s.gamma, "tau": s.tau}
    return BinaryTraining(model, s.activations, total_steps=total_steps, **settings)
