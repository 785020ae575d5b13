"""A trained network as a file that other programs read: how each format is written and read back.

None of the files holds code: tensors as safetensors, a state_dict that torch loads with weights_only=True, an ONNX
graph. None of them is larger than the same network's would be without a zero in it: masks are left out, since the
zeros are in the weights, and a tensor that would grow in CSR or in a packed file stays dense.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tune_sparsity.experiments.base import in_evaluation
from tune_sparsity.experiments.examples import mapped, named
from tune_sparsity.sparsity.few_bits import Codes
from tune_sparsity.tuner.errors import UsageError

Tensors = Mapping[str, Tensor]
Coded = Mapping[str, Tensor | Codes]  # where weights have few bits
_HEADER = 250  # bytes, at most, that three more entries take in a safetensors file's header


def save_safetensors(tensors: Coded, path: Path) -> None:
    """The state_dict as it is: dense tensors with exact zeros. A weight of few bits is NAME.codes, int8 in its shape,
    and NAME.scales, a float16 for each row. `load_safetensors` reads it."""
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, Codes):
            stored |= {f"{name}.codes": tensor.codes, f"{name}.scales": tensor.scales}
        else:
            stored[name] = tensor
    bits = {name: tensor.bits for name, tensor in tensors.items() if isinstance(tensor, Codes)}
    save_file(stored, path, metadata={"format": "pt", **({"codes": json.dumps(bits)} if bits else {})})


def load_safetensors(path: Path | str) -> dict[str, Tensor]:
    """Return the network's ordinary state_dict from a file that `save_safetensors` wrote."""
    stored = load_file(path)
    with safe_open(path, framework="pt") as file:
        coded = json.loads((file.metadata() or {}).get("codes", "{}"))
    for name, bits in coded.items():
        stored[name] = Codes(stored.pop(f"{name}.codes"), stored.pop(f"{name}.scales"), bits).weight()
    return stored


def save_torch(tensors: Tensors, path: Path) -> None:
    """The state_dict for `torch.load(path, weights_only=True)`."""
    torch.save(dict(tensors), path)


def index_dtype(columns: int) -> torch.dtype:
    """Return the smallest integers that number so many columns."""
    return torch.uint8 if columns <= 2**8 else torch.uint16 if columns <= 2**16 else torch.int32


def csr_bytes(weight: Tensor) -> int:
    """Bytes of a weight in CSR, its dimensions but the first as one: values, column indices in the smallest type that
    holds them, and row pointers of 4 bytes."""
    nonzero, rows, columns = int(weight.count_nonzero()), weight.shape[0], weight[0].numel()
    return nonzero * (weight.element_size() + index_dtype(columns).itemsize) + 4 * (rows + 1)


def dense_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def save_csr(tensors: Tensors, prunable: set[str], path: Path) -> None:
    """The prunable weights as NAME.values, NAME.columns and NAME.rows (the row pointers) in a safetensors file, their
    shapes as JSON under "csr" in its metadata; everything else, and what would grow, dense. `load_csr` reads it."""
    stored: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, tensor in tensors.items():
        if name not in prunable or csr_bytes(tensor) + _HEADER > dense_bytes(tensor):
            stored[name] = tensor
            continue
        rows = tensor.flatten(1)
        pointers = torch.cat([torch.zeros(1, dtype=torch.int64), (rows != 0).sum(1).cumsum(0)])
        stored[f"{name}.values"] = rows[rows != 0]
        stored[f"{name}.columns"] = (rows != 0).nonzero()[:, 1].to(index_dtype(rows.shape[1]))
        stored[f"{name}.rows"] = pointers.to(torch.int32)
        shapes[name] = list(tensor.shape)
    save_file(stored, path, metadata={"format": "pt", "csr": json.dumps(shapes)})


def load_csr(path: Path | str) -> dict[str, Tensor]:
    """Return the network's ordinary state_dict from a file that `save_csr` wrote."""
    stored = load_file(path)
    with safe_open(path, framework="pt") as file:
        shapes = json.loads(file.metadata()["csr"])
    for name, shape in shapes.items():
        values, columns, rows = (stored.pop(f"{name}.{part}") for part in ("values", "columns", "rows"))
        dense = values.new_zeros(shape)
        row = torch.repeat_interleave(torch.arange(shape[0]), rows.diff())
        dense.flatten(1)[row, columns.long()] = values
        stored[name] = dense
    return stored


class Whole(nn.Module):
    """An experiment's network behind the preparation of its inputs, which it takes as the data set holds them.

    Args:
        outputs: (network, inputs) -> outputs.
    """

    def __init__(self, outputs: Callable[[nn.Module, Any], Tensor], network: nn.Module) -> None:
        super().__init__()
        self.outputs, self.network = outputs, network

    def forward(self, inputs: Any) -> Tensor:
        return self.outputs(self.network, inputs)


def require_onnx() -> None:
    """Raises UsageError unless the packages that write and run ONNX are installed."""
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ImportError as error:
        raise UsageError(f"--format onnx: {error.name} is not installed: pip install 'tune-sparsity[onnx]'") from None
    del onnx, onnxruntime, onnxscript


def save_onnx(
    model: nn.Module,
    outputs: Callable[[nn.Module, Any], Tensor],
    inputs: Any,
    path: Path,
    codes: Mapping[str, Codes] | None = None,
) -> None:
    """Write a network as an ONNX graph. The arguments are those of `onnx_model`.

    Raises:
        RuntimeError: as `onnx_model`.
    """
    path.write_bytes(onnx_model(model, outputs, inputs, codes).SerializeToString())


def onnx_model(
    model: nn.Module,
    outputs: Callable[[nn.Module, Any], Tensor],
    inputs: Any,
    codes: Mapping[str, Codes] | None = None,
) -> Any:
    """Return the network as a model of ONNX to "outputs", for any number of examples at once.

    The exporter's notes are left out: they hold paths and source lines of this machine.

    Args:
        outputs: (network, inputs as the data set holds them) -> outputs.
        inputs: two examples or more. The graph's input is called "inputs"; of a nest they have the names that
            `tune_sparsity.experiments.examples.named` gives them.
        codes: of the weights of few bits, by name. They are int8 in the graph, with a scale for each row.

    Raises:
        RuntimeError: if torch cannot export the network; the message is torch's, in one line.
    """
    batch = torch.export.Dim("batch", min=1)
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                in_evaluation(Whole(outputs, model)),
                kwargs={"inputs": inputs},  # of args a dict at the end would be taken for the keyword arguments
                input_names=[name or "inputs" for name in named(inputs)],
                output_names=["outputs"],
                dynamic_shapes={"inputs": mapped(lambda _: {0: batch}, inputs)},
                verbose=False,
            )
            graph = program.model_proto
            clear_notes(graph)
            _use_codes(graph.graph, codes or {})
            return graph
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        raise RuntimeError(
            f"torch cannot export this network to ONNX: {(lines or [type(cause).__name__])[0]}"
        ) from error


def _use_codes(graph: Any, codes: Mapping[str, Codes]) -> None:
    """Puts codes and scales, and the node that multiplies them, in the place of weights of few bits. A weight that the
    exporter has changed stays as it is."""
    from onnx import helper, numpy_helper

    for name, one in codes.items():
        for weight in [weight for weight in graph.initializer if weight.name.endswith(f".{name}")]:
            if not np.array_equal(numpy_helper.to_array(weight), one.weight().numpy()):
                continue
            graph.initializer.remove(weight)
            names = [f"{weight.name}.codes", f"{weight.name}.scales"]
            parts = one.codes.contiguous().numpy(), one.scales.float().numpy()
            graph.initializer.extend(map(numpy_helper.from_array, parts, names))
            graph.node.insert(0, helper.make_node("DequantizeLinear", names, [weight.name], axis=0))


def clear_notes(part: Any) -> None:
    """Clears what only people read in a message of ONNX and in all messages within it, such as nodes and functions.

    An exporter writes there the stack in which a node came about.
    """
    for note in ("metadata_props", "doc_string"):
        if note in part.DESCRIPTOR.fields_by_name:
            part.ClearField(note)
    for field, value in part.ListFields():
        if field.message_type is not None:
            for inner in value if isinstance(value, Sequence) else [value]:
                clear_notes(inner)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's own account of its steps is not for our reader."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def onnx_function(path: Path) -> Callable[[Any], Tensor]:
    """Return the ONNX file as a function of a batch, run by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Further optimisations of onnxruntime 1.31 end the process at some networks in bfloat16.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    known = {one.name for one in session.get_inputs()}  # without those that the network does not use

    def run(inputs: Any) -> Tensor:
        given = {name or "inputs": x.numpy() for name, x in named(inputs).items()}
        return torch.from_numpy(session.run(None, {name: x for name, x in given.items() if name in known})[0])

    return run
