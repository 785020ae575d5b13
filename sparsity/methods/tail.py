"""The settings of all methods for the part of a training that comes after the mask is fixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tune_sparsity.sparsity.averaging import KINDS, Averaging
from tune_sparsity.sparsity.few_bits import ALL_BITS, BITS, FewBits
from tune_sparsity.sparsity.methods.validation import numbers, whole, within
from tune_sparsity.sparsity.schedules import hold, warmup_cosine

_BEGIN, _EARLIEST = 0.8, 0.5  # progress: where the tail begins if the mask is fixed before the earliest
LEARNING_RATES = ("cosine", "hold")


@dataclass(frozen=True, kw_only=True)
class TailSettings:
    """The tail begins where the mask is fixed, or at .8 of the training if that is in its first half.

    Attributes:
        averaging: whether the network is the last step's ("none"), or the mean over the tail: the plain one ("swa") or
            an exponential moving one ("ema").
        average_every: steps between two samples of the mean, at least 1: a sample is a pass over all weights.
        ema_horizon: for "ema", over how much of the tail it averages: a share in (0, 1].
        weight_bits: of a prunable weight, 32, 8, 4 or 2. With few bits a weight is a whole number times a scale of its
            row, trained in a last part of the steps; nothing is averaged then.
        bits_share: how large this part is, in (0, 1); all else takes place before it.
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
        """Return how few bits are trained, in the last of so many steps; None where weights have all their bits."""
        if self.weight_bits == ALL_BITS:
            return None
        return FewBits(self.weight_bits, min(total_steps - 1, round(self.bits_share * total_steps)))

    def steps_of(self, total_steps: int) -> int:
        """Return how many of so many steps come before those that train few bits."""
        few_bits = self.few_bits_of(total_steps)
        return total_steps - (few_bits.steps if few_bits else 0)

    def averaging_of(self, mask_frozen_at: float, total_steps: int) -> Averaging | None:
        """Return how a training of so many steps averages its weights; None if it does not."""
        if self.averaging == "none" or self.weight_bits != ALL_BITS:
            return None
        begin = _tail_begin(mask_frozen_at)
        samples = max(1.0, self.ema_horizon * (1 - begin) * total_steps / self.average_every)
        return Averaging(self.averaging, begin, self.average_every, 1 - 1 / samples)

    def rate_of(self, shape: str, mask_frozen_at: float) -> Callable[[float], float]:
        """Return the learning rate over progress, of one of the shapes in LEARNING_RATES."""
        return warmup_cosine if shape == "cosine" else hold(self.tail, _tail_begin(mask_frozen_at))


def _tail_begin(mask_frozen_at: float) -> float:
    return mask_frozen_at if mask_frozen_at >= _EARLIEST else _BEGIN
