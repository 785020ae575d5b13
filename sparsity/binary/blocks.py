"""Train a binary layer with its normalisation and activation, in little memory. At any time, the outputs of only a few
neurons (rows of the weight) are computed.

Only the signs of the activations are stored for the backward pass. The gradient of the normalisation also uses only
these signs (Wang et al. 2021, arXiv 2102.04270). The normalisation is a batch normalisation that divides by the mean
magnitude instead of the standard deviation.
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
_SMALLEST = 1e-3  # lower limit of a neuron's mean magnitude, which is 0 if its products are equal for all examples
# A slice of rows contains at most about so many weights. Its number of rows times the batch size has the same limit.
_TOGETHER = 1 << 15


def normalise(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise the products of weights and inputs. For each row (neuron), subtract the mean over examples and
    positions, then divide by the mean magnitude of the differences.

    Args:
        y: the products, shape (batch, rows, positions). This tensor does not change.

    Returns:
        The normalised products, the means and the mean magnitudes. The last two have the shape (rows,).
    """
    mean = y.mean((0, 2))
    centred = y - mean[:, None]
    size = centred.abs().mean((0, 2)).clamp_min_(_SMALLEST)
    return centred.div_(size[:, None]), mean, size


def normalise_backward(grad: Tensor, sign: Tensor, size: Tensor) -> Tensor:
    """Return the gradient with respect to the argument of `normalise`. The gradient is approximate, because it is
    computed from the signs of h = normalised products + bias. The bias is the attribute of BinaryBlock. The gradient is
    exact if the bias is 0 and all normalised products have the same magnitude.

    Args:
        grad: the gradient with respect to the normalised products.
        sign: the signs of h, -1 or +1, in the shape of `grad`.
        size: the mean magnitudes, shape (rows,).
    """
    u = grad / size[:, None]
    along = (u * sign).mean((0, 2))
    return u.sub_(u.mean((0, 2))[:, None]).sub_(sign * along[:, None])


def in_parts(weight: Tensor, results: int = 1) -> Iterator[slice]:
    """Yield slices that divide a weight's rows. The number of rows in each slice, except the last, is a multiple of 8,
    so that the bits of a slice fill whole bytes.

    Args:
        weight: the weight, shape (rows, ...).
        results: a number of results for each row, such as the batch size. The larger this number is, the fewer rows a
            slice has, so that a slice needs little memory.
    """
    rows = max(8, _TOGETHER // max(1, weight[0].numel(), results) // 8 * 8)
    yield from (slice(first, min(first + rows, len(weight))) for first in range(0, len(weight), rows))


class _Block(torch.autograd.Function):
    """Map (inputs, their bits or None, latent weight, bias, product, kind) to (outputs, their signs as bits, mean, mean
    magnitude)."""

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
    """Return the products (batch, rows, ...) after normalisation and bias, the means, and the mean magnitudes."""
    normalised, mean, size = normalise(y.reshape(*y.shape[:2], -1))
    return normalised.add_(bias[:, None]).view(y.shape), mean, size


def _through(grad: Tensor, sign: Tensor, gate: Tensor | None, kind: Kind) -> Tensor:
    """Return the gradient with respect to the argument of the activation. A sign has a straight-through gradient, which
    is 0 for arguments of a magnitude above 1."""
    if kind == "none":
        return grad
    return grad * ((sign if gate is None else unpack(gate, sign[0].numel()).view(sign.shape)) > 0)


class BinaryBlock(nn.Module):
    """A linear layer or convolution whose weights are -1 or +1, together with the batch normalisation and the
    activation that follow it. The normalisation divides by the mean magnitude.

    The backward pass stores only the signs of the gradients in `weight.grad`.

    Attributes:
        weight: latent weights in [-1, 1], float16, shape (rows, fan-in...). The block computes with their signs.
        bias: added after the normalisation, shape (rows).
        running_mean, running_size: moving averages of the mean and the mean magnitude of the products. Evaluation mode
            uses them.
        kind: the activation: "sign", "relu" or "none".
        before: a tuple with the block whose outputs are the inputs of this block. The tuple is empty if the inputs are
            not signs.
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
        """Return the signs of the latest outputs in training mode as bits, and forget them: the next block stores the
        bits for its backward pass. Return None if the signs were returned before, or if there are none."""
        given, self._given = self._given, None
        return given

    def _constants(self) -> dict[str, Tensor]:
        mean, size, bias = self.running_mean, self.running_size, self.bias.detach()
        if self.kind == "sign":
            return {"threshold": mean - size * bias}
        return {"scale": 1 / size, "offset": bias - mean / size}

    def folded(self) -> SignLayer:
        """Return the layer for inference. Its outputs equal those of the block in evaluation mode."""
        constants = self._constants()
        if self.kind == "sign" and self.before:
            constants["threshold"] = whole_threshold(constants["threshold"], self.weight[0].numel())
        return SignLayer(signs(self.weight.detach()).to(torch.int8), self.product, self.kind, constants)
