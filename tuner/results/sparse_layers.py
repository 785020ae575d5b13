"""Define layers that multiply with sparse matrices, and replace the layers of a network by them."""

from __future__ import annotations

import warnings
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tune_sparsity.sparsity.patterns import Block
from tune_sparsity.sparsity.wrappers import plain_name

Form = Literal["csr", "bsr", "2:4"]


def _sparse(weight: Tensor, block: Block | None = None) -> Tensor:
    """Return a matrix in CSR format, or in BSR format if a block is given. For BSR, zeros are appended to rows and
    columns until the blocks fit."""
    weight = weight.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says once that its sparse matrices are in a beta state
        if block is None:
            return weight.to_sparse_csr()
        padded = F.pad(weight, (0, -weight.shape[1] % block.inputs, 0, -weight.shape[0] % block.rows))
        return padded.to_sparse_bsr((block.rows, block.inputs))


class SparseLinear(nn.Module):
    """A linear layer whose weight is a CSR or BSR matrix. The matrix product skips the zeros."""

    def __init__(self, layer: nn.Linear, block: Block | None = None) -> None:
        super().__init__()
        self.weight, self.neurons = _sparse(layer.weight, block), layer.out_features
        self.bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        columns = F.pad(x.reshape(-1, x.shape[-1]).T, (0, 0, 0, self.weight.shape[1] - x.shape[-1]))
        out = (self.weight @ columns)[: self.neurons].T.reshape(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


class SparseConv2d(nn.Module):
    """A convolution that is computed as a matrix product and skips the zeros. The left matrix is the weight in CSR
    format. The columns of the right matrix are the patches of the input."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight = _sparse(layer.weight.flatten(1))
        self.bias = None if layer.bias is None else layer.bias.detach()
        self.kernel, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.padding = cast("tuple[int, ...]", layer.padding)

    def forward(self, x: Tensor) -> Tensor:
        # (examples, weights of a filter, places)
        patches = F.unfold(x, self.kernel, dilation=self.dilation, padding=self.padding, stride=self.stride)
        examples, columns, places = patches.shape
        out = self.weight @ patches.transpose(0, 1).reshape(columns, -1)
        out = out.reshape(-1, examples, places).transpose(0, 1)
        spans = zip(x.shape[2:], self.kernel, self.stride, self.dilation, self.padding, strict=True)
        shape = [(size + 2 * pad - dil * (kernel - 1) - 1) // step + 1 for size, kernel, step, dil, pad in spans]
        out = out.reshape(examples, -1, *shape)
        return out if self.bias is None else out + self.bias.view(-1, 1, 1)


def _semi_structured(layer: nn.Linear) -> nn.Linear:
    """Return the layer with its weight in torch's semi-structured format, in which a GPU skips 2 of each 4 weights."""
    weight = layer.weight.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says once that these tensors are a prototype
        matrix = torch.sparse.to_sparse_semi_structured(weight)
    if int((weight.unflatten(1, (-1, 4)) != 0).sum(2).max()) > 2:
        raise ValueError("more than 2 of 4 weights are not zero")
    layer.weight = nn.Parameter(matrix, requires_grad=False)
    return layer


def _sparse_layer(layer: nn.Module, form: Form, block: Block | None) -> nn.Module:
    """Return a layer that computes the outputs of this layer with a sparse matrix. If this is not possible, raise
    ValueError or RuntimeError with the reason."""
    if type(layer) is nn.Linear:
        return _semi_structured(layer) if form == "2:4" else SparseLinear(layer, block)
    convolution = type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros"
    if convolution and form == "csr" and not isinstance(layer.padding, str):
        return SparseConv2d(cast("nn.Conv2d", layer))
    raise ValueError("no sparse product is implemented for its kind of layer")


def over_sparse(
    model: nn.Module, prunable: set[str], form: Form = "csr", block: Block | None = None
) -> tuple[nn.Module, dict[str, str]]:
    """Replace the prunable layers of a network, in place, by layers with sparse matrices.

    Args:
        model: the network.
        prunable: the names of the weights, without the prefixes of wrappers such as DataParallel.
        form: the format of the matrices: "csr", "bsr" or "2:4". For "2:4", the network must be on a GPU.
        block: the shape of the blocks, for "bsr".

    Returns:
        The network, and a dict of the layers that stay dense. The keys of the dict are the names of these layers'
        weights, and the values are the reasons.
    """
    dense, own = dict[str, str](), {plain_name(model, name): name for name, _ in model.named_modules()}
    for name in sorted(prunable):
        path, _, attribute = name.rpartition(".")
        path = own[path]
        if attribute != "weight":
            dense[name] = "it is not the tensor `weight` of its layer"
            continue
        try:
            layer = _sparse_layer(model.get_submodule(path), form, block)
        except (ValueError, RuntimeError) as error:
            dense[name] = " ".join(str(error).split())
            continue
        if not path:
            return layer, dense
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, layer)
    return model, dense
