"""Joins two ONNX models into one graph. In this graph, the second model computes only the examples on which the first
model is unsure."""

from __future__ import annotations

from typing import Any

_SMALL, _LARGE = "small.", "large."


def gated(small: Any, large: Any, theta: float) -> Any:
    """Return an ONNX model that computes a group of two networks, as `tune_sparsity.experiments.cascade.Cascade` does
    in torch.

    An example is passed on to the large network if the small network's margin is below `theta`. The graph gathers the
    examples that are passed on. The large network's outputs for these examples replace the small network's outputs. The
    large network is within an If node, and does not run if no example is passed on.

    Args:
        small: the small network, from `tune_sparsity.tuner.results.export_formats.onnx_model`.
        large: the large network, from the same function and with the same inputs.
        theta: the threshold of the margin. float32 must represent this number exactly.
    """
    from onnx import ModelProto, compose, helper

    answered, answer = (model.graph.output[0].name for model in (small, large))
    inputs = [one.name for one in large.graph.input]
    small = compose.add_prefix(small, _SMALL, rename_inputs=False)
    large = compose.add_prefix(large, _LARGE)
    kind = small.graph.output[0].type.tensor_type.elem_type
    nodes, constants = _gate(f"{_SMALL}{answered}", theta)
    found = helper.make_tensor_value_info("merged", kind, None)
    then = helper.make_graph(
        [
            *(helper.make_node("Gather", [name, "rows"], [f"{_LARGE}{name}"], axis=0) for name in inputs),
            *large.graph.node,
            helper.make_node("Unsqueeze", ["rows", "gate.last"], ["places"]),
            helper.make_node("ScatterND", [f"{_SMALL}{answered}", "places", f"{_LARGE}{answer}"], ["merged"]),
        ],
        "passed_on",
        [],
        [found],
        [*large.graph.initializer],
    )
    alone = helper.make_tensor_value_info("unchanged", kind, None)
    kept = helper.make_graph(
        [helper.make_node("Identity", [f"{_SMALL}{answered}"], ["unchanged"])], "answered", [], [alone]
    )
    nodes.append(helper.make_node("If", ["gate.any"], ["outputs"], then_branch=then, else_branch=kept))
    model = ModelProto()
    model.CopyFrom(small)
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants)
    model.graph.output[0].name = "outputs"
    model.functions.extend(large.functions)
    known = {one.domain for one in model.opset_import}
    model.opset_import.extend(one for one in large.opset_import if one.domain not in known)
    return model


def _gate(outputs: str, theta: float) -> tuple[list[Any], list[Any]]:
    """Return ONNX nodes and constants that select the examples to pass on. They compute two outputs from the logits in
    `outputs`: "rows", the indices of these examples, and "gate.any", which is true if there are such examples."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    numbers: dict[str, Any] = {
        "theta": np.float32(theta),
        "two": np.array([2], np.int64),
        "first": np.int64(0),
        "second": np.int64(1),
        "none": np.int64(0),
        "last": np.array([-1], np.int64),
    }
    constants = [numpy_helper.from_array(np.asarray(value), f"gate.{name}") for name, value in numbers.items()]
    steps: list[tuple[str, list[str], list[str], dict[str, Any]]] = [
        ("Cast", [outputs], ["gate.logits"], {"to": TensorProto.FLOAT}),
        ("Softmax", ["gate.logits"], ["gate.probabilities"], {"axis": 1}),
        ("TopK", ["gate.probabilities", "gate.two"], ["gate.values", "gate.classes"], {"axis": 1}),
        ("Gather", ["gate.values", "gate.first"], ["gate.largest"], {"axis": 1}),
        ("Gather", ["gate.values", "gate.second"], ["gate.next"], {"axis": 1}),
        ("Sub", ["gate.largest", "gate.next"], ["gate.margin"], {}),
        ("Less", ["gate.margin", "gate.theta"], ["gate.unsure"], {}),
        ("NonZero", ["gate.unsure"], ["gate.found"], {}),
        ("Reshape", ["gate.found", "gate.last"], ["rows"], {}),
        ("Size", ["rows"], ["gate.count"], {}),
        ("Greater", ["gate.count", "gate.none"], ["gate.any"], {}),
    ]
    return [helper.make_node(kind, given, made, **more) for kind, given, made, more in steps], constants
