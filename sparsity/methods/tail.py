"""Define the settings of the tail, the last part of a training, in which the masks no longer change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tune_sparsity.sparsity.averaging import KINDS, Averaging
from tune_sparsity.sparsity.few_bits import ALL_BITS, BITS, FewBits
from tune_sparsity.sparsity.methods.validation import numbers, whole, within
from tune_sparsity.sparsity.schedules import hold, warmup_cosine

_BEGIN, _EARLIEST = 0.8, 0.5  # progress: if the masks are fixed before _EARLIEST, the tail begins at _BEGIN
LEARNING_RATES = ("cosine", "hold")


@dataclass(frozen=True, kw_only=True)
class TailSettings:
    """Holds the settings of the tail, the last part of a training.

    The tail begins when the masks are fixed, if this happens in the second half of the training. If the masks are fixed
    earlier, the tail begins after .8 of the training steps.

    Attributes:
        averaging: how the weights are averaged over the tail. "none" uses the weights of the last step. "swa" uses the
            mean of the weights (stochastic weight averaging). "ema" uses their exponential moving average.
        average_every: the weights enter the average every `average_every` steps, >= 1.
        ema_horizon: for "ema", the time constant of the average as a share of the tail, in (0, 1].
        weight_bits: bits of a prunable weight: 32, 8, 4 or 2. With fewer than 32 bits, a weight is an integer times the
            scale of its row. Weights with the same first index are in the same row. The last steps of the training then
            train these integers and scales, and `averaging` has no effect.
        bits_share: with fewer than 32 bits, the share of all steps that train the integers and scales, in (0, 1). These
            are the last steps. All other settings describe the steps before them.
        tail: for the learning rate "hold", the learning rate in the tail divided by its peak, in (0, 1].
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
        """Return the settings of the last steps, which train weights with fewer than 32 bits. Return None if
        `weight_bits` is 32."""
        if self.weight_bits == ALL_BITS:
            return None
        return FewBits(self.weight_bits, min(total_steps - 1, round(self.bits_share * total_steps)))

    def steps_of(self, total_steps: int) -> int:
        """Return the number of steps that train weights with 32 bits. Steps that train weights with fewer bits may
        follow."""
        few_bits = self.few_bits_of(total_steps)
        return total_steps - (few_bits.steps if few_bits else 0)

    def averaging_of(self, mask_frozen_at: float, total_steps: int) -> Averaging | None:
        """Return the settings of the average of the weights. Return None if the weights are not averaged.

        Args:
            mask_frozen_at: progress in [0, 1] at which the masks are fixed.
            total_steps: the number of steps of the training.
        """
        if self.averaging == "none" or self.weight_bits != ALL_BITS:
            return None
        begin = _tail_begin(mask_frozen_at)
        samples = max(1.0, self.ema_horizon * (1 - begin) * total_steps / self.average_every)
        return Averaging(self.averaging, begin, self.average_every, 1 - 1 / samples)

    def rate_of(self, shape: str, mask_frozen_at: float) -> Callable[[float], float]:
        """Return a function that takes the progress in [0, 1] and returns the learning rate divided by its peak.

        Args:
            shape: one of LEARNING_RATES.
            mask_frozen_at: progress in [0, 1] at which the masks are fixed.
        """
        return warmup_cosine if shape == "cosine" else hold(self.tail, _tail_begin(mask_frozen_at))


def _tail_begin(mask_frozen_at: float) -> float:
    return mask_frozen_at if mask_frozen_at >= _EARLIEST else _BEGIN
