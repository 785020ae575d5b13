"""Train weights of few bits: a scale for each row, times whole numbers. A whole number is never 0, because zeros come
from the mask.

The training uses the straight-through estimator. The network computes with rounded weights. The gradients go to the
numbers before rounding (Bengio et al. 2013, arXiv 1308.3432) and to the scales (Esser et al. 2020, arXiv 1902.08153).
The rows are those of a weight's first dimension. Other trained parameters, such as biases, are rounded to float16. The
bias of a row without a weight becomes 0 when the mask is fixed. The biases of the next layer learn to replace it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tune_sparsity.sparsity.layers import Layer
from tune_sparsity.sparsity.orientation import STANDARD
from tune_sparsity.sparsity.wrappers import plain_parameters

ALL_BITS = 32
"""The value of `bits` for weights that are not rounded, in any type."""
SIGN_BITS = 1
"""The value of `bits` for weights that are -1 or +1 and have no scale."""
BITS = (8, 4, 2)
EXACT = (torch.float32, torch.float64)
"""The types that hold the product of a scale and a code exactly."""
_SMALLEST, _LARGEST = 2.0**-24, 65504.0  # of float16
_SHARES = [0.4 + 0.05 * k for k in range(13)]  # scales to try, as multiples of (a row's largest weight / largest code)
_LATENT_LR, _SCALE_LR, _OTHER_LR = 3e-3, 1e-3, 3e-4  # latents of 2 bits, in levels; scales, relative; others


class Codes(NamedTuple):
    """A weight of few bits.

    Attributes:
        codes: int8 in the weight's shape. The code of a masked weight is 0. Any other code has a sign and a magnitude
            from 1 to `largest_code(bits)`.
        scales: float16, shape (rows,). The scale of a row without a weight is 0.
        bits: the bits of a code. A file may also have 1.
    """

    codes: Tensor
    scales: Tensor
    bits: int

    def weight(self) -> Tensor:
        """Return the weight as float32. It is exactly the scale of the row times the code."""
        return self.codes.float() * self.scales.float().view(-1, *[1] * (self.codes.dim() - 1))


class Signs(NamedTuple):
    """A weight of signs, int8 of -1 and +1. A file stores each sign as a bit."""

    values: Tensor


def largest_code(bits: int) -> int:
    """Return the largest magnitude of a code: 2^(bits-1), but at most 127 because of int8."""
    return min(2 ** (bits - 1), 127)


def codes_of(weight: Tensor, bits: int) -> Codes | None:
    """Find the codes and scales of a weight of few bits from its values alone.

    Code times scale is exactly the weight. If all trained codes of a row have a common divisor, the codes may be
    divided by it and the scale multiplied by it. The codes and scales therefore need not be stored beside the values.

    Returns:
        None if the weight does not have this number of bits.
    """
    if not weight.numel():
        return Codes(weight.to(torch.int8), weight.new_zeros(len(weight), dtype=torch.float16), bits)
    rows = weight.detach().float().reshape(len(weight), -1)
    least = rows.abs().masked_fill(rows == 0, math.inf).amin(1, keepdim=True)
    scales, codes = torch.zeros_like(least), torch.zeros_like(rows)
    left = least < math.inf
    for code in range(1, largest_code(bits) + 1):  # try each code for the smallest weight of each row
        scale = (least / code).half().float()
        found = (rows / scale).nan_to_num_().round_()
        fits = ((found * scale == rows) & (found.abs() <= largest_code(bits))).all(1, keepdim=True) & left
        scales, codes, left = torch.where(fits, scale, scales), torch.where(fits, found, codes), left & ~fits
        if not left.any():
            return Codes(codes.to(torch.int8).view(weight.shape), scales.half().flatten(), bits)
    return None


class Precision(NamedTuple):
    """Describes the precision of a network's numbers.

    Attributes:
        bits: the bits of a prunable weight. ALL_BITS means that the weight is not rounded. Otherwise the weight is a
            code times the scale of its row.
        halves: the names of the other tensors whose values float16 represents exactly. With few bits these are all
            other trained tensors.
        biases: the tensors of `halves` that are exactly 0 in rows without a weight -> the name of the weight.
        signs: whether prunable weights are -1 and +1, with one bit and no scale.
    """

    bits: int = ALL_BITS
    halves: tuple[str, ...] = ()
    biases: Mapping[str, str] = MappingProxyType({})
    signs: bool = False

    @property
    def scaled(self) -> bool:
        """Return whether rows have scales."""
        return self.bits != ALL_BITS and not self.signs

    def of(self, tensors: Mapping[str, Tensor], prunable: Collection[str]) -> dict[str, Tensor | Codes | Signs]:
        """Convert a network's tensors into this precision without loss.

        Raises:
            ValueError: if a tensor does not have this precision.
        """
        found: dict[str, Tensor | Codes | Signs] = dict(tensors)
        if self.signs:
            return {**found, **{name: Signs(tensors[name]) for name in prunable}}
        for name in prunable if self.scaled else ():
            codes = codes_of(tensors[name], self.bits)
            if codes is None:
                raise ValueError(f"{name} has no weights of {self.bits} bits")
            found[name] = codes
        for name in self.halves:
            found[name] = half = tensors[name].half()
            if not torch.equal(half.to(tensors[name]), tensors[name]):
                raise ValueError(f"{name} has numbers that float16 does not hold")
        return found

    def with_zeros(self, prunable: Collection[str]) -> set[str]:
        """Return the names of the tensors whose zeros a file leaves out."""
        return {*prunable, *self.biases}


def biases_of(model: nn.Module, layers: Sequence[Layer]) -> dict[str, str]:
    """Return the biases that a training with few bits sets to 0 in rows without a weight: the name of the bias -> the
    name of its weight. The biases of the last layer are left out, because they are added directly to the outputs."""
    params, found = dict(plain_parameters(model)), {}
    for layer in layers[:-1]:
        name = layer.name.removesuffix("weight") + "bias"
        bias = params.get(name)
        if bias is not None and halved(bias) and bias.shape == layer.weight.shape[:1] and layer.orientation == STANDARD:
            found[name] = layer.name
    return found


def halved(parameter: Tensor) -> bool:
    """Return whether a training with few bits rounds this parameter to float16. The parameter must not be a weight of
    few bits."""
    return parameter.requires_grad and parameter.dtype in EXACT


@dataclass(frozen=True)
class FewBits:
    """Describes the training of weights with few bits: `bits` for each weight, one of BITS, and the number of
    `steps`."""

    bits: int
    steps: int

    def __post_init__(self) -> None:
        if self.bits not in BITS or self.steps < 0:
            raise ValueError(f"weights have 8, 4 or 2 bits, trained in 0, 1, 2, ... steps, got {self}")


class FewBitsTraining:
    """The last part of a training, after the mask is fixed. Adam updates the numbers before rounding, the scales and
    all other parameters.

    Args:
        weights: the weights that get few bits.
        masks: one mask for each weight, in the weight's shape. The masks are read when this part of the training
            begins.
        others: the other trained parameters.
        how: the bits and the number of steps. The learning rates fall to 0 as a cosine.
        biases: those of `others` that become 0 in rows without a weight, each with the index of its weight.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        masks: Sequence[Tensor],
        others: Iterable[Tensor],
        how: FewBits,
        biases: Iterable[tuple[Tensor, int]] = (),
    ) -> None:
        if other := {weight.dtype for weight in weights} - set(EXACT):
            raise ValueError(f"weights of few bits are trained as float32 or float64, not as {other.pop()}")
        self.how, self.steps, self.begun = how, 0, False
        self._weights, self._masks, self._others = list(weights), list(masks), list(others)
        self._halves = [one for one in self._others if halved(one)]
        self._biases = list(biases)

    def bias_masks(self) -> list[tuple[Tensor, Tensor]]:
        """Return the biases that become 0 in rows without a weight. Each has a mask of its shape, which is 0 in these
        rows and otherwise 1."""
        return [(bias, self._masks[place].flatten(1).any(1).to(bias)) for bias, place in self._biases]

    @torch.no_grad()
    def begin(self) -> None:
        """Round the weights. Each row gets the scale with the smallest rounding error. A second call has no effect."""
        if self.begun:
            return
        self._set_up()
        values = self._active(self._weights)
        largest = values.new_zeros(len(self._log_scales)).scatter_reduce_(0, self._rows, values.abs(), "amax")
        least = torch.full_like(largest, math.inf)
        for share in _SHARES:
            scales = (largest * share / largest_code(self.how.bits)).masked_fill_(largest == 0, 1.0)
            wrong = values - self._levels(values / scales[self._rows]) * scales[self._rows]
            error = torch.zeros_like(least).index_add_(0, self._rows, wrong.square_())
            self._log_scales.copy_(torch.where(error < least, scales.log(), self._log_scales))
            least = torch.minimum(least, error)
        self._latents.copy_(values / self._log_scales.exp()[self._rows])
        self._write()

    def _set_up(self) -> None:
        """Allocate one tensor for the numbers of all active weights and one for the scales of all rows."""
        self._places = [mask.reshape(-1).nonzero().squeeze(1) for mask in self._masks]
        lengths, rows, before = [max(1, mask[:1].numel()) for mask in self._masks], [], 0
        for mask, places, length in zip(self._masks, self._places, lengths, strict=True):
            rows.append(places // length + before)
            before += len(mask)
        self._rows = torch.cat(rows)
        dtype = reduce(torch.promote_types, (weight.dtype for weight in self._weights), torch.float32)
        self._latents = self._rows.new_zeros(len(self._rows), dtype=dtype)
        self._log_scales = self._rows.new_zeros(before, dtype=dtype)
        self._used = self.bias_masks()
        self._exact = [one.detach().clone() for one in self._halves]  # before they are rounded
        plain = [one for one in self._others if not halved(one)]
        rates = (_LATENT_LR * 2 ** max(0, self.how.bits - 2), _SCALE_LR, _OTHER_LR)
        members = ([self._latents], [self._log_scales], self._exact + plain)
        groups = [{"params": params, "lr": lr} for params, lr in zip(members, rates, strict=True) if params]
        self._adam, self._rates, self.begun = torch.optim.Adam(groups), [group["lr"] for group in groups], True

    @torch.no_grad()
    def step(self) -> None:
        """Make a step with the current gradients."""
        grads = self._active([torch.zeros_like(one) if one.grad is None else one.grad for one in self._weights])
        # A weight is a scale times a code. Its derivative with respect to the logarithm of the scale is the weight.
        by_scale = grads * self._active(self._weights)
        self._log_scales.grad = by_scale.new_zeros(len(self._log_scales)).index_add_(0, self._rows, by_scale)
        self._latents.grad = grads.mul_(self._log_scales.exp()[self._rows])
        for exact, half in zip(self._exact, self._halves, strict=True):
            exact.grad = half.grad
        left = 0.5 * (1 + math.cos(math.pi * min(1.0, self.steps / max(1, self.how.steps))))
        for group, rate in zip(self._adam.param_groups, self._rates, strict=True):
            group["lr"] = rate * left
        self._adam.step()
        limit = largest_code(self.how.bits) + 0.5
        self._latents.clamp_(-limit, limit)
        self.steps += 1
        self._write()

    def codes(self) -> list[Codes]:
        """Return the codes of the weights, in their order."""
        levels, scales = self._levels(self._latents), self._scales().clone()
        scales[torch.bincount(self._rows, minlength=len(scales)) == 0] = 0
        parts = zip(
            self._masks,
            self._places,
            levels.split([len(places) for places in self._places]),
            scales.split([len(mask) for mask in self._masks]),
            strict=True,
        )
        found = []
        for mask, places, own, rows in parts:
            codes = own.new_zeros(mask.numel(), dtype=torch.int8).index_copy_(0, places, own.to(torch.int8))
            found.append(Codes(codes.view(mask.shape), rows, self.how.bits))
        return found

    def _active(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the entries of active weights in one flat tensor. The arguments have the shapes of the weights."""
        pairs = zip(tensors, self._places, strict=True)
        return torch.cat([one.detach().reshape(-1)[places] for one, places in pairs]).to(self._latents.dtype)

    def _levels(self, latents: Tensor) -> Tensor:
        """Return the numbers rounded to codes, which are never 0."""
        return torch.copysign(latents.abs().round_().clamp_(1, largest_code(self.how.bits)), latents)

    def _scales(self) -> Tensor:
        return self._log_scales.exp().clamp_(_SMALLEST, _LARGEST).half()

    def _write(self) -> None:
        """Write the rounded values into the weights. float32 holds the product of a float16 scale and a small whole
        number exactly."""
        values = self._levels(self._latents) * self._scales().to(self._latents.dtype)[self._rows]
        for weight, places, own in zip(
            self._weights, self._places, values.split([len(places) for places in self._places]), strict=True
        ):
            flat = own.new_zeros(weight.numel(), dtype=weight.dtype).index_copy_(0, places, own.to(weight.dtype))
            weight.copy_(flat.view(weight.shape))
        for exact, half in zip(self._exact, self._halves, strict=True):
            half.copy_(exact.clamp(-_LARGEST, _LARGEST).half())
        for bias, used in self._used:
            bias.masked_fill_(bias == 0, _SMALLEST).mul_(used)

    def state_dict(self) -> dict[str, Any]:
        if not self.begun:
            return {"steps": self.steps}
        exact = [one.clone() for one in self._exact]
        numbers = {"latents": self._latents.clone(), "log_scales": self._log_scales.clone(), "exact": exact}
        return {"steps": self.steps, **numbers, "adam": self._adam.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state. The masks must be the same as when the state was saved."""
        self.steps, self.begun = state["steps"], "latents" in state
        if self.begun:
            self._set_up()
            self._latents.copy_(state["latents"])
            self._log_scales.copy_(state["log_scales"])
            for exact, saved in zip(self._exact, state["exact"], strict=True):
                exact.copy_(saved)
            self._adam.load_state_dict(state["adam"])
