"""Measure the time of a network's forward pass with different forms of its weights, for example dense and CSR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn

from tune_sparsity.experiments.examples import mapped
from tune_sparsity.sparsity.output_layers import called
from tune_sparsity.sparsity.patterns import Block, Neurons, NofM, Pattern
from tune_sparsity.tuner.errors import one_line
from tune_sparsity.tuner.results.inference_cost import timed
from tune_sparsity.tuner.results.sparse_layers import Form, over_sparse

# The largest allowed difference of outputs, as a fraction of the largest output; for other types 1e-3. Outputs differ,
# because sums in another order are rounded differently.
_TOLERANCE = {torch.bfloat16: 5e-2}
_SECONDS = 0.2  # the time to measure all forms of a network with one batch size and one number of threads

Network = Callable[..., Tensor]


@dataclass(frozen=True)
class Weights:
    """Holds a network whose weights can be converted into other forms.

    Attributes:
        make: a function that returns a new copy of the network.
        prunable: the names of the weights to convert, without the prefixes of wrappers such as DataParallel.
        inputs: inputs of `forward`. If a batch needs more examples than these, they are repeated.
        forward: a function (network, inputs) -> outputs.
        smaller: a function from a network to a copy of it without its removed neurons. None if no neurons are removed.
    """

    make: Callable[[], nn.Module]
    prunable: set[str]
    inputs: Any
    forward: Callable[[Any, Any], Tensor] = called
    smaller: Callable[[nn.Module], nn.Module] | None = None


@dataclass(frozen=True)
class Pass:
    """Holds the time of a forward pass of a batch on this machine.

    Attributes:
        form: the form of the prunable weights: "dense", "csr", "bsr", "2:4" or "neurons removed".
        batch: the number of examples.
        threads: the number of threads that torch uses.
        dtype: the type of the weights, for example "float32".
        device: "cpu" or "cuda".
        ms: the median in milliseconds; None if the time could not be measured.
        low, high: the quartiles in milliseconds; None if the time could not be measured.
        note: the reason why the time could not be measured. Otherwise, a text about layers that stay dense, or "" if
            there are no such layers.
    """

    form: str
    batch: int
    threads: int
    dtype: str
    device: str
    ms: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Latency:
    """The median time of one forward pass of a batch, in milliseconds, with dense and with CSR matrices. If a time is
    None, `note` gives the reason."""

    batch: int
    dense: float | None
    sparse: float | None
    note: str = ""


def latencies(weights: Weights, batches: tuple[int, ...] = (1, 256)) -> list[Latency]:
    """Measure forward passes with dense matrices and with CSR matrices, on the CPU, with as many threads as torch uses
    now. Return one `Latency` for each batch size.

    Args:
        weights: the network.
        batches: the batch sizes to measure.
    """
    found = measure(weights, ["csr"], batches, [torch.get_num_threads()])
    pairs = [[one for one in found if one.batch == size] for size in batches]
    return [Latency(dense.batch, dense.ms, sparse.ms, dense.note or sparse.note) for dense, sparse in pairs]


def passes(weights: Weights, pattern: Pattern, batches: tuple[int, ...] = (1, 256)) -> list[Pass]:
    """Measure a network in all forms that its pattern of zeros allows.

    On the CPU, each form is measured in float32 and bfloat16, with one thread and with all threads of torch. On a GPU,
    only networks with an N:M pattern or with removed neurons are measured, in bfloat16, because zeros in other patterns
    make no network faster on a GPU.

    Args:
        weights: the network.
        pattern: the pattern of the zeros. If it consists of blocks, BSR is measured in addition to CSR. On a GPU, an
            N:M pattern is measured in torch's semi-structured format.
        batches: the batch sizes to measure.
    """
    smaller = ["neurons removed"] if weights.smaller else []
    block = pattern if isinstance(pattern, Block) else None
    threads = sorted({1, torch.get_num_threads()})
    found = list[Pass]()
    for dtype in (torch.float32, torch.bfloat16):
        forms = ["csr", *(["bsr"] if block else []), *smaller]
        found += measure(weights, forms, batches, threads, dtype, block=block)
    if torch.cuda.is_available() and isinstance(pattern, NofM | Neurons):
        forms = ["2:4"] if isinstance(pattern, NofM) else smaller
        try:
            found += measure(weights, forms, batches, threads[-1:], torch.bfloat16, "cuda")
        except Exception as error:  # for example if other processes use the GPU's memory
            note = f"not possible on the GPU: {one_line(error)}"
            found += [Pass("dense", size, threads[-1], "bfloat16", "cuda", note=note) for size in batches]
    return found


@torch.no_grad()
def measure(
    weights: Weights,
    forms: Sequence[str],
    batches: Sequence[int],
    threads: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    block: Block | None = None,
) -> list[Pass]:
    """Return the times of the dense network, and of the same network in other forms. The measurements of the forms
    alternate, so that all forms are measured under the same load.

    Args:
        forms: the forms to measure besides "dense", as in `Pass.form`.
        batches: the batch sizes to measure.
        threads: the numbers of threads to measure with.
        dtype: the type of the weights.
        device: "cpu" or "cuda".
        block: the shape of the blocks of "bsr".
    """
    inputs = mapped(lambda x: x.to(device, dtype if x.is_floating_point() else x.dtype), weights.inputs)
    dense = weights.make().eval().to(device, dtype)
    networks: dict[str, Network] = {"dense": dense}
    notes = {"dense": ""}
    for form in forms:
        network, notes[form] = _in_form(form, weights, dense, inputs, block)
        networks |= {form: network} if network else {}
    found = []
    for count, size in product(threads, batches):
        try:
            times, wrong = timed(networks, inputs, size, weights.forward, count, _SECONDS), ""
        except Exception as error:  # the user's network may raise anything
            times, wrong = {}, f"the network cannot take a batch of {size}: {one_line(error)}"
        for form, note in notes.items():
            taken = times[form]._asdict() if form in times else {}
            about = (form, size, count, str(dtype).removeprefix("torch."), device)
            found.append(Pass(*about, **taken, note=wrong or note))
    return found


def _in_form(
    form: str, weights: Weights, dense: nn.Module, inputs: Any, block: Block | None
) -> tuple[Network | None, str]:
    """Return the network with its weights in another form, and a remark for the user. The network is None if the form
    is not possible, or if it changes the outputs."""
    one = next(dense.parameters())
    if form == "neurons removed":
        assert weights.smaller is not None
        return weights.smaller(weights.make().eval()).to(one.device, one.dtype), ""
    matrices = {"csr": "CSR matrices", "bsr": "BSR matrices", "2:4": "semi-structured matrices"}[form]
    try:
        twin = weights.make().eval().to(one.device, one.dtype)
        network, left = over_sparse(twin, weights.prunable, cast("Form", form), block if form == "bsr" else None)
        reasons = "".join(f"; {name}: {reason}" for name, reason in left.items()) if form == "2:4" else ""
        if len(left) == len(weights.prunable):
            return None, f"no layer supports products with {matrices}{reasons}"
        sparse, few = partial(_layer_by_layer, network), mapped(lambda x: x[:2], inputs)
        expected, found = (weights.forward(each, mapped(Tensor.clone, few)) for each in (dense, sparse))
        if (expected - found).abs().max() > _TOLERANCE.get(expected.dtype, 1e-3) * expected.abs().max():
            return None, f"products with {matrices} give different outputs"
    except Exception as error:  # torch or the user's network may raise anything
        return None, f"products with {matrices} failed: {' '.join(str(error).split())[:120]}"
    return sparse, f"{len(left)} of {len(weights.prunable)} prunable layers stay dense{reasons}" if left else ""


def _layer_by_layer(model: nn.Module, x: Tensor) -> Tensor:
    """Return the outputs of a model without torch's fast path for transformer layers. The fast path would read dense
    weights, which sparse layers do not have."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        outputs: Tensor = model(x)
        return outputs
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
