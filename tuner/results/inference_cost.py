"""Measure how much the zeros of a network save: bytes in several forms, and the time of a forward pass."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from tune_sparsity.experiments.examples import length, mapped
from tune_sparsity.sparsity.output_layers import called
from tune_sparsity.sparsity.patterns import Block, Pattern
from tune_sparsity.tuner.errors import one_line
from tune_sparsity.tuner.results.export_formats import csr_bytes, dense_bytes
from tune_sparsity.tuner.results.sparse_layers import over_sparse

_TOLERANCE = {torch.bfloat16: 5e-2}  # of the largest output: sums in another order round differently
_MS_SECONDS = 0.2  # how long each form of a network is timed
Key = TypeVar("Key", str, int)


def sizes(tensors: Mapping[str, Tensor], prunable: set[str]) -> dict[str, int]:
    """Return the bytes of all the network's numbers in several forms: dense; a bit for each prunable weight and the
    nonzero values; CSR; and the dense form compressed by zip. A tensor stays dense if a form would make it larger."""
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


@dataclass(frozen=True)
class Latency:
    """The median time of one forward pass of a batch, in milliseconds. If a time is missing, `note` says why."""

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
    """Measure forward passes of the dense network and of the network with CSR matrices. They alternate, on the CPU with
    torch's number of threads.

    Args:
        model: the dense network.
        twin: another network with the same weights. It gets the CSR matrices. A copy of `model` is not possible if it
            uses torch.nn.utils.weight_norm.
        prunable: the plain names of the weights that become CSR matrices.
        inputs: the inputs of `forward`. They are repeated for larger batches.
        forward: (network, inputs) -> outputs.
    """
    model.eval()
    twin.eval()
    few = mapped(lambda x: x[:2], inputs)
    sparse, note = _usable(model, twin, prunable, lambda network: forward(network, mapped(Tensor.clone, few)))
    found = []
    for size in batches:
        networks: dict[str, Callable[..., Tensor]] = {"dense": model, **({"sparse": sparse} if sparse else {})}
        try:
            times = timed(networks, inputs, size, forward, torch.get_num_threads())
        except Exception as error:  # the user's
            found.append(Latency(size, None, None, f"the network cannot take a batch of {size}: {one_line(error)}"))
            continue
        sparse_ms = times["sparse"].ms if "sparse" in times else None
        found.append(Latency(size, times["dense"].ms, sparse_ms, note))
    return found


def _usable(
    model: nn.Module,
    twin: nn.Module,
    prunable: set[str],
    outputs: Callable[[Any], Tensor],
    block: Block | None = None,
) -> tuple[Callable[..., Tensor] | None, str]:
    """Return the network with sparse matrices as a function if it computes the same, and a remark for the user.

    Args:
        outputs: returns the outputs of a network for some inputs.
        block: the shape of the blocks of BSR matrices. None: CSR matrices.
    """
    kind = "CSR" if block is None else "BSR"
    try:
        network, made = over_sparse(twin, prunable, block)
        sparse = partial(_layer_by_layer, network)
        if not made:
            return None, f"no layer of a kind that {kind} products are written for"
        expected, found = outputs(model), outputs(sparse)
        if (expected - found).abs().max() > _TOLERANCE.get(expected.dtype, 1e-3) * expected.abs().max():
            return None, f"the products over {kind} matrices give other outputs"
    except Exception as error:  # of torch, or the user's
        return None, f"not possible over {kind} matrices: {' '.join(str(error).split())[:120]}"
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


class Timing(NamedTuple):
    """The median of a call's durations and their quartiles, in milliseconds."""

    ms: float
    low: float
    high: float


def timings(
    calls: Mapping[Key, Callable[[], object]], seconds: float = 1.0, least: int = 5, most: int = 300
) -> dict[Key, Timing]:
    """Return the durations of each call. The calls take turns, so that all are measured under the same load.

    Args:
        seconds: the time to measure. Every call is made at least `least` and at most `most` times.
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
    """Return the durations of a forward pass of each network on the CPU, the networks taking turns.

    Args:
        networks: in evaluation mode, by any name.
        inputs: as `forward` takes them; repeated where the batch wants more.
        batch: the number of examples.
        forward: (network, inputs) -> outputs.
        threads: of torch.
        seconds: how long it goes on, as in `timings`.
    """
    repeated, before = _repeated(inputs, batch), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return timings({name: partial(forward, one, repeated) for name, one in networks.items()}, seconds)
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Pass:
    """Holds the time of a forward pass of a batch on this machine's CPUs.

    Attributes:
        form: the form of the prunable weights: "dense", "csr" or "bsr".
        threads: the number of torch's threads.
        ms: the median, in milliseconds. None: it could not be measured, and `note` says why.
        low, high: the quartiles.
    """

    form: str
    batch: int
    threads: int
    dtype: str
    ms: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""


@torch.no_grad()
def passes(
    make: Callable[[], nn.Module],
    prunable: set[str],
    inputs: Any,
    pattern: Pattern,
    batches: tuple[int, ...] = (1, 256),
    forward: Callable[[Any, Any], Tensor] = called,
    smaller: Callable[[nn.Module], nn.Module] | None = None,
) -> list[Pass]:
    """Return the times of a network in all its forms: with one thread and with all, in float32 and in bfloat16.

    Args:
        make: returns a new network with its weights at each call.
        prunable: the plain names of the weights that become sparse matrices.
        inputs: the inputs of `forward`. They are repeated for larger batches.
        pattern: the pattern of the zeros. Blocks are measured in BSR format, too.
        forward: (network, inputs) -> outputs.
        smaller: network -> a copy without its removed neurons. None: no neurons are removed.
    """
    threads, found = torch.get_num_threads(), list[Pass]()
    blocks: dict[str, Block | None] = {"csr": None} | ({"bsr": pattern} if isinstance(pattern, Block) else {})
    for dtype in (torch.float32, torch.bfloat16):
        given = mapped(lambda x, to=dtype: x.to(to) if x.is_floating_point() else x, inputs)  # type: ignore[misc]
        few = mapped(lambda x: x[:2], given)
        model = make().eval().to(dtype)
        networks: dict[str, Callable[..., Tensor] | None] = {"dense": model}
        notes = {"dense": ""}
        for form, block in blocks.items():
            outputs = partial(_of_copies, forward, few)
            networks[form], notes[form] = _usable(model, make().eval().to(dtype), prunable, outputs, block)
        if smaller is not None:
            networks["neurons removed"], notes["neurons removed"] = smaller(make().eval()).to(dtype), ""
        for count in sorted({1, threads}):
            for size in batches:
                about = (size, count, str(dtype).removeprefix("torch."))
                there = {form: one for form, one in networks.items() if one}
                try:
                    times, wrong = timed(there, given, size, forward, count, _MS_SECONDS), ""
                except Exception as error:  # the user's
                    times, wrong = {}, f"not possible: {one_line(error)}"
                for form, note in notes.items():
                    taken = times[form]._asdict() if form in times else {}
                    found.append(Pass(form, *about, **taken, note=wrong or note))
    return found


def _of_copies(forward: Callable[[Any, Any], Tensor], inputs: Any, network: Any) -> Tensor:
    return forward(network, mapped(Tensor.clone, inputs))


def _repeated(inputs: Any, size: int) -> Any:
    """Return a batch of this size, which repeats the inputs where it wants more."""
    places = torch.arange(size) % length(inputs)
    return mapped(lambda x: x[places], inputs)
