"""The average of a network's weights over the last part of its training, under a mask that no longer moves.

A learning rate that is held up leaves the weights on a walk around their best values; their mean lies nearer to these
than the last of them (Izmailov et al. 2018, arXiv 1803.05407). Weights that are masked are zero in every sample, and so
in the mean. The mean becomes the network once, at the end, and nothing is trained on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KINDS = ("swa", "ema")


@dataclass(frozen=True)
class Averaging:
    """Says how weights are averaged.

    Attributes:
        kind: "swa", the plain mean of all samples; "ema", an exponential moving one that begins with the first.
        begin: progress in [0, 1] at which the first sample may be taken; none is taken before the mask is fixed.
        every: steps between two samples, counted from the last step, which is one.
        decay: for "ema", the share that the mean keeps of itself at a sample, in [0, 1).
    """

    kind: str = "swa"
    begin: float = 0.8
    every: int = 1
    decay: float = 0.99

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of average {self.kind!r}: one of {', '.join(KINDS)}")
        if not (0.0 <= self.begin <= 1.0 and self.every >= 1 and 0.0 <= self.decay < 1.0):
            raise ValueError(f"an average needs begin in [0, 1], every >= 1 and decay in [0, 1), got {self}")

    def due(self, steps: int, total_steps: int) -> bool:
        """Return whether a sample is taken after so many steps."""
        return steps >= self.begin * total_steps and (total_steps - steps) % self.every == 0


class WeightAverage:
    """The mean of some parameters over samples, in float32 or better.

    Args:
        params: the parameters; those that are not trained are left out.
        how: what the mean is.
    """

    def __init__(self, params: Iterable[Tensor], how: Averaging) -> None:
        self.how, self.samples, self.taken = how, 0, False
        self._params = [param for param in params if param.requires_grad]
        self._means: list[Tensor] = []
        self._squares: list[Tensor] | None = None  # of the samples' distances from the mean: see `keep_spread`

    def keep_spread(self) -> None:
        """Also measure how far samples are from the mean. To be called before the first."""
        self._squares = []

    @torch.no_grad()
    def add(self) -> None:
        """Take a sample of the parameters."""
        self.samples += 1
        if self.samples == 1:
            self._means = [param.to(_exact(param), copy=True) for param in self._params]
            if self._squares is not None:
                self._squares = [torch.zeros_like(mean) for mean in self._means]
            return
        swa = self.how.kind == "swa"
        share = 1.0 / self.samples if swa else 1.0 - self.how.decay
        weights = [param.to(mean.dtype) for param, mean in zip(self._params, self._means, strict=True)]
        if self._squares is not None:  # Welford 1962; for "ema" West 1979
            squares = torch._foreach_sub(weights, self._means)
            torch._foreach_mul_(squares, squares)
            torch._foreach_mul_(squares, 1.0 - share)
            if not swa:
                torch._foreach_mul_(squares, share)
                torch._foreach_mul_(self._squares, self.how.decay)
            torch._foreach_add_(self._squares, squares)
        torch._foreach_lerp_(self._means, weights, share)

    def spread(self) -> list[tuple[Tensor, Tensor]]:
        """Return the parameters, each with the standard deviation of its samples, in its shape; nothing if that was not
        measured, or of a single sample."""
        if self._squares is None or self.samples < 2:
            return []
        count = self.samples - 1 if self.how.kind == "swa" else 1
        return [(param, (one / count).sqrt()) for param, one in zip(self._params, self._squares, strict=True)]

    @torch.no_grad()
    def take(self) -> bool:
        """Make the mean the parameters, for good; their last values then stand where the mean stood. Return whether
        there is a mean that was not taken before."""
        if self.taken or not self.samples:
            return False
        last = [param.to(mean.dtype, copy=True) for param, mean in zip(self._params, self._means, strict=True)]
        self._put(self._means)
        self._means, self.taken = last, True
        return True

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within it the parameters are the mean; once the mean was taken, they are the last values instead."""
        kept = [param.detach().clone() for param in self._params]
        try:
            self._put(self._means)
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for param, value in zip(self._params, values, strict=True):
            param.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        means = [mean.clone() for mean in self._means]
        squares = {} if self._squares is None else {"squares": [one.clone() for one in self._squares]}
        return {"samples": self.samples, "taken": self.taken, "means": means, **squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.samples, self.taken = state["samples"], state["taken"]
        saved = zip(self._params, state["means"], strict=False)
        self._means = [mean.to(param.device, _exact(param), copy=True) for param, mean in saved]
        if self._squares is not None:
            self._squares = [one.to(mean, copy=True) for one, mean in zip(state["squares"], self._means, strict=True)]


def _exact(param: Tensor) -> torch.dtype:
    return torch.promote_types(param.dtype, torch.float32)
