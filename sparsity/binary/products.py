"""Compute the product of the weights and inputs of a block, and the gradients of this product. The block is a linear
layer, or a convolution with max pooling.

A call of LinearProduct or ConvolutionProduct takes the inputs, and the signs of some rows of the layer's weight. It
returns a tensor of the shape (batch, number of these rows, ...).
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight


class LinearProduct(NamedTuple):
    """Computes the product of a linear layer."""

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight.t()

    def gradients(self, x: Tensor, weight: Tensor, grad: Tensor, by_input: Tensor | None) -> Tensor:
        """Return the gradient with respect to the weight. If `by_input` is not None, add the gradient with respect to
        the inputs to this tensor."""
        if by_input is not None:
            by_input.addmm_(grad, weight)
        return grad.t() @ x


class ConvolutionProduct(NamedTuple):
    """Computes the product of a convolution, followed by max pooling.

    Attributes:
        stride, padding, dilation: the settings of the convolution.
        fill: the value of the padding: -1 if the inputs are signs (0 is not a sign), and otherwise 0.
        pool: the height and the width of a pooling window, which are also the strides of the pooling. (1, 1) means no
            pooling.
    """

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    fill: float
    pool: tuple[int, int] = (1, 1)

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        results = self._convolved(self._padded(x), weight)
        return results if self.pool == (1, 1) else F.max_pool2d(results, self.pool)

    def gradients(self, x: Tensor, weight: Tensor, grad: Tensor, by_input: Tensor | None) -> Tensor:
        """Return the gradient with respect to the weight. If `by_input` is not None, add the gradient with respect to
        the inputs to this tensor. The positions of the maxima are computed again, because the forward pass does not
        store them."""
        padded, how = self._padded(x), (self.stride, 0, self.dilation)
        if self.pool != (1, 1):
            results = self._convolved(padded, weight)
            _, places = F.max_pool2d(results, self.pool, return_indices=True)
            grad = F.max_unpool2d(grad, places, self.pool, output_size=list(results.shape))
        if by_input is not None:
            padded_too = conv2d_input(padded.shape, weight, grad, *how)
            (above, left), (height, width) = self.padding, x.shape[2:]
            by_input += padded_too[:, :, above : above + height, left : left + width]
        return conv2d_weight(padded, weight.shape, grad, *how)

    def _padded(self, x: Tensor) -> Tensor:
        (rows, columns) = self.padding
        return F.pad(x, (columns, columns, rows, rows), value=self.fill) if rows or columns else x

    def _convolved(self, padded: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(padded, weight, None, self.stride, 0, self.dilation)


Product = LinearProduct | ConvolutionProduct
