"""Weights of few bits: a scale for each row, times whole numbers of which none is 0 (a zero is the mask's).

Trained by the straight-through estimator: the network computes with the rounded weights, and the gradient goes to the
numbers before rounding (Bengio et al. 2013, arXiv 1308.3432) and to the scales (Esser et al. 2020, arXiv 1902.08153).
Rows are those of a weight's first dimension. All else that is trained, biases and the like, is rounded to float16. The
bias of a row without a weight is 0 as soon as the mask is fixed: what it gave to the next layer, that layer's own
biases learn.
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
"""Of a weight that is as it was trained, whatever its type."""
SIGN_BITS = 1
"""Of a weight that is -1 or +1, and has no scale."""
BITS = (8, 4, 2)
EXACT = (torch.float32, torch.float64)
"""The types that hold the product of a scale and a code."""
_SMALLEST, _LARGEST = 2.0**-24, 65504.0  # of float16
_SHARES = [0.4 + 0.05 * k for k in range(13)]  # of the scale at which a row's largest has the largest code
_LATENT_LR, _SCALE_LR, _OTHER_LR = 3e-3, 1e-3, 3e-4  # the latent's for 2 bits, in levels; the scale's is relative


class Codes(NamedTuple):
    """A weight of few bits.

    Attributes:
        codes: int8 in the weight's shape: 0 where it is masked, else a magnitude of 1 to `largest_code(bits)` with a
            sign.
        scales: float16, shape (rows,); 0 for a row without a weight.
        bits: of a code; 1 too, where a file is written.
    """

    codes: Tensor
    scales: Tensor
    bits: int

    def weight(self) -> Tensor:
        """Return the weight as float32: exactly the row's scale times the code."""
        return self.codes.float() * self.scales.float().view(-1, *[1] * (self.codes.dim() - 1))


class Signs(NamedTuple):
    """A weight of signs, each of which is a bit where it is written: int8 of -1 and +1."""

    values: Tensor


def largest_code(bits: int) -> int:
    """Return the largest magnitude of a code: 2^(bits-1), or the 127 that int8 has."""
    return min(2 ** (bits - 1), 127)


def codes_of(weight: Tensor, bits: int) -> Codes | None:
    """Return a weight of few bits as codes and scales, found from its values alone, so that a file of plain numbers is
    enough to begin with. They give the same weight bit for bit, but need not be those that it was trained with: where
    all codes of a row have a common divisor, the scale has it. None: it is no such weight of so many bits."""
    if not weight.numel():
        return Codes(weight.to(torch.int8), weight.new_zeros(len(weight), dtype=torch.float16), bits)
    rows = weight.detach().float().reshape(len(weight), -1)
    least = rows.abs().masked_fill(rows == 0, math.inf).amin(1, keepdim=True)
    scales, codes = torch.zeros_like(least), torch.zeros_like(rows)
    left = least < math.inf
    for code in range(1, largest_code(bits) + 1):  # of the smallest weight of each row
        scale = (least / code).half().float()
        found = (rows / scale).nan_to_num_().round_()
        fits = ((found * scale == rows) & (found.abs() <= largest_code(bits))).all(1, keepdim=True) & left
        scales, codes, left = torch.where(fits, scale, scales), torch.where(fits, found, codes), left & ~fits
        if not left.any():
            return Codes(codes.to(torch.int8).view(weight.shape), scales.half().flatten(), bits)
    return None


class Precision(NamedTuple):
    """Says how exact a network's numbers are.

    Attributes:
        bits: of a prunable weight: ALL_BITS, or few, which are codes with a scale for each row.
        halves: the names of the other tensors that float16 holds exactly: with few bits, all that were trained.
        biases: those of them that are 0 exactly for the rows without a weight, and the name of the weight.
        signs: whether prunable weights are -1 and +1, of one bit each, without a scale.
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
        """Return a network's tensors in this precision, which lose nothing.

        Raises:
            ValueError: if they are of another one.
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
    """Return the names of the biases that few bits make 0 where their rows have no weight, with those of the weights.
    The last layer's, which are outputs as they are, stay."""
    params, found = dict(plain_parameters(model)), {}
    for layer in layers[:-1]:
        name = layer.name.removesuffix("weight") + "bias"
        bias = params.get(name)
        if bias is not None and halved(bias) and bias.shape == layer.weight.shape[:1] and layer.orientation == STANDARD:
            found[name] = layer.name
    return found


def halved(parameter: Tensor) -> bool:
    """Return whether a parameter that is no weight of few bits is rounded to float16 where there are such."""
    return parameter.requires_grad and parameter.dtype in EXACT


@dataclass(frozen=True)
class FewBits:
    """Says how weights of few bits are trained: `bits` of each weight, in one of BITS, and the number of `steps`."""

    bits: int
    steps: int

    def __post_init__(self) -> None:
        if self.bits not in BITS or self.steps < 0:
            raise ValueError(f"weights have 8, 4 or 2 bits, trained in 0, 1, 2, ... steps, got {self}")


class FewBitsTraining:
    """The end of a training, under a mask that is fixed: Adam on the numbers before rounding, the scales and all else.

    Args:
        weights: that get few bits.
        masks: one a weight, in its shape. They are looked at when the training begins.
        others: the other parameters that are trained.
        how: the bits, and the steps, over which the learning rates are a cosine to 0.
        biases: those of `others` that are 0 for the rows without a weight, and the place of their weight.
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
        """Return the biases that are 0 where a row has no weight, each with a mask of its shape: 0 there, else 1."""
        return [(bias, self._masks[place].flatten(1).any(1).to(bias)) for bias, place in self._biases]

    @torch.no_grad()
    def begin(self) -> None:
        """Round the weights, each row with the scale that rounds it best. Does nothing the second time."""
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
        """Make room for the numbers of the active weights, in one tensor, and for the scales of all rows."""
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
        """Take a step on the gradients at hand."""
        grads = self._active([torch.zeros_like(one) if one.grad is None else one.grad for one in self._weights])
        # A weight is its scale times a whole number, so that it is its own derivative by the scale's logarithm.
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
        """Return the weights in their order."""
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
        """Return the entries of tensors of the weights' shapes where the weights are active, flat."""
        pairs = zip(tensors, self._places, strict=True)
        return torch.cat([one.detach().reshape(-1)[places] for one, places in pairs]).to(self._latents.dtype)

    def _levels(self, latents: Tensor) -> Tensor:
        """Return the whole numbers that they are rounded to; never 0."""
        return torch.copysign(latents.abs().round_().clamp_(1, largest_code(self.how.bits)), latents)

    def _scales(self) -> Tensor:
        return self._log_scales.exp().clamp_(_SMALLEST, _LARGEST).half()

    def _write(self) -> None:
        """Give the weights their values: products of float16 scales and small whole numbers, which float32 has."""
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
        """Take over a state; the masks must be those that it was made under."""
        self.steps, self.begun = state["steps"], "latents" in state
        if self.begun:
            self._set_up()
            self._latents.copy_(state["latents"])
            self._log_scales.copy_(state["log_scales"])
            for exact, saved in zip(self._exact, state["exact"], strict=True):
                exact.copy_(saved)
            self._adam.load_state_dict(state["adam"])
