"""A binary layer with its normalisation and activation, for training: it retains bits, and works on a few rows at once.

Of the activations only signs are retained for the backward pass, which uses them in the normalisation's gradient, too
(Wang et al. 2021, arXiv 2102.04270, with batch normalisation by the mean magnitude).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tune_sparsity.sparsity.binary.bits import pack, signs, signs_, unpack
from tune_sparsity.sparsity.binary.inference import Kind, SignLayer, activated, concluded, whole_threshold
from tune_sparsity.sparsity.binary.products import Product

_MOMENTUM = 0.9  # of the running statistics
_SMALLEST = 1e-3  # mean magnitude, of a neuron that is the same for all examples
_TOGETHER = 1 << 15  # weights of the rows that are worked on at a time, about


def normalise(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return y of shape (batch, rows, places) less its mean over examples and places, and then over its mean magnitude;
    the mean; and the mean magnitude, both of shape (rows)."""
    mean = y.mean((0, 2))
    centred = y - mean[:, None]
    size = centred.abs().mean((0, 2)).clamp_min_(_SMALLEST)
    return centred.div_(size[:, None]), mean, size


def normalise_backward(grad: Tensor, sign: Tensor, size: Tensor) -> Tensor:
    """Return the gradient by y for the gradient by what `normalise` returns first, of which only signs are known. It is
    the exact one where all magnitudes are equal.

    Args:
        sign: of the normalised numbers with their bias, -1 or +1.
        size: the mean magnitudes.
    """
    u = grad / size[:, None]
    along = (u * sign).mean((0, 2))
    return u.sub_(u.mean((0, 2))[:, None]).sub_(sign * along[:, None])


def in_parts(weight: Tensor, results: int = 1) -> Iterator[slice]:
    """Yield the rows of a weight, some at a time: a multiple of 8, so that their bits are whole bytes.

    Args:
        results: numbers that are made of a row.
    """
    rows = max(8, _TOGETHER // max(1, weight[0].numel(), results) // 8 * 8)
    yield from (slice(first, min(first + rows, len(weight))) for first in range(0, len(weight), rows))


class _Block(torch.autograd.Function):
    """(inputs, the same as bits or None, latent weight, bias, what to multiply, what follows) -> (outputs, their signs
    as bits, mean, mean magnitude)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bits: Tensor | None, weight: Tensor, bias: Tensor, product: Product, kind: Kind
    ) -> tuple[Tensor, ...]:
        out, parts = None, []
        for rows in in_parts(weight, len(x)):
            h, mean, size = _normalised(product(x, signs(weight[rows])), bias[rows])
            gate = pack((h.abs() <= 1).flatten(1)) if kind == "sign" else None
            parts.append((pack((h >= 0).flatten(1)), gate, mean, size))
            if out is None:
                out = h.new_empty(len(x), len(weight), *h.shape[2:])
            out[:, rows] = activated(h, kind)
        assert out is not None
        packed, gates, means, sizes = zip(*parts, strict=True)
        positive, mean, size = torch.cat(packed, 1), torch.cat(means), torch.cat(sizes)
        gate = torch.cat(gates, 1) if kind == "sign" else None
        ctx.save_for_backward(x if bits is None else None, bits, weight, positive, gate, size)
        ctx.product, ctx.kind, ctx.shape = product, kind, x.shape
        ctx.mark_non_differentiable(positive, mean, size)
        ctx.set_materialize_grads(False)
        return out, positive, mean, size

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, bits, weight, positive, gate, size = ctx.saved_tensors
        grad = grads[0]
        if grad is None:
            return (None,) * 6
        if x is None:
            x = unpack(bits, ctx.shape[1:].numel()).view(ctx.shape)
        by_input = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        by_weight, by_bias = torch.empty_like(weight), torch.empty_like(size)
        places = grad[0, 0].numel()
        for rows in in_parts(weight, len(x)):
            g = grad[:, rows].flatten(2) if grad.dim() > 2 else grad[:, rows].unsqueeze(2)
            own = slice(rows.start * places // 8, -(-rows.stop * places // 8))
            sign = unpack(positive[:, own], g[0].numel()).view(g.shape)
            g = _through(g, sign, None if gate is None else gate[:, own], ctx.kind)
            by_bias[rows] = g.sum((0, 2))
            g = normalise_backward(g, sign, size[rows]).view(grad[:, rows].shape)
            by_weight[rows] = signs_(ctx.product.gradients(x, signs(weight[rows]), g, by_input))
        return by_input, None, by_weight, by_bias, None, None


def _normalised(y: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return products of shape (batch, rows, ...) normalised, with their bias; mean, and mean magnitude."""
    normalised, mean, size = normalise(y.reshape(*y.shape[:2], -1))
    return normalised.add_(bias[:, None]).view(y.shape), mean, size


def _through(grad: Tensor, sign: Tensor, gate: Tensor | None, kind: Kind) -> Tensor:
    """Return the gradient before the activation. That of a sign is the straight-through estimator, cut off."""
    if kind == "none":
        return grad
    return grad * ((sign if gate is None else unpack(gate, sign[0].numel()).view(sign.shape)) > 0)


class BinaryBlock(nn.Module):
    """A linear layer or convolution of signs, batch normalisation by the mean magnitude, and the activation.

    The gradient of its weights is signs, too.

    Attributes:
        weight: the latent weights, of which the signs are used; float16 within [-1, 1]; (rows, fan-in...).
        bias: of the normalised results, (rows).
        running_mean, running_size: statistics for evaluation.
        kind: what follows.
        before: the block whose outputs are this one's inputs, in a tuple; nothing where these are no signs.
    """

    running_mean: Tensor
    running_size: Tensor

    def __init__(self, weight: Tensor, product: Product, kind: Kind, before: BinaryBlock | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().float().clamp(-1, 1).half())
        self.bias = nn.Parameter(torch.zeros(len(weight), device=weight.device))
        self.register_buffer("running_mean", torch.zeros_like(self.bias))
        self.register_buffer("running_size", torch.ones_like(self.bias))
        self.product, self.kind = product, kind
        self.before = (before,) if before is not None and before.kind == "sign" else ()
        self._given: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        if not self.training:
            return concluded(self.product(x, signs(self.weight)), self.kind, self._constants())
        bits = self.before[0].take_signs() if self.before else None
        out, self._given, mean, size = _Block.apply(x, bits, self.weight, self.bias, self.product, self.kind)
        self.running_mean.lerp_(mean, 1 - _MOMENTUM)
        self.running_size.lerp_(size, 1 - _MOMENTUM)
        return out

    def take_signs(self) -> Tensor | None:
        """Return the signs of the last outputs as bits, and forget them here: the next block retains them."""
        given, self._given = self._given, None
        return given

    def _constants(self) -> dict[str, Tensor]:
        mean, size, bias = self.running_mean, self.running_size, self.bias.detach()
        if self.kind == "sign":
            return {"threshold": mean - size * bias}
        return {"scale": 1 / size, "offset": bias - mean / size}

    def folded(self) -> SignLayer:
        """Return the layer without what only training needs. It computes what the block does in evaluation."""
        constants = self._constants()
        if self.kind == "sign" and self.before:
            constants["threshold"] = whole_threshold(constants["threshold"], self.weight[0].numel())
        return SignLayer(signs(self.weight.detach()).to(torch.int8), self.product, self.kind, constants)
