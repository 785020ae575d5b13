"""Measure how much the zeros of a network save: bytes in several storage formats, and the time of a forward pass."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median, quantiles
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from tune_sparsity.experiments.examples import length, mapped
from tune_sparsity.sparsity.output_layers import called
from tune_sparsity.tuner.results.export_formats import csr_bytes, dense_bytes

Key = TypeVar("Key", str, int)


def sizes(tensors: Mapping[str, Tensor], prunable: set[str]) -> dict[str, int]:
    """Return the bytes of a network in several storage formats, as a dict from the formats' names to numbers.

    The formats are "dense"; "bitmask_and_values", which has a bitmask and the nonzero values of each prunable tensor;
    "csr"; and "zip", the dense numbers compressed with zip's method. In "bitmask_and_values" and "csr", a tensor that
    would become larger stays dense.

    Args:
        tensors: the network's state_dict.
        prunable: the names of the prunable tensors.
    """
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
    """Return the bytes of the dense numbers after compression with zip's method (DEFLATE) at its highest level."""
    packer = zlib.compressobj(9, wbits=-15)
    parts = [packer.compress(one.reshape(-1).view(torch.uint8).numpy().tobytes()) for one in tensors.values()]
    return sum(map(len, parts)) + len(packer.flush())


class Timing(NamedTuple):
    """The median of measured durations, and their quartiles, in milliseconds."""

    ms: float
    low: float
    high: float


def timings(
    calls: Mapping[Key, Callable[[], object]], seconds: float = 1.0, least: int = 5, most: int = 300
) -> dict[Key, Timing]:
    """Measure the duration of each call. The calls alternate, so that all are measured under the same load.

    Args:
        calls: a dict from names to functions without arguments.
        seconds: the time for all measurements together.
        least, most: the smallest and the largest number of measured calls of each function. If `least` calls need more
            time than `seconds`, they are still made.
    """
    for call in calls.values():
        call()
    taken: dict[Key, list[float]] = {name: [] for name in calls}
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < most and (rounds < least or time.perf_counter() < end):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append(1000 * (time.perf_counter() - start))
        rounds += 1
    found = {}
    for name, values in taken.items():
        low, _, high = quantiles(values, n=4, method="inclusive")
        found[name] = Timing(median(values), low, high)
    return found


@torch.no_grad()
def timed(
    networks: Mapping[Key, Callable[..., Tensor]],
    inputs: Any,
    batch: int,
    forward: Callable[[Any, Any], Tensor] = called,
    threads: int = 1,
    seconds: float = 1.0,
) -> dict[Key, Timing]:
    """Measure the duration of a forward pass of each network. The networks alternate, so that all are measured under
    the same load.

    Args:
        networks: a dict from names to networks in evaluation mode.
        inputs: inputs of `forward`, on the networks' device. If the batch needs more examples than these, they are
            repeated.
        batch: the number of examples in the batch.
        forward: a function (network, inputs) -> outputs.
        threads: the number of threads that torch uses.
        seconds: the time for all measurements together.
    """
    repeated, before = _repeated(inputs, batch), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return timings({name: partial(_ended, forward, one, repeated) for name, one in networks.items()}, seconds)
    finally:
        torch.set_num_threads(before)


def _ended(forward: Callable[[Any, Any], Tensor], network: Any, inputs: Any) -> Tensor:
    """Return the outputs. On a GPU, wait until they are computed."""
    outputs = forward(network, inputs)
    if outputs.is_cuda:
        torch.cuda.synchronize(outputs.device)
    return outputs


def _repeated(inputs: Any, size: int) -> Any:
    """Return a batch of `size` examples, by repeating the inputs if there are fewer."""
    places = torch.arange(size) % length(inputs)
    return mapped(lambda x: x[places.to(x.device)], inputs)
