"""Define the settings that all methods have for the part of a training after the mask is fixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tune_sparsity.sparsity.averaging import KINDS, Averaging
from tune_sparsity.sparsity.few_bits import ALL_BITS, BITS, FewBits
from tune_sparsity.sparsity.methods.validation import numbers, whole, within
from tune_sparsity.sparsity.schedules import hold, warmup_cosine

_BEGIN, _EARLIEST = 0.8, 0.5  # progress: the tail begins at _BEGIN if the mask is fixed before _EARLIEST
LEARNING_RATES = ("cosine", "hold")


@dataclass(frozen=True, kw_only=True)
class TailSettings:
    """Holds the settings of the tail. The tail begins when the mask is fixed, or at .8 of the training if the mask is
    fixed in its first half.

    Attributes:
        averaging: how the weights are averaged over the tail. "none" keeps the weights of the last step. "swa" takes
            the plain mean, "ema" an exponential moving mean.
        average_every: steps between two samples of the mean, >= 1. A sample reads all weights once.
        ema_horizon: for "ema", the share of the tail over which it averages, in (0, 1].
        weight_bits: bits of a prunable weight, 32, 8, 4 or 2. With fewer than 32 bits, a weight is a whole number times
            the scale of its row. The last part of the training then trains these numbers and scales, and no weights are
            averaged.
        bits_share: the share of all steps that belong to this last part, in (0, 1). The other settings apply to the
            steps before it.
        tail: for the learning rate "hold", the rate in the tail as a share of its peak, in (0, 1].
    """

    averaging: str = "none"
    average_every: int = 4
    ema_horizon: float = 0.2
    tail: float = 0.3
    weight_bits: int = ALL_BITS
    bits_share: float = 0.2

    def __post_init__(self) -> None:
        numbers(self)
        within("averaging", self.averaging, self.averaging in ("none", *KINDS), ", ".join(("none", *KINDS)))
        whole("average_every", self.average_every)
        within("ema_horizon", self.ema_horizon, 0 < self.ema_horizon <= 1, "(0, 1]")
        within("tail", self.tail, 0 < self.tail <= 1, "(0, 1]")
        good = not isinstance(self.weight_bits, bool) and self.weight_bits in (ALL_BITS, *BITS)
        within("weight_bits", self.weight_bits, good, ", ".join(map(str, (ALL_BITS, *BITS))))
        within("bits_share", self.bits_share, 0 < self.bits_share < 1, "(0, 1)")

    def few_bits_of(self, total_steps: int) -> FewBits | None:
        """Return how the last part of `total_steps` steps trains weights with few bits. Return None if weights keep all
        their bits."""
        if self.weight_bits == ALL_BITS:
            return None
        return FewBits(self.weight_bits, min(total_steps - 1, round(self.bits_share * total_steps)))

    def steps_of(self, total_steps: int) -> int:
        """Return the number of steps before the part that trains few bits."""
        few_bits = self.few_bits_of(total_steps)
        return total_steps - (few_bits.steps if few_bits else 0)

    def averaging_of(self, mask_frozen_at: float, total_steps: int) -> Averaging | None:
        """Return how a training of `total_steps` steps averages its weights. Return None if weights are not
        averaged."""
        if self.averaging == "none" or self.weight_bits != ALL_BITS:
            return None
        begin = _tail_begin(mask_frozen_at)
        samples = max(1.0, self.ema_horizon * (1 - begin) * total_steps / self.average_every)
        return Averaging(self.averaging, begin, self.average_every, 1 - 1 / samples)

    def rate_of(self, shape: str, mask_frozen_at: float) -> Callable[[float], float]:
        """Return the learning rate as a function of progress. `shape` is one of LEARNING_RATES."""
        return warmup_cosine if shape == "cosine" else hold(self.tail, _tail_begin(mask_frozen_at))


def _tail_begin(mask_frozen_at: float) -> float:
    return mask_frozen_at if mask_frozen_at >= _EARLIEST else _BEGIN
