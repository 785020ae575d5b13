"""Define patterns for the positions of zeros: any position, N:M, whole blocks, or whole neurons."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tune_sparsity.sparsity.masks import keep_largest

_LAST = 3e4  # subtracted from log2 magnitudes that a pattern does not allow, so that they rank behind all others


@dataclass(frozen=True)
class Pattern:
    """Allows zeros at any position. The subclasses restrict the positions of zeros.

    The methods take one tensor of scores for each layer, with the shape (neurons, fan-in...). The index of the second
    dimension is an input of the layer, or an input channel of a convolution.
    """

    text: ClassVar[str] = "unstructured"
    exact_to: ClassVar[str] = "weight"
    """The unit in which weights are pruned: "weight", "block" or "neuron". A sparsity is exact up to one unit."""

    def __str__(self) -> str:
        return self.text

    @property
    def least(self) -> float:
        """Return the lowest sparsity, in [0, 1), that the pattern allows."""
        return 0.0

    @property
    def whole(self) -> dict[str, str]:
        """Return the prunable layers in which some or all neurons cannot be removed, as a dict from names to
        reasons."""
        return {}

    def check(self, sparsity: float) -> None:
        """Raise ValueError if the pattern does not allow this sparsity."""
        if sparsity < self.least - 1e-12:
            raise ValueError(
                f"the pattern {self} does not allow a sparsity of {sparsity!r}: the lowest is {self.least:.6g}"
            )

    def why_dense(self, shape: torch.Size) -> str:
        """Return why a weight of this shape cannot have the pattern. Return an empty text if it can."""
        return ""

    def least_weights(self, shape: torch.Size) -> int:
        """Return the minimum number of nonzero weights in a layer of this shape. Return 0 if the pattern sets no
        minimum."""
        return 0

    def most_zeros(self, shapes: Sequence[torch.Size]) -> int:
        """Return the largest possible number of zeros in layers of these shapes."""
        return sum(shape.numel() - self.least_weights(shape) for shape in shapes)

    def ranked(self, score: Tensor) -> Tensor:
        """Return the scores of a layer, in the same shape. With the pattern N:M, the N largest of each M consecutive
        scores stay, and all other scores become lower than these. Other patterns return the scores unchanged."""
        return score

    def keep(self, scores: Sequence[Tensor], keep: int, a_row: int) -> list[Tensor]:
        """Return masks with ones for the weights with the largest scores: at most `keep` ones in all layers together.
        `a_row` is the minimum number of ones in a row, as in `keep_largest`."""
        return keep_largest(scores, keep, a_row=a_row)


UNSTRUCTURED = Pattern()


@dataclass(frozen=True)
class NofM(Pattern):
    """Allows at most N nonzero weights for each M consecutive inputs of a neuron. In a convolution, the inputs are the
    input channels at one position of the kernel.

    Attributes:
        n: the number N, at least 1 and less than `m`.
        m: the number M, at least 2.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise ValueError(f"pattern {self}: N must be at least 1, and less than M")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def least(self) -> float:
        return 1 - self.n / self.m

    def why_dense(self, shape: torch.Size) -> str:
        inputs = shape[1] if len(shape) > 1 else 1
        return f"its {inputs} inputs are no multiple of {self.m}" if inputs % self.m else ""

    def ranked(self, score: Tensor) -> Tensor:
        score = score if score.dtype == torch.float64 else score.float()
        places = score.unflatten(1, (-1, self.m)).movedim(2, -1)  # (neurons, inputs / M, kernel..., M)
        allowed = torch.zeros_like(places).scatter_(-1, places.topk(self.n, dim=-1).indices, 1.0)
        allowed = allowed.movedim(-1, 2).reshape_as(score)
        return score.clamp_min(-_LAST / 2) - _LAST * (allowed == 0)


@dataclass(frozen=True)
class Block(Pattern):
    """Sets weights to zero in whole blocks. A block consists of the weights of `rows` consecutive neurons for `inputs`
    consecutive inputs. In a convolution, the inputs are the input channels at one position of the kernel. A block at
    the edge of a layer may be smaller.

    Attributes:
        rows: the number of neurons in a block, at least 1.
        inputs: the number of inputs in a block, at least 1. `rows` and `inputs` cannot both be 1.
    """

    exact_to: ClassVar[str] = "block"

    rows: int
    inputs: int

    def __post_init__(self) -> None:
        if min(self.rows, self.inputs) < 1 or self.rows * self.inputs < 2:
            raise ValueError(f"pattern {self}: a block has at least two weights")

    def __str__(self) -> str:
        return f"block:{self.rows}x{self.inputs}"

    def why_dense(self, shape: torch.Size) -> str:
        neurons, inputs = (*shape, 1)[:2]
        small = neurons < self.rows or inputs < self.inputs
        return f"its {neurons} neurons x {inputs} inputs are less than a block" if small else ""

    def least_weights(self, shape: torch.Size) -> int:
        return self.rows * self.inputs

    def pooled(self, score: Tensor) -> tuple[Tensor, Tensor]:
        """Return log2 of the root mean square of each block, and the number of weights in each block. Both results have
        the shape (blocks of neurons, blocks of inputs, kernel...).

        Args:
            score: log2 of the magnitudes, shape (neurons, inputs, kernel...).
        """
        score = score if score.dtype == torch.float64 else score.float()
        blocks = self._blocks(score, -math.inf)
        sizes = self._blocks(torch.ones_like(score), 0.0).sum(-1)
        largest = blocks.amax(-1, keepdim=True).clamp_min(torch.finfo(score.dtype).min)
        mean = (2 * (blocks - largest)).exp2().sum(-1) / sizes
        return largest.squeeze(-1) + mean.log2() / 2, sizes.long()

    def _blocks(self, x: Tensor, fill: float) -> Tensor:
        """Return a tensor whose last dimension contains the entries of a block. `fill` stands for entries beyond the
        edge of the layer."""
        x = x.movedim((0, 1), (-2, -1))
        x = F.pad(x, (0, -x.shape[-1] % self.inputs, 0, -x.shape[-2] % self.rows), value=fill)
        x = x.unflatten(-1, (-1, self.inputs)).unflatten(-3, (-1, self.rows)).transpose(-3, -2).flatten(-2)
        return x.movedim((-3, -2), (0, 1))

    def _spread(self, x: Tensor, shape: torch.Size) -> Tensor:
        """Return for each weight the value of its block."""
        return x.repeat_interleave(self.rows, 0).repeat_interleave(self.inputs, 1)[: shape[0], : shape[1]]

    def keep(self, scores: Sequence[Tensor], keep: int, a_row: int) -> list[Tensor]:
        """Return masks with ones in the blocks with the largest mean squares: at most `keep` ones in all layers
        together. The masks also satisfy the first of these two minimums for which `keep` is large enough, or none if
        `keep` is too small for both:

        1. Every row of blocks has at least one block of ones. This minimum is left out if `a_row` is 0.
        2. Every layer has at least one block of ones.
        """
        pools = [self.pooled(score) for score in scores]
        ranks, sizes = [pool.clone() for pool, _ in pools], [size for _, size in pools]
        for by_row in (True, False) if a_row else (False,):
            firsts = [(rank if by_row else rank.unsqueeze(0)).flatten(1).argmax(1) for rank in ranks]
            if self._affordable(sizes, firsts, by_row, keep):
                for rank, first in zip(ranks, firsts, strict=True):
                    rows = rank.view(len(first), -1)
                    rows[torch.arange(len(first), device=rank.device), first] = math.inf
                break
        flat, weights = torch.cat([rank.flatten() for rank in ranks]), torch.cat([size.flatten() for size in sizes])
        order = flat.argsort(descending=True, stable=True)
        mask = torch.zeros_like(flat)
        mask[order] = (weights[order].cumsum(0) <= keep).to(mask)
        parts = mask.split([rank.numel() for rank in ranks])
        return [
            self._spread(part.view_as(rank), score.shape).contiguous()
            for part, rank, score in zip(parts, ranks, scores, strict=True)
        ]

    def _affordable(self, sizes: Sequence[Tensor], firsts: Sequence[Tensor], by_row: bool, keep: int) -> bool:
        rows = [(size if by_row else size.unsqueeze(0)).flatten(1) for size in sizes]
        return sum(int(row.gather(1, one[:, None]).sum()) for row, one in zip(rows, firsts, strict=True)) <= keep


class KnownNeurons(Protocol):
    """The interface of an object that describes which neurons of a network must be removed together. The function
    `neuron_groups` returns such an object, an instance of `NeuronGroups`.

    Attributes:
        whole: pairs (name, reason) of the layers in which some or all neurons cannot be removed.
        highest_sparsity: the fraction of the prunable weights that are zero if as many neurons as possible are removed.
        most_zeros: the number of prunable weights that are then zero.
        fewest: for each prunable layer, the number of weights that are then nonzero.
    """

    @property
    def whole(self) -> Sequence[tuple[str, str]]: ...

    @property
    def highest_sparsity(self) -> float: ...

    @property
    def most_zeros(self) -> int: ...

    @property
    def fewest(self) -> Sequence[int]: ...


class KnownUses(Protocol):
    """The interface of an object that counts the multiply-adds of a network for one example. The function `count_uses`
    returns such an object, an instance of `Uses`."""

    def macs(self, nonzero: Mapping[str, int]) -> int: ...


@dataclass(frozen=True)
class Neurons(Pattern):
    """Removes whole neurons: the weights that compute a neuron and the weights that read its output become zero. The
    network then computes the same outputs as a smaller network.

    Attributes:
        multiple: at least 1. The number of neurons that a layer keeps is a multiple of this number if possible. For
            example, this is not possible if the layer has fewer neurons.
        groups: which neurons of the network must be removed together. None if this is not known yet.
        by_macs: if True, a sparsity is the number of multiply-adds that the masks avoid, divided by the number of all
            multiply-adds with prunable weights. If False, a sparsity is the share of zeros in the prunable weights.
        uses: an object that counts the multiply-adds for `by_macs`. None if there is no such object yet, or if it is
            not needed.
    """

    text: ClassVar[str] = "neurons"
    exact_to: ClassVar[str] = "neuron"

    multiple: int = 1
    groups: KnownNeurons | None = field(default=None, compare=False)
    by_macs: bool = False
    uses: KnownUses | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.multiple < 1:
            raise ValueError(f"pattern {self}: the multiple must be at least 1")

    def __str__(self) -> str:
        return self.text if self.multiple == 1 else f"{self.text}:{self.multiple}"

    @property
    def whole(self) -> dict[str, str]:
        return {} if self.groups is None else dict(self.groups.whole)

    def check(self, sparsity: float) -> None:
        if self.groups is not None and not self.by_macs and sparsity > (highest := self.groups.highest_sparsity):
            raise ValueError(
                f"the pattern {self} does not allow a sparsity of {sparsity!r}: the highest is {highest:.6g}"
            )

    def most_zeros(self, shapes: Sequence[torch.Size]) -> int:
        return super().most_zeros(shapes) if self.groups is None else self.groups.most_zeros


def pattern_from(text: str) -> Pattern:
    """Return the pattern for a text such as "unstructured", "neurons", "neurons:16", "2:4" or "block:4x1". Raise
    ValueError for any other text."""
    if text == UNSTRUCTURED.text:
        return UNSTRUCTURED
    if text == Neurons.text:
        return Neurons()
    if found := re.fullmatch(r"neurons:(\d{1,4})", text):
        return Neurons(int(found[1]))
    if found := re.fullmatch(r"(\d{1,4}):(\d{1,4})", text):
        return NofM(*map(int, found.groups()))
    if found := re.fullmatch(r"block:(\d{1,4})x(\d{1,4})", text):
        return Block(*map(int, found.groups()))
    raise ValueError("a pattern is unstructured, neurons, neurons:K, N:M or block:RxC, e.g. neurons:16, 2:4, block:4x1")
