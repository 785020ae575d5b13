"""Find the channels of a network that can only be removed together, from the dependency graph of torch-pruning."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tune_sparsity.sparsity.neurons.channels import KEPT, Channels, channel_counts, coupled, has_weight
from tune_sparsity.sparsity.output_layers import modes_kept, ready
from tune_sparsity.sparsity.torch_internals import tree_leaves, tree_map

OPAQUE = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear)
"""The classes of layers that keep all their neurons. The neurons whose outputs they read stay, too."""

_MOST = 20
"""The largest number of indices that are followed through a network, as a multiple of the number of channels. A
multiple of 1 is usual."""
_PASSING = ("CONCAT", "SPLIT", "ELEMENTWISE", "RESHAPE", "UNBIND", "EXPAND", "SLICE", "PRELU")

Side = tuple[str, bool]
"""The name of a module, and True for its output channels or False for its input channels."""


class Links:
    """Divides the channels of modules into sets. The channels of a set can only be removed together.

    Attributes:
        modules: a dict from names to the modules that have the channels.
        whole: the sets that are never removed, as a dict from their indices to the reasons.
    """

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.modules = modules
        self.whole: dict[int, str] = {}
        self._starts: dict[Side, int] = {}
        self._parents: list[int] = []
        for name, module in modules.items():
            for count, outputs in zip(channel_counts(module), (True, False), strict=True):
                self._starts[name, outputs] = len(self._parents)
                self._parents.extend(range(len(self._parents), len(self._parents) + count))

    def channels(self, name: str, outputs: bool) -> range:
        """Return the indices of the output channels of a module, or of its input channels if `outputs` is False. The
        channels of all modules together are numbered from 0."""
        start = self._starts[name, outputs]
        return range(start, start + channel_counts(self.modules[name])[not outputs])

    @property
    def count(self) -> int:
        """Return the number of all channels."""
        return len(self._parents)

    def set_of(self, channel: int) -> int:
        """Return the index of the set that contains a channel."""
        parents = self._parents
        while parents[channel] != channel:
            parents[channel] = parents[parents[channel]]
            channel = parents[channel]
        return channel

    def join(self, channels: Iterable[int]) -> None:
        """Record that the given channels can only be removed together."""
        sets = [self.set_of(channel) for channel in channels]
        for other in sets[1:]:
            self._parents[self.set_of(other)] = self.set_of(sets[0])

    def sets(self, name: str, outputs: bool) -> list[int]:
        """Return, for each channel of a module, the index of the set that contains the channel. For the arguments see
        `channels`."""
        return [self.set_of(channel) for channel in self.channels(name, outputs)]

    def keep(self, sets: Iterable[int], reason: str) -> None:
        """Record that the given sets are never removed, and the reason. If a set has a reason already, this reason
        stays."""
        for one in sets:
            self.whole.setdefault(one, reason)

    def blocks(self) -> list[list[int]]:
        """Divide the sets that can be removed into lists, and return these. All sets in one list have channels in the
        same modules."""
        places = defaultdict[int, list[Side]](list)
        for side in self._starts:
            for one in dict.fromkeys(self.sets(*side)):
                places[one].append(side)
        alike = defaultdict[tuple[Side, ...], list[int]](list)
        for one, sides in places.items():
            if one not in self.whole:
                alike[tuple(sides)].append(one)
        return list(alike.values())

    def numbered(self) -> tuple[dict[str, Channels], int]:
        """Number the sets that can be removed: each becomes a group. Return a dict from the names of modules to the
        groups of their channels, and the number of groups."""
        numbers = {one: index for index, one in enumerate(one for block in self.blocks() for one in block)}
        found = {}
        for name in self.modules:
            sides = [[numbers.get(one, KEPT) for one in self.sets(name, outputs)] for outputs in (True, False)]
            if any(number != KEPT for side in sides for number in side):
                found[name] = Channels(*(torch.tensor(side, dtype=torch.int64) for side in sides))
        return found, len(numbers)


def linked(
    model: nn.Module, prunable: Collection[str], example: Any, forward: Callable[[nn.Module, Any], Any]
) -> Links:
    """Find the channels that can only be removed together. The network is called once, in evaluation mode.

    Args:
        prunable: the names of the modules whose weights can be masked.
        example: a batch of inputs.
        forward: a function (network, inputs) -> outputs.

    Raises:
        ValueError: if torch-pruning is not installed.
        Exception: of any type, if torch-pruning cannot trace the network.
    """
    with modes_kept(model), ready(model), _hidden(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = _dependencies(model, example, forward)
        names = {module: name for name, module in model.named_modules() if module in graph.module2node}
        links = Links({name: module for module, name in names.items() if any(channel_counts(module))})
        stops = [stop for name in links.modules for stop in _follow(graph, links, names, name)]
    for name, module in links.modules.items():
        for sides in coupled(module):
            pairs = zip((True, False), sides, strict=True)
            links.join(links.channels(name, outputs)[index] for outputs, side in pairs for index in side)
    for channel, reason in stops:
        links.keep([links.set_of(channel)], reason)
    _keep_what_masks_do_not_reach(links, prunable)
    return links


class _Hidden(torch.autograd.Function):
    """Makes autograd record a tensor as the result of one operation on other tensors."""

    @staticmethod
    def forward(ctx: Any, kind: str, result: Tensor, *inputs: Tensor) -> Tensor:
        ctx.hidden = kind
        return result.clone()


@contextmanager
def _hidden(model: nn.Module) -> Iterator[None]:
    """Return a context manager. In its `with` block, autograd records each layer of OPAQUE as one operation, because
    torch-pruning cannot follow the operations inside these layers."""

    def hide(module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> Any:
        inputs = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor) and one.requires_grad]
        kind = type(module).__name__
        return tree_map(lambda one: _Hidden.apply(kind, one.detach(), *inputs) if _real(one) else one, outputs)

    hooks = [one.register_forward_hook(hide, with_kwargs=True) for one in model.modules() if isinstance(one, OPAQUE)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _real(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def require_torch_pruning() -> None:
    """Raise ValueError if the library torch-pruning is not installed. torch-pruning follows channels through a
    network."""
    try:
        import torch_pruning
    except ImportError:
        raise ValueError(
            "torch-pruning, which finds neurons, is not installed: pip install 'tune-sparsity[neurons]'"
        ) from None
    del torch_pruning


def _dependencies(model: nn.Module, example: Any, forward: Callable[[nn.Module, Any], Any]) -> Any:
    """Return the dependency graph of a network. torch-pruning computes it from autograd's graph."""
    require_torch_pruning()
    from torch_pruning import DependencyGraph

    def inputs(x: Any) -> Any:
        return x.detach().requires_grad_().clone() if _real(x) else x

    def outputs(results: Any) -> list[Tensor]:
        tensors = [one for one in tree_leaves(results) if isinstance(one, Tensor)]
        return [one for one in tensors if one.grad_fn is not None]

    return DependencyGraph().build_dependency(
        model, tree_map(inputs, example), forward, output_transform=outputs, verbose=False
    )


class _Index(NamedTuple):
    """The index of a channel, and the index of the layer output that belongs to it."""

    idx: int
    root_idx: int


def _follow(graph: Any, links: Links, names: dict[Any, str], name: str) -> Iterator[tuple[int, str]]:
    """Join each output channel of a layer with all channels that must be removed together with it. Yield pairs of an
    output channel that must stay and the reason."""
    layer = links.modules[name]
    if not has_weight(layer):
        return
    own = links.channels(name, True)
    left = _MOST * (len(own) * len(graph.module2node) + links.count)
    for node, remove, indices in _reached(graph, layer, len(own)):
        left -= len(indices)
        if left < 0:  # in some networks the walk repeats a cycle, and gets more indices in every round
            yield from ((channel, "torch-pruning does not follow its outputs to their end") for channel in own)
            return
        hidden = getattr(node.grad_fn, "hidden", "")
        if any(channel_counts(node.module)):
            reached = links.channels(names[node.module], graph.is_out_channel_pruning_fn(remove))
            try:
                for index, root in indices:
                    links.join((own[root], reached[index]))
            except (IndexError, TypeError):
                why = f"torch-pruning does not follow its outputs to {names[node.module]}"
                yield from ((channel, why) for channel in own)
        elif hidden or node.type.name not in _PASSING:
            why = f"{with_article(hidden)} reads its outputs" if hidden else _why(node.type.name, node.module)
            yield from ((own[root], why) for root in {index.root_idx for index in indices} - {None})


def _reached(graph: Any, layer: nn.Module, count: int) -> Iterator[tuple[Any, Any, tuple[_Index, ...]]]:
    """Yield the channels that must be removed with all outputs of a layer: the node, the function that removes channels
    of the node, and their indices. The graph's own `get_pruning_group` also finds them, but computes the shapes of all
    nodes in every call."""
    root, remove = graph.module2node[layer], graph.get_pruner_of_module(layer).prune_out_channels
    stack = [(root, remove, tuple(_Index(index, index) for index in range(count)))]
    seen = set(stack)
    while stack:
        node, remove, indices = stack.pop()
        yield node, remove, indices
        for step in node.dependencies:
            found = indices
            for mapping in step.index_mapping if step.is_triggered_by(remove) else ():
                found = found if mapping is None else tuple(mapping(found))
            one = (step.target, step.handler, found)
            if step.is_triggered_by(remove) and found and one not in seen:
                seen.add(one)
                stack.append(one)


def _why(kind: str, module: Any) -> str:
    if kind == "OUTPUT":
        return "its outputs are the outputs of the network"
    if kind == "PARAMETER":
        return "a parameter of the network is combined with its outputs"
    does = "is combined with" if kind == "EMBED" else "reads"
    return f"{with_article(type(module).__name__)} {does} its outputs"


def with_article(name: str) -> str:
    """Return a name with its article, "a" or "an"."""
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _keep_what_masks_do_not_reach(links: Links, prunable: Collection[str]) -> None:
    """Mark sets that masks cannot remove: sets with a weight that is not pruned, and sets whose channels no weight
    computes or no weight reads."""
    made, read = set[int](), set[int]()
    for name, module in links.modules.items():
        if not has_weight(module):
            continue
        outputs, inputs = links.sets(name, True), links.sets(name, False)
        if name not in prunable:
            links.keep(outputs, "its weights are not pruned")
            links.keep(inputs, f"{name} reads its outputs, and is not pruned")
        made.update(outputs)
        read.update(inputs)
    for name in links.modules:
        links.keep((one for one in links.sets(name, True) if one not in made), "no weight makes it")
        links.keep((one for one in links.sets(name, False) if one not in made), "no weight makes it")
        links.keep((one for one in links.sets(name, True) if one not in read), "no layer is seen to read its outputs")
