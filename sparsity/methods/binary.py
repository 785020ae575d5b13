"""Define the method binary. It trains networks with weights of one bit in little memory. The activations usually have
one bit, too."""

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
        flips: how signs change. With "signs", each weight is the sign of a latent number, which moves by the mean of
            the gradients' signs. With "bop", there is no latent number: a weight flips if this mean is large and has
            the weight's sign.
        gamma: for Bop, the share of a new gradient in the mean, in (0, 1]. This is the peak value. It falls with the
            learning rate.
        tau: for Bop, the magnitude of the mean above which a sign flips, in [0, 1).

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
    """Train a network with weights and activations of one bit, in little memory (Wang et al. 2021, arXiv 2102.04270).
    No weight is zero.

    The arguments `generator`, `rules` and `trained` have no effect: the method draws nothing, all layers are binary,
    and the training begins with the network's weights.
    """
    settings = {"lr": s.lr, "flips": s.flips, "gamma": s.gamma, "tau": s.tau}
    return BinaryTraining(model, s.activations, total_steps=total_steps, **settings)
