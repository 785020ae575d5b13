"""Train weights with few bits. Each weight is a small whole number (its code) times the scale of its row. Weights with
the same first index are in the same row. The code of an active weight is never 0, because only the mask makes weights
0.

The training uses the straight-through estimator. For each weight, it keeps a number that is not rounded. The network
computes with rounded weights. The gradients change the numbers that are not rounded (Bengio et al. 2013, arXiv
1308.3432) and the scales (Esser et al. 2020, arXiv 1902.08153). Other trained parameters, such as biases, are rounded
to float16 in the same way. If all weights of a row are masked, its bias becomes 0 when the mask is fixed, except in the
last layer. The biases of the next layer can learn to replace this bias.
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
"""The value of `bits` for weights of any dtype that are not rounded."""
SIGN_BITS = 1
"""The value of `bits` for weights that are -1 or +1 and have no scale."""
BITS = (8, 4, 2)
EXACT = (torch.float32, torch.float64)
"""The dtypes that represent the product of a scale and a code exactly."""
_SMALLEST, _LARGEST = 2.0**-24, 65504.0  # of float16
_SHARES = [0.4 + 0.05 * k for k in range(13)]  # scales to try, as multiples of (a row's largest weight / largest code)
# Adam's learning rates. The first is for the latents with 2 bits, and doubles with each further bit. The others are for
# the logarithms of the scales, and for the other parameters.
_LATENT_LR, _SCALE_LR, _OTHER_LR = 3e-3, 1e-3, 3e-4


class Codes(NamedTuple):
    """A weight tensor with few bits, as codes and scales. Each weight is its code times the scale of its row.

    Attributes:
        codes: int8 in the weight's shape. The code of a masked weight is 0. Any other code has a sign and a magnitude
            from 1 to `largest_code(bits)`.
        scales: float16, shape (rows,). The scale of a row whose weights are all masked is 0.
        bits: the number of bits of a code: 8, 4 or 2. Codes from a packed file may also have 1 bit.
    """

    codes: Tensor
    scales: Tensor
    bits: int

    def weight(self) -> Tensor:
        """Return the weight as float32. Each entry is exactly its code times the scale of its row."""
        return self.codes.float() * self.scales.float().view(-1, *[1] * (self.codes.dim() - 1))


class Signs(NamedTuple):
    """A weight tensor whose entries are -1 or +1, as int8. A packed file stores each entry as one bit."""

    values: Tensor


def largest_code(bits: int) -> int:
    """Return the largest magnitude of a code: 2^(bits-1), but at most 127 because of int8."""
    return min(2 ** (bits - 1), 127)


def codes_of(weight: Tensor, bits: int) -> Codes | None:
    """Compute the codes and scales of a weight tensor with few bits from its values. If a file contains the values, it
    therefore need not contain the codes and scales.

    Each code times its scale is exactly the weight. The codes and scales may differ from the trained ones in rows whose
    codes have a common divisor: the result may then contain the codes divided by the divisor, and the scale multiplied
    by it.

    Returns:
        The codes and scales, or None if no codes with this number of bits give the weight.
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
    """Describes with how many bits each tensor of a network can be stored exactly.

    Attributes:
        bits: the number of bits of a prunable weight. ALL_BITS means that the weight is not rounded. Otherwise the
            weight is a code times the scale of its row.
        halves: the names of the tensors that are stored as float16 without loss. If prunable weights have 8, 4 or 2
            bits, these are the other trained tensors of the types float32 and float64. Otherwise there are none.
        biases: a dict from names of biases in `halves` to the names of their weights. Such a bias is exactly 0 in each
            row whose weights are all 0.
        signs: whether prunable weights are -1 and +1, with one bit and no scale.
    """

    bits: int = ALL_BITS
    halves: tuple[str, ...] = ()
    biases: Mapping[str, str] = MappingProxyType({})
    signs: bool = False

    @property
    def scaled(self) -> bool:
        """Return whether each row of a prunable weight has a scale."""
        return self.bits != ALL_BITS and not self.signs

    def of(self, tensors: Mapping[str, Tensor], prunable: Collection[str]) -> dict[str, Tensor | Codes | Signs]:
        """Convert a network's tensors into this precision without loss. Prunable weights become instances of Codes or
        Signs if they have few bits, and the tensors in `halves` become float16.

        Args:
            tensors: the network's state_dict.
            prunable: the names of the prunable weights.

        Raises:
            ValueError: if this precision cannot represent a tensor exactly.
        """
        found: dict[str, Tensor | Codes | Signs] = dict(tensors)
        if self.signs:
            return {**found, **{name: Signs(tensors[name]) for name in prunable}}
        for name in prunable if self.scaled else ():
            codes = codes_of(tensors[name], self.bits)
            if codes is None:
                raise ValueError(f"{name} cannot be stored exactly with {self.bits} bits per weight")
            found[name] = codes
        for name in self.halves:
            found[name] = half = tensors[name].half()
            if not torch.equal(half.to(tensors[name]), tensors[name]):
                raise ValueError(f"{name} has numbers that float16 cannot represent exactly")
        return found

    def with_zeros(self, prunable: Collection[str]) -> set[str]:
        """Return the names of the tensors that a packed file can store without their zeros: the prunable weights and
        the biases in `biases`."""
        return {*prunable, *self.biases}


def biases_of(model: nn.Module, layers: Sequence[Layer]) -> dict[str, str]:
    """Return a dict from names of biases to the names of their weights. A training with few bits sets these biases to 0
    in rows whose weights are all masked. Such a row only adds a constant, which the biases of later layers can add as
    well. The dict therefore does not contain the bias of the last layer."""
    params, found = dict(plain_parameters(model)), {}
    for layer in layers[:-1]:
        name = layer.name.removesuffix("weight") + "bias"
        bias = params.get(name)
        if bias is not None and halved(bias) and bias.shape == layer.weight.shape[:1] and layer.orientation == STANDARD:
            found[name] = layer.name
    return found


def halved(parameter: Tensor) -> bool:
    """Return whether a training with few bits rounds this parameter to float16. The parameter must not be one of the
    weights that get few bits."""
    return parameter.requires_grad and parameter.dtype in EXACT


@dataclass(frozen=True)
class FewBits:
    """Describes the training of weights with few bits.

    Attributes:
        bits: the number of bits of a weight: 8, 4 or 2.
        steps: the number of steps that train weights with few bits, >= 0. They follow the other steps of the training.
    """

    bits: int
    steps: int

    def __post_init__(self) -> None:
        if self.bits not in BITS or self.steps < 0:
            raise ValueError(f"bits must be 8, 4 or 2, and steps at least 0, got {self}")


class FewBitsTraining:
    """Trains weights with few bits in the last steps of a training, after the mask is fixed. Adam updates three kinds
    of numbers: the scales, the numbers whose rounded values are the codes, and all other parameters.

    Args:
        weights: the weights that get few bits.
        masks: one mask for each weight, in the weight's shape. The masks may change until the method `begin` reads
            them.
        others: the other trained parameters.
        how: the number of bits and the number of steps. Over these steps, all learning rates fall to 0 as a cosine.
        biases: pairs of a bias in `others` and the index of its weight in `weights`. The bias becomes 0 in rows whose
            weights are all masked.
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
            raise ValueError(f"a training with few bits needs weights in float32 or float64, got {other.pop()}")
        self.how, self.steps, self.begun = how, 0, False
        self._weights, self._masks, self._others = list(weights), list(masks), list(others)
        self._halves = [one for one in self._others if halved(one)]
        self._biases = list(biases)

    def bias_masks(self) -> list[tuple[Tensor, Tensor]]:
        """Return pairs of a bias and its mask, of the same shape. An entry of the mask is 0 if all weights of its row
        are masked, and otherwise 1."""
        return [(bias, self._masks[place].flatten(1).any(1).to(bias)) for bias, place in self._biases]

    @torch.no_grad()
    def begin(self) -> None:
        """Round the weights. Several scales are tried for each row, and the scale with the smallest squared rounding
        error is used. A second call has no effect."""
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
        """Allocate one tensor for the numbers before rounding of all active weights, and one for the scales of all
        rows."""
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
        """Return the codes and scales of the weights, in the order of `weights`."""
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
        """Round numbers to codes. A code is never 0."""
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
        """Load a state from `state_dict`. The masks must be the same as when the state was saved."""
        self.steps, self.begun = state["steps"], "latents" in state
        if self.begun:
            self._set_up()
            self._latents.copy_(state["latents"])
            self._log_scales.copy_(state["log_scales"])
            for exact, saved in zip(self._exact, state["exact"], strict=True):
                exact.copy_(saved)
            self._adam.load_state_dict(state["adam"])
