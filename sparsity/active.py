"""Parameters on the sphere most of whose weights are masked: a step over the few active ones.

A masked weight has no gradient and no momentum, so that its v only shares in its row's factor, and |v|^q of all masked
weights of a row together is one number, "latent" in the state, that follows from step to step. All else is done for the
active weights alone, in memory of their own, until somebody wants to see the state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsity.block import NO_NORM, Block, State
from sparsity.rows import Ragged, Rows, power_

_FEW = 0.5  # of the weights; with more of them, gathering costs what is saved


def make_block(
    params: Sequence[Tensor],
    states: Sequence[State],
    masks: Sequence[Tensor] | None,
    foreach: bool | None,
    owned: dict[str, Rows],
) -> Block:
    """The block that is quickest for these parameters under their masks."""
    few = masks is not None and not foreach and all(_suits(*one) for one in zip(params, states, masks, strict=True))
    if few and masks is not None:
        active, weights = sum(int(mask.count_nonzero()) for mask in masks), sum(mask.numel() for mask in masks)
        few = active <= _FEW * weights
    return (ActiveBlock if few else Block)(params, states, masks, foreach, owned)


def _suits(param: Tensor, state: State, mask: Tensor) -> bool:
    """Whether its weights can be reached one by one, and with NumPy."""
    v = state["v"]
    numpy_reaches = v.device.type == "cpu" and v.dtype in (torch.float32, torch.float64)
    return numpy_reaches and param.is_contiguous() and mask.is_contiguous()


class ActiveBlock(Block):
    """A block on a CPU that goes over the active weights only. Parameters are contiguous, and have masks; weights whose
    mask is 0 must have no momentum. Between a step and `put_back` the state of active weights is kept elsewhere."""

    _apart = False  # whether the state of active weights is kept here
    _q: float | None = None  # of which "latent" is; None: of that which comes first

    def _scratch(self, v: Tensor) -> tuple[Any, Any]:
        masks = [mask.flatten() != 0 for mask in self._masks or ()]
        self._places_of = [mask.nonzero()[:, 0] for mask in masks]  # in each parameter
        self._mask = torch.cat(masks)
        self._places = self._mask.nonzero()[:, 0]  # in the block
        counts = torch.cat([rows.count_nonzero(1) for rows in self._layout.entries(self._mask).runs]).numpy()
        sizes = [len(places) for places in self._places_of]
        self._v, self._buffer, self._grads, self._weights, a, b = (
            Ragged(v.new_empty(len(self._places)), counts, sizes) for _ in range(6)
        )
        return a, b

    def _begin(self, q: float) -> Ragged:
        if not self._apart:
            torch.index_select(self._rows("v").flat, 0, self._places, out=self._v.flat)
            torch.index_select(super()._momentum_buffer().flat, 0, self._places, out=self._buffer.flat)
            self._gather(self._params, self._weights)
            self._apart = True
            self._sum_latent(q, anew=any("latent" not in state for state in self._states))
        elif q != self._q:
            self._sum_latent(q, anew=True)
        return self._v

    def put_back(self) -> None:
        if self._apart:
            self._rows("v").flat.scatter_(0, self._places, self._v.flat)
            self._rows("momentum_buffer").flat.scatter_(0, self._places, self._buffer.flat)
            self._apart = False

    def _sum_latent(self, q: float, *, anew: bool) -> None:
        """Finds the sum of |v|^q over the masked weights of each row, or takes it from the state."""
        if anew or self._q not in (None, q):
            v = self._rows("v").flat
            masked = self._layout.entries(power_(v.abs(), q).masked_fill_(self._mask, 0.0))
            sums = self._layout.one_a_row(masked.totals())
            for state, part in zip(self._states, sums.parts, strict=True):
                state["latent"] = part
        self._q = q
        self._latent = self._rows("latent").flat

    def _gather(self, tensors: Sequence[Tensor], out: Ragged) -> None:
        for tensor, places, part in zip(tensors, self._places_of, out.parts, strict=True):
            entries = tensor.detach().flatten()
            if entries.dtype == part.dtype:
                torch.index_select(entries, 0, places, out=part)
            else:
                part.copy_(entries.index_select(0, places))

    def _gradients(self) -> list[Tensor]:
        self._gather([param.grad for param in self._params if param.grad is not None], self._grads)
        return [self._grads.flat]

    def _along_parameters(self, grads: Sequence[Tensor]) -> None:
        self._grads.products(self._weights, self._gain_grads)

    def _momentum_buffer(self) -> Ragged:
        return self._buffer

    def _pieces(self, rows: Any) -> list[Tensor]:
        return [rows.flat]

    def _of_whole_rows(self, powers: Tensor) -> Tensor:
        powers.add_(self._latent).clamp_min_(NO_NORM)
        self._latent.div_(powers)  # as it is when the row has norm 1 again
        return powers

    def _scatter(self, unscaled: Ragged) -> None:
        torch.mul(unscaled.flat, unscaled.each(self._rates), out=self._weights.flat)
        for param, places, part in zip(self._params, self._places_of, self._weights.parts, strict=True):
            param.detach().view(-1).scatter_(0, places, part.to(param.dtype))

    def _normalise(self, v: Ragged) -> None:
        v.scale_(self._powers)
        self._rows("v").scale_(self._powers)
