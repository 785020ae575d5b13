"""Writes a trained network in formats for other programs, and reads these files back.

No file contains code: the formats are safetensors (with dense or CSR weights), a state_dict that torch loads with
weights_only=True, and an ONNX graph. Masks are not written, because masked weights are already 0. A weight that would
be larger in CSR than dense stays dense.
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
Coded = Mapping[str, Tensor | Codes]  # Codes are weights with few bits
_HEADER = 250  # the approximate number of bytes that the three tensors of a weight in CSR add to the file's header


def save_safetensors(tensors: Coded, path: Path) -> None:
    """Write the state_dict as dense tensors with exact zeros. `load_safetensors` reads the file.

    A weight tensor with 8, 4 or 2 bits becomes two tensors: NAME.codes, int8 in the weight's shape, and NAME.scales,
    float16 with one scale for each row.
    """
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, Codes):
            stored |= {f"{name}.codes": tensor.codes, f"{name}.scales": tensor.scales}
        else:
            stored[name] = tensor
    bits = {name: tensor.bits for name, tensor in tensors.items() if isinstance(tensor, Codes)}
    save_file(stored, path, metadata={"format": "pt", **({"codes": json.dumps(bits)} if bits else {})})


def load_safetensors(path: Path | str) -> dict[str, Tensor]:
    """Return the network's state_dict from a file that `tune-sparsity export --format safetensors` has written.

    Args:
        path: the file.

    Returns:
        The tensors by their names in the network's state_dict, on the CPU. Weights with 8, 4 or 2 bits are decoded to
        float32.

    Raises:
        FileNotFoundError: if there is no such file.
        safetensors.SafetensorError: if the file is not in the safetensors format.
    """
    stored = load_file(path)
    with safe_open(path, framework="pt") as file:
        coded = json.loads((file.metadata() or {}).get("codes", "{}"))
    for name, bits in coded.items():
        stored[name] = Codes(stored.pop(f"{name}.codes"), stored.pop(f"{name}.scales"), bits).weight()
    return stored


def save_torch(tensors: Tensors, path: Path) -> None:
    """Write the state_dict for `torch.load(path, weights_only=True)`."""
    torch.save(dict(tensors), path)


def index_dtype(columns: int) -> torch.dtype:
    """Return the smallest integer dtype that can hold the column indices of a matrix with `columns` columns."""
    return torch.uint8 if columns <= 2**8 else torch.uint16 if columns <= 2**16 else torch.int32


def csr_bytes(weight: Tensor) -> int:
    """Return the number of bytes of a weight tensor in CSR format.

    CSR stores the values that are not zero, their column indices with the dtype that `index_dtype` returns, and row
    pointers of 4 bytes. The dimensions after the first are flattened to columns.
    """
    nonzero, rows, columns = int(weight.count_nonzero()), weight.shape[0], weight[0].numel()
    return nonzero * (weight.element_size() + index_dtype(columns).itemsize) + 4 * (rows + 1)


def dense_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def save_csr(tensors: Tensors, prunable: set[str], path: Path) -> None:
    """Write the prunable weights as CSR in a safetensors file, which `load_csr` reads.

    A weight becomes NAME.values, NAME.columns and NAME.rows (the row pointers). The shapes of these weights are in the
    metadata under "csr", as JSON. Other tensors, and weights that would be larger in CSR, stay dense.
    """
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
    """Return the network's state_dict from a file that `tune-sparsity export --format csr` has written.

    Args:
        path: the file.

    Returns:
        The tensors by their names in the network's state_dict, all dense and on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        safetensors.SafetensorError: if the file is not in the safetensors format.
        KeyError: if the file's metadata have no entry "csr", because it was written in another format.
        TypeError: if the file has no metadata at all.
    """
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
    """A network together with its preprocessing. Its inputs are examples as they are in the data set, not yet prepared.

    Args:
        outputs: a function (network, inputs as in the data set) -> outputs. It prepares the inputs and calls the
            network.
        network: the experiment's network.
    """

    def __init__(self, outputs: Callable[[nn.Module, Any], Tensor], network: nn.Module) -> None:
        super().__init__()
        self.outputs, self.network = outputs, network

    def forward(self, inputs: Any) -> Tensor:
        return self.outputs(self.network, inputs)


def require_onnx() -> None:
    """Raise UsageError if onnx, onnxruntime or onnxscript is not installed."""
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
    """Write a network to `path` as an ONNX graph. The other arguments and the errors are those of `onnx_model`."""
    path.write_bytes(onnx_model(model, outputs, inputs, codes).SerializeToString())


def onnx_model(
    model: nn.Module,
    outputs: Callable[[nn.Module, Any], Tensor],
    inputs: Any,
    codes: Mapping[str, Codes] | None = None,
) -> Any:
    """Return the network as an ONNX model for any number of examples. The graph's output is called "outputs".

    All metadata that torch's exporter adds are removed, because they contain paths and source lines of this machine.

    Args:
        model: the network.
        outputs: a function (network, inputs as in the data set) -> outputs.
        inputs: at least two examples as in the data set. The graph's input is called "inputs". If an example is a
            nested structure of tensors, the graph has one input for each tensor, named by
            `tune_sparsity.experiments.examples.named`.
        codes: the weights with 8, 4 or 2 bits, as a dict from their names to `Codes`. In the graph they are int8, with
            a scale for each row.

    Raises:
        RuntimeError: if torch cannot export the network. The message is that of torch, in one line.
    """
    batch = torch.export.Dim("batch", min=1)
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                in_evaluation(Whole(outputs, model)),
                kwargs={"inputs": inputs},  # in `args`, torch would read a dict at the end as keyword arguments
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
    """Replace each weight with few bits in the graph by its codes, its scales, and a node that multiplies them. A
    weight that the exporter has changed stays dense."""
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
    """Remove the metadata and the documentation from an ONNX object and from all objects within it. They contain stack
    traces of torch's exporter."""
    for note in ("metadata_props", "doc_string"):
        if note in part.DESCRIPTOR.fields_by_name:
            part.ClearField(note)
    for field, value in part.ListFields():
        if field.message_type is not None:
            for inner in value if isinstance(value, Sequence) else [value]:
                clear_notes(inner)


@contextmanager
def _quiet() -> Iterator[None]:
    """Return a context manager that suppresses the exporter's log messages and warnings in its block."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def onnx_function(path: Path) -> Callable[[Any], Tensor]:
    """Return a function that runs the ONNX file on a batch of inputs, with onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # With more optimisations, onnxruntime 1.31 crashes the process for some networks in bfloat16.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    known = {one.name for one in session.get_inputs()}  # inputs that the network does not use are missing here

    def run(inputs: Any) -> Tensor:
        given = {name or "inputs": x.numpy() for name, x in named(inputs).items()}
        return torch.from_numpy(session.run(None, {name: x for name, x in given.items() if name in known})[0])

    return run
