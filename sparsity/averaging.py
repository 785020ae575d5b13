"""Average a network's weights over the last part of its training, after the mask is fixed.

With a learning rate that stays large, the weights move around their best values. The mean of the weights is closer to
these values than the weights of the last step (Izmailov et al. 2018, arXiv 1803.05407). Masked weights are zero at
every step, and therefore in the mean. At the end of the training the mean replaces the weights. It is not trained any
further.
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
    """Describes how weights are averaged over the steps of a training. A sample is the weights after one step. The
    average is computed from the samples.

    Attributes:
        kind: "swa" for the plain mean of all samples, "ema" for an exponential moving mean that begins with the first
            sample.
        begin: the fraction of the training steps, in [0, 1], after which samples are taken. There are no samples before
            the pruning mask is fixed. If the mask is fixed after `begin`, the samples begin when it is fixed.
        every: the number of steps from one sample to the next, >= 1. The last step of the training always gives a
            sample.
        decay: for "ema", the share of the old average in the new average, in [0, 1). The rest is the share of the new
            sample.

    Raises:
        ValueError: if an attribute is out of range.
    """

    kind: str = "swa"
    begin: float = 0.8
    every: int = 1
    decay: float = 0.99

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of average {self.kind!r}: choose one of {', '.join(KINDS)}")
        if not (0.0 <= self.begin <= 1.0 and self.every >= 1 and 0.0 <= self.decay < 1.0):
            raise ValueError(f"an average needs begin in [0, 1], every >= 1 and decay in [0, 1), got {self}")

    def due(self, steps: int, total_steps: int) -> bool:
        """Return whether a sample is taken after the step with the number `steps`. The result applies only if the mask
        is fixed.

        Args:
            steps: the number of steps done.
            total_steps: the number of steps of the training.
        """
        return steps >= self.begin * total_steps and (total_steps - steps) % self.every == 0


class WeightAverage:
    """Computes the mean of parameters over several steps. A sample is the parameters' values after one step. The mean
    is in float32, or in float64 for parameters in float64.

    Args:
        params: the parameters. Frozen ones are left out.
        how: the kind of mean and its settings.
    """

    def __init__(self, params: Iterable[Tensor], how: Averaging) -> None:
        self.how, self.samples, self.taken = how, 0, False
        self._params = [param for param in params if param.requires_grad]
        self._means: list[Tensor] = []
        self._squares: list[Tensor] | None = None  # sums of squared distances from the mean: see `keep_spread`

    def keep_spread(self) -> None:
        """Measure the standard deviation of the samples, too, for each entry of the parameters. Call this method before
        the first `add`."""
        self._squares = []

    @torch.no_grad()
    def add(self) -> None:
        """Add the current values of the parameters to the mean, as one sample."""
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
        """Return pairs of a parameter and a tensor of the same shape: the standard deviation of the samples for each
        entry. Return an empty list if `keep_spread` was not called, or if there are fewer than two samples."""
        if self._squares is None or self.samples < 2:
            return []
        count = self.samples - 1 if self.how.kind == "swa" else 1
        return [(param, (one / count).sqrt()) for param, one in zip(self._params, self._squares, strict=True)]

    @torch.no_grad()
    def take(self) -> bool:
        """Replace the parameters by their mean and return True. The replaced values are kept for `swapped`. If there is
        no sample, or if an earlier call of `take` has replaced the parameters, do nothing and return False."""
        if self.taken or not self.samples:
            return False
        last = [param.to(mean.dtype, copy=True) for param, mean in zip(self._params, self._means, strict=True)]
        self._put(self._means)
        self._means, self.taken = last, True
        return True

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Return a context manager. Before `take` is called, its `with` block gives the parameters the values of the
        mean. After `take`, the block gives them the values that `take` has replaced. At the end of the block, the
        parameters get back the values that they had before the block."""
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
