"""Find two kinds of layers in autograd's graph: the last layers of a network, and the layers that a normalisation
follows directly."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tune_sparsity.sparsity.matrices import Matrix
from tune_sparsity.sparsity.torch_internals import NormBase, tree_leaves, tree_map

_MIXED = ""  # the label of all nodes except those that depend only on the weights of one layer


def called(model: nn.Module, inputs: Any) -> Any:
    """Call the network and return its outputs. If the inputs are a dict, its entries are the keyword arguments.
    Otherwise the inputs are the only argument."""
    return model(**inputs) if isinstance(inputs, dict) else model(inputs)


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Return a context manager. After its `with` block, each module is again in its former mode (training or
    evaluation)."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def normalising(model: nn.Module) -> list[NormBase]:
    """Return the batch and instance normalisations that compute statistics from their current inputs while the network
    trains. These normalisations remove the scale of their inputs. The network may keep other normalisations in
    evaluation mode during the training. Those use constant statistics, and do not remove the scale."""
    with modes_kept(model):
        model.train()
        norms = [module for module in model.modules() if isinstance(module, NormBase)]
        return [norm for norm in norms if norm.training or norm.running_mean is None]


class Found(NamedTuple):
    """Contains the result of `followers`: the names of the layers' weights, in the network's order."""

    last: tuple[str, ...]
    """The last layers: no other layer lies between them and the outputs. A network with several heads, or with a
    shortcut to its outputs, has several last layers."""
    normalised: tuple[str, ...]
    """The layers whose results are used only by a batch or instance normalisation."""


def followers(
    model: nn.Module,
    layers: Sequence[Matrix],
    example: Any,
    forward: Callable[[nn.Module, Any], Any] = called,
    norms: Sequence[NormBase] | None = None,
) -> Found:
    """Return the last layers, and the layers that a normalisation follows directly.

    The network is called once, in evaluation mode. Its weights, buffers and modes do not change.

    Args:
        model: the network.
        layers: its weight matrices.
        example: a batch of inputs.
        forward: (network, inputs) -> outputs.
        norms: the normalisations to look for. If None, these are the result of `normalising`.
    """
    norms = normalising(model) if norms is None else norms
    with modes_kept(model), ready(model), _inputs_of(norms) as read:
        outputs = forward(model, tree_map(_followed, example))
    roots = [one.grad_fn for one in tree_leaves(outputs) if isinstance(one, Tensor) and one.grad_fn is not None]
    owners = {id(param): layer.name for layer in layers for param in layer.params}
    labels = _labels(roots, owners)
    reached, normalised = _reached(roots, labels), _normalised(roots, labels, read)
    names = [layer.name for layer in layers]
    return Found(*(tuple(name for name in names if name in found) for found in (reached, normalised)))


@contextmanager
def _inputs_of(norms: Sequence[NormBase]) -> Iterator[list[Any]]:
    """Return a context manager that yields a list. Calls of the network in its `with` block add nodes of autograd's
    graph to this list: the nodes that produce the inputs of these normalisations."""
    nodes: list[Any] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: nodes.extend(one.grad_fn for one in inputs[:1]))
        for module in norms
    ]
    try:
        yield nodes
    finally:
        for hook in hooks:
            hook.remove()


def _normalised(roots: Iterable[Any], labels: Mapping[Any, str], read: Iterable[Any]) -> set[str]:
    """Return the names of the layers whose results are all inputs of normalisations and are used nowhere else.

    Args:
        roots: the nodes that produce the outputs.
        labels: the labels of all nodes.
        read: the nodes that produce the inputs of the normalisations.
    """
    normalisations = Counter(read)
    readers = Counter((*roots, *(other for node in labels for other in set(_inputs(node)))))
    found, others = set[str](), set[str]()
    for node in labels:
        inputs = _inputs(node) if labels[node] == _MIXED else []
        named = {other: labels[other] for other in inputs if labels[other] != _MIXED}
        for other, name in named.items():
            # `other` depends only on the layer's weights. Normally, `node` computes the layer's result from `other` and
            # the layer's inputs. If autograd does not follow the inputs, `other` is the result.
            result = other if other in normalisations else node
            alone = len(named) == 1 and normalisations[result] == readers[result] == 1
            (found if alone else others).add(name)
    return found - others


def _followed(x: Any) -> Any:
    """Return a copy of a floating-point tensor. Autograd tracks the copy, and the network may change the copy in place.
    Return any other input unchanged."""
    return x.detach().requires_grad_().clone() if isinstance(x, Tensor) and x.is_floating_point() else x


@contextmanager
def ready(model: nn.Module) -> Iterator[None]:
    """Return a context manager that prepares a network for a call that autograd tracks. In its `with` block, the
    network is in evaluation mode, all its floating-point parameters require gradients, and torch compiles nothing."""
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    # If the compiler is not imported, nothing is compiled. Its import would take seconds.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    try:
        model.eval()
        for param in frozen:
            param.requires_grad_(True)
        with eager, torch.enable_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for param in frozen:
            param.requires_grad_(False)


def _inputs(node: Any) -> list[Any]:
    return [other for other, _ in node.next_functions if other is not None]


def _labels(roots: Sequence[Any], owners: Mapping[int, str]) -> dict[Any, str]:
    """Return a label for each node: the name of the layer if the node depends only on the weights of this layer,
    otherwise _MIXED. An operation on a layer's weight that comes before the operation with the activations thus has the
    layer's name."""
    labels: dict[Any, str] = {}
    stack = list(roots)
    while stack:
        node = stack[-1]
        waiting = [other for other in _inputs(node) if other not in labels]
        if waiting:
            stack += waiting
            continue
        stack.pop()
        below = {labels[other] for other in _inputs(node)}
        if hasattr(node, "variable"):
            labels[node] = owners.get(id(node.variable), _MIXED)
        else:
            labels[node] = below.pop() if len(below) == 1 else _MIXED
    return labels


def _reached(roots: Sequence[Any], labels: Mapping[Any, str]) -> set[str]:
    """Return the names of the last layers: on the way back from the outputs, they are reached before any other
    layer."""
    reached = {labels[node] for node in roots} - {_MIXED}
    seen, stack = set(roots), [node for node in roots if labels[node] == _MIXED]
    while stack:
        inputs = _inputs(stack.pop())
        if met := {labels[other] for other in inputs} - {_MIXED}:
            reached |= met
            continue
        stack += [other for other in inputs if other not in seen]
        seen.update(inputs)
    return reached
