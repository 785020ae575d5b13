"""What the zeros of a network save: bytes in several forms, and the time of a forward pass, both measured."""

from __future__ import annotations

import time
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tune_sparsity.experiments.examples import length, mapped
from tune_sparsity.sparsity.output_layers import called
from tune_sparsity.sparsity.wrappers import plain_name
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
    """Return the bytes of the dense numbers after zip's method, at its highest level."""
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
    """Compute a convolution as a matrix product. The left matrix is the weight in CSR format. The columns of the right
    matrix are the patches of the input."""

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
    """Return the layer over a CSR matrix; None for kinds that it is not written for."""
    if type(layer) is nn.Linear:
        return SparseLinear(layer)
    if type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros":
        return None if isinstance(layer.padding, str) else SparseConv2d(layer)
    return None


def over_csr(model: nn.Module, prunable: set[str]) -> tuple[nn.Module, int]:
    """Put the prunable layers of a network over CSR matrices, in place. Return the network, and how many of them that
    could be done for.

    Args:
        prunable: the plain names of their weights.
    """
    made, own = 0, {plain_name(model, name): name for name, _ in model.named_modules()}
    for name in sorted(prunable):
        path, _, attribute = name.rpartition(".")
        path = own[path]
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
    model: nn.Module,
    twin: nn.Module,
    prunable: set[str],
    inputs: Any,
    batches: tuple[int, ...] = (1, 256),
    forward: Callable[[Any, Any], Tensor] = called,
) -> list[Latency]:
    """Forward passes of the dense network and of the one over CSR matrices, alternating, on the CPU with the threads
    that torch has.

    Args:
        model: the dense one.
        twin: another network with the same weights, which becomes the one over CSR matrices. A copy would not do:
            networks with torch.nn.utils.weight_norm have none.
        prunable: the plain names of the weights that become CSR matrices.
        inputs: as `forward` takes them; repeated where a batch wants more.
        forward: (network, inputs) -> outputs.
    """
    model.eval()
    twin.eval()
    few = mapped(lambda x: x[:2], inputs)
    sparse, note = _usable(model, twin, prunable, lambda network: forward(network, mapped(Tensor.clone, few)))
    found = []
    for size in batches:
        places = torch.arange(size) % length(inputs)
        batch = mapped(lambda x, at=places: x[at], inputs)  # type: ignore[misc]
        calls: dict[str, Callable[[], object]] = {"dense": partial(forward, model, batch)}
        if sparse is not None:
            calls["sparse"] = partial(forward, sparse, batch)
        try:
            times = medians(calls)
        except Exception as error:  # the user's
            found.append(Latency(size, None, None, f"the network cannot take a batch of {size}: {one_line(error)}"))
            continue
        found.append(Latency(size, times["dense"], times.get("sparse"), note))
    return found


def _usable(
    model: nn.Module, twin: nn.Module, prunable: set[str], outputs: Callable[[Any], Tensor]
) -> tuple[Callable[..., Tensor] | None, str]:
    """Return the network over CSR matrices as a function if it computes the same, and what is to be said about it.

    Args:
        outputs: a network's for some inputs.
    """
    try:
        network, made = over_csr(twin, prunable)
        sparse = partial(_layer_by_layer, network)
        if not made:
            return None, "no layer of a kind that CSR products are written for"
        expected, found = outputs(model), outputs(sparse)
        if (expected - found).abs().max() > _TOLERANCE * expected.abs().max():
            return None, "the products over CSR matrices give other outputs"
    except Exception as error:  # of torch, or the user's
        return None, f"not possible over CSR matrices: {' '.join(str(error).split())[:120]}"
    left = len(prunable) - made
    return sparse, f"{left} of {len(prunable)} prunable layers stay dense" if left else ""


def _layer_by_layer(model: nn.Module, x: Tensor) -> Tensor:
    """Return the outputs without the fast path of torch's transformer layers, which reads the weights of dense
    layers."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        outputs: Tensor = model(x)
        return outputs
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def medians(
    calls: Mapping[str, Callable[[], object]], seconds: float = 1.0, least: int = 5, most: int = 300
) -> dict[str, float]:
    """Return the median duration of each call in milliseconds, the calls taking turns so that all see the same machine.

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
