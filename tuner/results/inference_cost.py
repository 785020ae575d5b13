"""What the zeros of a network save: bytes in several forms, and the time of a forward pass, both measured."""

from __future__ import annotations

import copy
import time
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tune_sparsity.tuner.errors import one_line
from tune_sparsity.tuner.results.export_formats import csr_bytes, dense_bytes

_TOLERANCE = 1e-3  # of the largest output: sums in another order round differently


def sizes(tensors: Mapping[str, Tensor], prunable: set[str]) -> dict[str, int]:
    """Bytes of all the network's numbers: dense; with a bit for each prunable weight and the values of those that are
    not zero; in CSR; and the dense form as zip compresses it. A tensor that a form would make larger counts dense."""
    dense = sum(map(dense_bytes, tensors.values()))
    saved_bits = sum(max(0, dense_bytes(tensors[name]) - _bitmask_bytes(tensors[name])) for name in prunable)
    saved_csr = sum(max(0, dense_bytes(tensors[name]) - csr_bytes(tensors[name])) for name in prunable)
    return {
        "dense": dense,
        "bitmask_and_values": dense - saved_bits,
        "csr": dense - saved_csr,
        "zip": _deflated(tensors),
    }


def _bitmask_bytes(weight: Tensor) -> int:
    return (weight.numel() + 7) // 8 + int(weight.count_nonzero()) * weight.element_size()


def _deflated(tensors: Mapping[str, Tensor]) -> int:
    """What zip's method makes of the dense numbers, at its highest level."""
    packer = zlib.compressobj(9, wbits=-15)
    parts = [packer.compress(one.reshape(-1).view(torch.uint8).numpy().tobytes()) for one in tensors.values()]
    return sum(map(len, parts)) + len(packer.flush())


def _csr(weight: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says once that its sparse matrices are in a beta state
        return weight.detach().to_sparse_csr()


class SparseLinear(nn.Module):
    """A linear layer whose weight is a CSR matrix: its product skips the zeros."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = _csr(layer.weight)
        self.bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        out = (self.weight @ x.reshape(-1, x.shape[-1]).T).T.reshape(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


class SparseConv2d(nn.Module):
    """A convolution as the product of its weight, a CSR matrix, with the input's patches as columns."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight = _csr(layer.weight.flatten(1))
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


def _sparse_layer(layer: nn.Module) -> nn.Module | None:
    """The layer over a CSR matrix; None for kinds that it is not written for."""
    if type(layer) is nn.Linear:
        return SparseLinear(layer)
    if type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros":
        return None if isinstance(layer.padding, str) else SparseConv2d(layer)
    return None


def sparse_copy(model: nn.Module, prunable: set[str]) -> tuple[nn.Module, int]:
    """The network with its prunable layers over CSR matrices, and how many of them that could be done for."""
    model = copy.deepcopy(model)
    made = 0
    for name in sorted(prunable):
        path, _, attribute = name.rpartition(".")
        layer = _sparse_layer(model.get_submodule(path)) if attribute == "weight" else None
        if layer is None:
            continue
        made += 1
        if not path:
            return layer, made
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, layer)
    return model, made


@dataclass(frozen=True)
class Latency:
    """Median time of one forward pass of a batch, in milliseconds; `note` says why there is none, or none over CSR."""

    batch: int
    dense: float | None
    sparse: float | None
    note: str = ""


@torch.no_grad()
def latencies(
    model: nn.Module, prunable: set[str], inputs: Tensor, batches: tuple[int, ...] = (1, 256)
) -> list[Latency]:
    """Forward passes of the dense network and of the one over CSR matrices, alternating, on the CPU with the threads
    that torch has.

    Args:
        inputs: as the network takes them; repeated where a batch wants more.
    """
    model.eval()
    sparse, note = _usable(model, prunable, inputs[:2])
    found = []
    for size in batches:
        x = inputs[torch.arange(size) % len(inputs)]
        calls: dict[str, Callable[[], object]] = {"dense": lambda x=x: model(x)}  # type: ignore[misc]
        if sparse is not None:
            calls["sparse"] = lambda x=x, sparse=sparse: sparse(x)  # type: ignore[misc]
        try:
            times = medians(calls)
        except Exception as error:  # the user's
            found.append(Latency(size, None, None, f"the network cannot take a batch of {size}: {one_line(error)}"))
            continue
        found.append(Latency(size, times["dense"], times.get("sparse"), note))
    return found


def _usable(model: nn.Module, prunable: set[str], x: Tensor) -> tuple[nn.Module | None, str]:
    """The network over CSR matrices if it computes the same, and what is to be said about it."""
    try:
        sparse, made = sparse_copy(model, prunable)
        if not made:
            return None, "no layer of a kind that CSR products are written for"
        expected, found = model(x.clone()), sparse(x.clone())  # some networks change their inputs
        if (expected - found).abs().max() > _TOLERANCE * expected.abs().max():
            return None, "the products over CSR matrices give other outputs"
    except Exception as error:  # of torch, or the user's
        return None, f"not possible over CSR matrices: {' '.join(str(error).split())[:120]}"
    left = len(prunable) - made
    return sparse, f"{left} of {len(prunable)} prunable layers stay dense" if left else ""


def medians(
    calls: Mapping[str, Callable[[], object]], seconds: float = 1.0, least: int = 5, most: int = 300
) -> dict[str, float]:
    """The median duration of each call in milliseconds, the calls taking turns so that all see the same machine.

    Args:
        seconds: how long it goes on, once every call was made `least` times; `most` times at most.
    """
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < most and (rounds < least or time.perf_counter() < end):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append(1000 * (time.perf_counter() - start))
        rounds += 1
    return {name: median(values) for name, values in taken.items()}
