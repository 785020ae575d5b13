"""Find the groups of neurons that can be removed from a network, and test them: the network without these neurons must
have the same outputs as the network in which their weights are masked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from tune_sparsity.sparsity.cost.multiply_adds import count_uses
from tune_sparsity.sparsity.layers import Layer, LayerRules, prunable_layers, with_last_layer
from tune_sparsity.sparsity.neurons.channels import KEPT, has_weight, outputs_first, weight_groups
from tune_sparsity.sparsity.neurons.graph import OPAQUE, Links, linked, require_torch_pruning, with_article
from tune_sparsity.sparsity.neurons.groups import LayerGroups, NeuronGroups, Scale, Whole
from tune_sparsity.sparsity.neurons.removal import remove
from tune_sparsity.sparsity.output_layers import called, ready
from tune_sparsity.sparsity.patterns import Neurons
from tune_sparsity.sparsity.torch_internals import NormBase, tree_leaves, tree_map

Forward = Callable[[nn.Module, Any], Any]

_EXACT = torch.float64
_EQUAL = 1e-9  # tolerance relative to the largest output: another order of sums changes outputs by less
_EQUAL_OTHERWISE = 1e-4  # the tolerance for a network that cannot compute in float64


def neuron_groups(model: nn.Module, layers: Sequence[Layer], example: Any, forward: Forward = called) -> NeuronGroups:
    """Find the groups of neurons that can be removed from a network. The neurons of a group can only be removed
    together.

    The groups that torch-pruning finds are tested on two copies of the network with the same random weights. In one
    copy, neurons are masked. In the other copy, the same neurons are removed. If the two copies compute different
    outputs, these neurons are never removed. The network itself does not change.

    Args:
        layers: the prunable layers of the network.
        example: a batch of inputs.
        forward: a function (network, inputs) -> outputs.

    Raises:
        ValueError: if torch-pruning is not installed.
    """
    require_torch_pruning()
    owners = _owners(model, layers)
    try:
        links = linked(deepcopy(model), set(owners.values()), example, forward)
    except Exception as error:  # of any type, because `linked` runs torch-pruning and the network's own code
        return _groups(model, layers, owners, Links({}), f"torch-pruning cannot trace the network: {_line(error)}")
    if links.blocks():
        _Trial(deepcopy(model), _groups(model, layers, owners, links), owners, example, forward).keep_what_changes(
            links
        )
    return _groups(model, layers, owners, links)


def with_neurons(
    rules: LayerRules, model: nn.Module, example: Any, forward: Forward = called, *, width: float = 1.0
) -> LayerRules:
    """Return the rules with the network's groups of neurons if the pattern or the width needs the groups. Otherwise
    return the rules unchanged.

    If `rules.pattern` is an instance of `Neurons`, its attribute `groups` gets the groups. If the width is less than 1,
    the attribute `neurons` of the rules gets the groups. Groups that are already in the rules stay. For the other
    arguments see `neuron_groups`.

    Args:
        width: the width with which the training begins; see `narrow_selection`.

    Raises:
        ValueError: if torch-pruning is not installed, if the pattern needs the number of multiply-adds but this number
            cannot be counted, or if the width is less than 1 and no neuron of the network can be removed.
    """
    narrow = width != 1.0 and rules.neurons is None
    pattern = rules.pattern if isinstance(rules.pattern, Neurons) and rules.pattern.groups is None else None
    if not narrow and pattern is None:
        return rules
    layers = prunable_layers(model, with_last_layer(rules, model, example, forward), sphere=False)
    uses = count_uses(model, layers, example, forward) if pattern and pattern.by_macs else None
    if pattern and pattern.by_macs and uses is None:
        raise ValueError("pattern neurons: the multiply-adds of this network could not be counted")
    groups = neuron_groups(model, layers, example, forward)
    if pattern is None:
        if not groups.count:
            why = next((f" ({one.reason})" for one in groups.whole), "")
            raise ValueError(f"width: no neuron of this network can be removed{why}: give the width 1")
        return replace(rules, neurons=groups)
    return replace(rules, pattern=replace(pattern, groups=groups.bundled(pattern.multiple), uses=uses))


def _owners(model: nn.Module, layers: Sequence[Layer]) -> dict[str, str]:
    """Return a dict from the names of layers to the names of the modules that have their weights. A layer is left out
    if its weight belongs to several modules, or to a module of a class that cannot lose neurons."""
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for param in module.parameters(recurse=False):
            users.setdefault(id(param), []).append(name)
    owners = {}
    for layer in layers:
        first, *others = users[id(layer.weight)]
        module = model.get_submodule(first)
        if not others and has_weight(module) and getattr(module, "weight", None) is layer.weight:
            owners[layer.name] = first
    return owners


def _groups(
    model: nn.Module, layers: Sequence[Layer], owners: Mapping[str, str], links: Links, reason: str = ""
) -> NeuronGroups:
    """Return the groups of neurons that can be removed according to `links`.

    Args:
        reason: why the layers that are not in `links` keep all their neurons.
    """
    channels, count = links.numbered()
    found, whole = [], []
    for layer in layers:
        owner, shape = owners.get(layer.name, ""), layer.weight.shape
        first, second = (torch.full((size,), KEPT) for size in shape[:2])
        if owner in channels:
            first, second = weight_groups(links.modules[owner], channels[owner])
        found.append(
            LayerGroups(layer.name, shape, first, second, outputs_first(links.modules.get(owner)), layer.normalised)
        )
        if owner in links.modules:
            stays = next((links.whole[one] for one in links.sets(owner, True) if one in links.whole), "")
        else:
            stays = reason or _why_not_traced(model, layer)
        if stays:
            whole.append(Whole(layer.name, stays))
    scales = tuple(Scale(name, ids.outputs) for name, ids in channels.items() if _is_scaling(model.get_submodule(name)))
    return NeuronGroups(tuple(found), channels, count, tuple(whole), scales)


def _is_scaling(module: nn.Module) -> bool:
    return isinstance(module, NormBase) and module.weight is not None


def _why_not_traced(model: nn.Module, layer: Layer) -> str:
    users = [name for name, module in model.named_modules() if _has(module, layer)]
    if len(users) > 1:
        return "several modules share its weight"
    parts = users[0].split(".")
    above = [model.get_submodule(".".join(parts[:count])) for count in range(len(parts) + 1)]
    kind = next((type(one).__name__ for one in above if isinstance(one, OPAQUE)), "")
    if kind:
        return f"{with_article(kind)} keeps all its neurons"
    return f"torch-pruning does not trace {with_article(type(above[-1]).__name__)} here"


def _has(module: nn.Module, layer: Layer) -> bool:
    return any(param is layer.weight for param in module.parameters(recurse=False))


class _Trial:
    """Removes neurons of a copy of the network, and compares the outputs before and after.

    The copy gets random weights. In a new network a neuron without inputs may have zero outputs, or all activations may
    be tiny. The comparison would then miss that another layer reads the neuron.

    Args:
        copied: the copy.
        groups: the groups that could be removed.
        owners: the names of the modules that have the layers' weights.
        example: a batch of inputs.
        forward: (network, inputs) -> outputs.
    """

    def __init__(
        self, copied: nn.Module, groups: NeuronGroups, owners: Mapping[str, str], example: Any, forward: Forward
    ) -> None:
        self.groups, self.owners, self.forward = groups, owners, forward
        generator = Generator().manual_seed(0)
        values = torch.rand(groups.count, generator=generator, dtype=_EXACT)
        # The orders are opposite. The neurons that the test keeps in one order are removed in the other order.
        self.orders = [groups.ranks(values), groups.ranks(-values)]
        _draw_weights(copied, generator)
        self.network, self.example, self.equal = deepcopy(copied).to(_EXACT), tree_map(_exact, example), _EQUAL
        try:
            self._outputs(self.network)
        except Exception:
            self.network, self.example, self.equal = copied, example, _EQUAL_OTHERWISE

    def keep_what_changes(self, links: Links) -> None:
        """Mark sets of channels in `links` that must stay, because the network computes other outputs without them."""
        blocks = links.blocks()
        ends = torch.tensor([len(block) for block in blocks]).cumsum(0).tolist()
        numbers = [range(end - len(block), end) for block, end in zip(blocks, ends, strict=True)]
        if not self._why_not(range(self.groups.count)):
            return
        for block, own in zip(blocks, numbers, strict=True):
            if why := self._why_not(own):
                links.keep(block, why)
        rest = [
            number for block, own in zip(blocks, numbers, strict=True) if block[0] not in links.whole for number in own
        ]
        if why := self._why_not(rest):
            links.keep((one for block in blocks for one in block), why)

    def _why_not(self, numbers: Sequence[int]) -> str:
        """Return why these groups cannot be removed. Return an empty text if they can."""
        for ranks, removable in self.orders:
            own = torch.zeros(len(ranks), dtype=torch.bool)
            own[list(numbers)] = True
            own &= ranks < removable
            half = ranks[own].median() if own.any() else -1
            if why := self._why_not_without(~own | (ranks > half)):
                return why
        return ""

    def _why_not_without(self, alive: Tensor) -> str:
        masked = deepcopy(self.network)
        for layer in self.groups.layers:
            if layer.name in self.owners:
                weight = masked.get_parameter(f"{self.owners[layer.name]}.weight")
                weight.data.mul_(layer.mask(alive, weight))
        expected = self._outputs(masked)
        try:
            remove(masked, self.groups, alive)
            found = self._outputs(masked)
        except Exception as error:
            return f"the network fails without some of this layer's neurons: {_line(error)}"
        alike = len(found) == len(expected) and all(map(self._alike, found, expected))
        return "" if alike else "the network computes other outputs without some of this layer's neurons"

    def _outputs(self, network: nn.Module) -> list[Tensor]:
        with ready(network), torch.no_grad(), torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also seed the GPUs, and fork_rng would not restore their generators.
            torch.default_generator.manual_seed(0)
            outputs = self.forward(network, self.example)
        return [one.detach() for one in tree_leaves(outputs) if isinstance(one, Tensor)]

    def _alike(self, found: Tensor, expected: Tensor) -> bool:
        if found.shape != expected.shape or not expected.is_floating_point():
            return torch.equal(found, expected)
        largest = expected[expected.isfinite()].abs().amax().item() if expected.isfinite().any() else 0.0
        return torch.allclose(found, expected, rtol=0.0, atol=self.equal * largest)


@torch.no_grad()
def _draw_weights(network: nn.Module, generator: Generator) -> None:
    """Give the layers of a network random weights with which activations keep their size, and give all vectors random
    values."""

    def between(x: Tensor, low: float) -> Tensor:
        return (low + torch.rand(x.shape, generator=generator)).to(x)

    for module in network.modules():
        for name, param in module.named_parameters(recurse=False):
            if not param.is_floating_point():
                continue
            if has_weight(module) and name == "weight":
                spread = (2 / param[0].numel()) ** 0.5
                param.copy_(spread * torch.randn(param.shape, generator=generator))
            elif param.numel() == max(param.shape, default=0):
                param.copy_(between(param, -0.5 if name == "bias" else 0.5))
        if isinstance(module, NormBase) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.copy_(between(module.running_mean, -0.5))
            module.running_var.copy_(between(module.running_var, 0.5))


def _exact(x: Any) -> Any:
    return x.to(_EXACT) if isinstance(x, Tensor) and x.is_floating_point() else x


def _line(error: Exception) -> str:
    return f"{error or type(error).__name__}".splitlines()[0]
