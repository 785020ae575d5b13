"""Define the method binary. It trains networks whose weights, and usually activations, have one bit. The training needs
little memory."""

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
    """Holds the settings of the method binary. The learning rate always falls as a cosine.

    Attributes:
        lr: peak learning rate, > 0.
        activations: "binary" or "real". With "real", the activations between layers are real numbers, and only weights
            have one bit.
        flips: the rule that changes the sign of a weight. Both rules use a moving mean of the gradient's sign. With
            "signs", the weight is the sign of a real latent weight, and each step subtracts a multiple of the mean from
            this latent weight. With "bop" (arXiv 1906.02107), the weight changes its sign if the magnitude of the mean
            is above `tau` and the mean has the same sign as the weight.
        gamma: for "bop", the share of a new gradient's sign in the moving mean, in (0, 1]. This is the largest value:
            during the training, the share falls in proportion to the learning rate.
        tau: for "bop", the threshold for the magnitude of the moving mean, in [0, 1).

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
    """Return the training of a network with weights and activations of one bit (Wang et al. 2021, arXiv 2102.04270).

    The training needs little memory. No weight becomes zero. The arguments `generator`, `rules` and `trained` exist for
    other methods and have no effect here.
    """
    settings = {"lr": s.lr, "flips": s.flips, "gamma": s.gamma, "tau": s.tau}
    return BinaryTraining(model, s.activations, total_steps=total_steps, **settings)
