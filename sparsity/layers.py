"""Find the prunable weights of a network, and select those that LpSGD trains on the Lp sphere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tune_sparsity.sparsity.matrices import FanIn, Matrix, Rule, shown, weight_matrices
from tune_sparsity.sparsity.memory import check_memory
from tune_sparsity.sparsity.orientation import STANDARD, Orientation
from tune_sparsity.sparsity.output_layers import called, followers, normalising
from tune_sparsity.sparsity.patterns import UNSTRUCTURED, KnownNeurons, Pattern, pattern_from
from tune_sparsity.sparsity.torch_internals import NormBase


@dataclass(frozen=True)
class Layer:
    """Describes one prunable weight of a network.

    Attributes:
        name: the weight's name in the network's state_dict, without the prefixes of wrappers.
        weight: the parameter.
        sphere: whether LpSGD trains the weight on the Lp sphere (see LpSGD).
        orientation: how the weight is viewed as a matrix (neurons, fan-in).
        normalised: whether a batch or instance normalisation directly follows the layer, so that the scale of a row has
            no effect.
    """

    name: str
    weight: nn.Parameter
    sphere: bool
    orientation: Orientation = STANDARD
    normalised: bool = False

    def turned(self, x: Tensor) -> Tensor:
        """Convert a tensor from the weight's shape to the shape (neurons, fan-in...)."""
        return self.orientation.turned(x)

    def turned_back(self, x: Tensor) -> Tensor:
        """Undo `turned`: convert a tensor back to the weight's shape."""
        return self.orientation.turned_back(x, self.weight.shape)

    def rows(self) -> Tensor:
        """Return the weight as a matrix (neurons, fan-in)."""
        return self.orientation.rows(self.weight.detach())


@dataclass(frozen=True)
class LayerRules:
    """Selects the weight matrices that are pruned, and the weight matrices that LpSGD trains on the Lp sphere (see
    LpSGD).

    A rule is a pattern for the names of weights, such as "features.*", or a class of layers, such as nn.Conv2d.

    Attributes:
        dense: rules for weights that are neither pruned nor on the sphere.
        off_sphere: rules for weights that are pruned but not on the sphere. If None, the choice of the LpSS paper
            (arXiv 2103.16013) applies. Three kinds of layers are then off the sphere: the last layer, because its scale
            is that of the logits; convolutions with one input channel, because their neurons have too few weights to
            choose from; and layers whose neurons have a single weight. Frozen weights are never on the sphere.
        prune: a dict for weights that are not pruned by default, but are to be pruned, as in {"embedding.weight": 1}.
            The key is a rule. The value is the index, or the tuple of indices, of the dimensions of the parameter that
            are the fan-in of its neurons. A frozen weight is only pruned if a rule in `prune` selects it.
        last: the names of the last layer's weights. If None, `prunable_layers` finds the last layer. With an example,
            it calls the network with the example. Without an example, it takes the layer that was registered last.
        normalised: the names of the weights of layers that a batch or instance normalisation directly follows, so that
            the scale of a row has no effect. If None, `prunable_layers` finds these layers. With an example, it calls
            the network with the example. Without an example, it takes the layers directly after which such a
            normalisation was registered.
        pattern: the pattern of the zeros, for methods that have patterns: a Pattern or its text, such as "2:4". Weights
            whose shape does not fit the pattern stay dense.
        neurons: the groups of neurons that can only be removed together, from `neuron_groups`, or None if the groups
            are not known. The groups are required only if the setting `width` of the method is less than 1.

    Raises:
        ValueError: if the text of `pattern` describes no pattern.
    """

    dense: tuple[Rule, ...] = ()
    off_sphere: tuple[Rule, ...] | None = None
    prune: Mapping[Rule, FanIn] = field(default_factory=dict, hash=False)
    last: tuple[str, ...] | None = None
    normalised: tuple[str, ...] | None = None
    pattern: Pattern = UNSTRUCTURED
    neurons: KnownNeurons | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.pattern, str):
            object.__setattr__(self, "pattern", pattern_from(self.pattern))


PAPER_RULES = LayerRules()


def turned_back(layers: Sequence[Layer], masks: Iterable[Tensor]) -> list[Tensor]:
    """Convert masks, one for each layer, from the shapes (neurons, fan-in...) to the shapes of the weights."""
    return [layer.turned_back(mask) for layer, mask in zip(layers, masks, strict=True)]


def has_normalisation(model: nn.Module) -> bool:
    """Return whether the network has a batch, instance, layer, group or RMS normalisation. If it has one, the
    magnitudes of weights in different neurons cannot be compared."""
    kinds = (NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    return any(isinstance(module, kinds) for module in model.modules())


class DeadNeurons(NamedTuple):
    """Counts the dead neurons of a layer: the neurons whose incoming weights are all masked.

    Attributes:
        dead: the number of dead neurons.
        neurons: the number of all neurons in the layer.
    """

    dead: int
    neurons: int


def dead_neurons(layers: Sequence[Layer], masks: Iterable[Tensor]) -> dict[str, DeadNeurons]:
    """Return a dict from names of layers to instances of DeadNeurons. The incoming weights of a dead neuron are all
    masked. Layers without dead neurons are left out.

    Args:
        layers: the prunable layers.
        masks: one mask for each layer, in the shape of the layer's weight.
    """
    found = {}
    for layer, mask in zip(layers, masks, strict=True):
        connected = (layer.turned(mask).flatten(1) != 0).any(1)
        found[layer.name] = DeadNeurons(int((~connected).sum()), len(connected))
    return {name: one for name, one in found.items() if one.dead}


class LeftDense(NamedTuple):
    """Describes a weight matrix that is not pruned.

    Attributes:
        name: the matrix's name in the network's state_dict.
        reason: why the matrix is not pruned.
        size: the number of weights in the matrix.
    """

    name: str
    reason: str
    size: int


def prunable_layers(
    model: nn.Module, rules: LayerRules = PAPER_RULES, *, sphere: bool = True, example: Any = None
) -> list[Layer]:
    """Return the prunable weights of linear, convolution, attention and recurrent layers, in the network's order.

    A shared weight is listed once. Biases and normalisation layers are neither prunable nor on the sphere. Weight
    matrices that are frozen or computed from other parameters are left out, except if a rule in `rules.prune` selects
    them. The function `left_dense` lists the matrices that are left out.

    Args:
        model: the network.
        rules: rules that select the weights to prune and the weights on the Lp sphere (see LpSGD).
        sphere: whether weights may lie on the sphere. If False, `Layer.sphere` is False for all layers.
        example: a batch of inputs, for one call of the network. The call shows which layer is last: no other layer lies
            between it and the outputs. If None, the last layer is the layer that was registered last.

    Raises:
        ValueError: if there is no layer to prune, if a rule fits no weight, if two values of a weight share memory, if
            a weight shares memory with another tensor, or if the network is TorchScript.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("the network is TorchScript, whose layers cannot be seen: give the nn.Module it was made from")
    if example is not None:
        rules = with_last_layer(rules, model, example)
    found = weight_matrices(model, rules.prune)
    for rule in (*rules.dense, *(rules.off_sphere or ())):
        if not any(one.fits(rule) for one in found):
            known = ", ".join(f"{one.name} ({type(one.module).__name__})" for one in found)
            raise ValueError(f"no weight fits the rule {shown(rule)!r}: the weights are {known}")
    kept = [one for one in found if not _why_dense(one, rules)]
    if not kept:
        dense = "; ".join(f"{one.name} stays dense, {_why_dense(one, rules)}" for one in found[:3])
        raise ValueError(
            "there is nothing to prune: the network has no linear layer, convolution or other weight matrix that can "
            f"be pruned{dense and f' ({dense})'}"
        )
    check_memory(model, {one.name: one.params[0] for one in kept})
    last, normalised = _last(found, rules), _normalised(model, found, rules)
    return [
        Layer(
            one.name,
            one.params[0],
            sphere and not _off_sphere(one, rules, last),
            one.orientation or STANDARD,
            one.name in normalised,
        )
        for one in kept
    ]


def left_dense(model: nn.Module, rules: LayerRules = PAPER_RULES) -> list[LeftDense]:
    """Return the weight matrices that are not pruned, each with the reason and with its number of weights."""
    reasons = [(one, _why_dense(one, rules)) for one in weight_matrices(model, rules.prune)]
    return [LeftDense(one.name, reason, one.size) for one, reason in reasons if reason]


@dataclass(frozen=True)
class NetworkSize:
    """Counts the prunable and other parameters of a network.

    Attributes:
        layers: the number of prunable weight matrices.
        prunable: the number of weights in them.
        dense: descriptions of the weight matrices that stay dense.
        parameters: the number of all values in parameters, trained or frozen.
        pattern: the pattern of the zeros.
    """

    layers: int
    prunable: int
    dense: tuple[LeftDense, ...]
    parameters: int
    pattern: Pattern = UNSTRUCTURED

    @property
    def matrices(self) -> int:
        """Return the number of weights in all weight matrices."""
        return self.prunable + sum(one.size for one in self.dense)

    def sparsity_matrices(self, nonzero: int) -> float:
        """Return the number of zeros in prunable weights, divided by the number of weights in all weight matrices.

        Args:
            nonzero: the number of prunable weights that are not zero.
        """
        return (self.prunable - nonzero) / self.matrices

    def share(self, one: LeftDense) -> float:
        """Return the number of a matrix's weights, divided by the number of weights in all weight matrices."""
        return one.size / self.matrices

    def dense_text(self, most: int = 3) -> str:
        """Return a text that names the largest dense weight matrices with their shares and reasons, or "" if there are
        none.

        Args:
            most: at most so many matrices are named.
        """
        largest = sorted(self.dense, key=lambda one: -one.size)
        named = ", ".join(f"{one.name} {self.share(one):.1%} ({one.reason})" for one in largest[:most])
        return named + (f" and {len(largest) - most} more" if len(largest) > most else "")


def network_size(model: nn.Module, rules: LayerRules = PAPER_RULES) -> NetworkSize:
    """Return the numbers of prunable and other parameters. The function raises the errors of `prunable_layers`."""
    layers = prunable_layers(model, rules, sphere=False)
    prunable = sum(layer.weight.numel() for layer in layers)
    parameters = sum(param.numel() for param in model.parameters())
    return NetworkSize(len(layers), prunable, tuple(left_dense(model, rules)), parameters, rules.pattern)


def with_last_layer(
    rules: LayerRules,
    model: nn.Module,
    example: Any,
    forward: Callable[[nn.Module, Any], Any] = called,
    norms: Sequence[NormBase] | None = None,
) -> LayerRules:
    """Return a copy of the rules. If `last` or `normalised` is None in `rules`, a call of the network determines its
    value for the copy. `last` stays None if `off_sphere` is not None, because `last` then has no effect. The other
    arguments have the same meaning as in the function `followers`."""
    known = rules.last is not None or rules.off_sphere is not None
    if known and rules.normalised is not None:
        return rules
    layers = [one for one in weight_matrices(model, rules.prune) if one.orientation is not None]
    if not known and len(layers) < 2:  # no need to call the network
        return replace(rules, last=tuple(one.name for one in layers) or None)
    found = followers(model, layers, example, forward, norms)
    normalised = rules.normalised
    if normalised is None and found.last:  # an empty `last` means that autograd had no graph
        normalised = found.normalised
    return replace(rules, last=rules.last if known else found.last or None, normalised=normalised)


def _why_dense(one: Matrix, rules: LayerRules) -> str:
    if one.reason or any(one.fits(rule) for rule in rules.dense):
        return one.reason or "by a rule"
    orientation = one.orientation or STANDARD
    return rules.pattern.why_dense(orientation.turned(one.params[0].detach()).shape)


def _last(found: list[Matrix], rules: LayerRules) -> set[str]:
    """Return the names of the last layer's weights."""
    if rules.last is not None:
        return set(rules.last)
    last = next((one.module for one in reversed(found) if one.is_layer), None)
    return {one.name for one in found if one.module is last}


def _normalised(model: nn.Module, found: list[Matrix], rules: LayerRules) -> set[str]:
    """Return the names of the weights whose layer a normalisation follows directly."""
    if rules.normalised is not None:
        return set(rules.normalised)
    leaves = [module for module in model.modules() if not any(True for _ in module.children())]
    after = {id(one): other for one, other in pairwise(leaves)}
    counted = {id(norm): norm for norm in normalising(model)}
    norms = ((one, counted.get(id(after.get(id(one.module))))) for one in found if one.is_layer)
    return {one.name for one, norm in norms if norm is not None and norm.num_features == one.neurons}


def _off_sphere(one: Matrix, rules: LayerRules, last: set[str]) -> bool:
    param, orientation = one.params[0], one.orientation or STANDARD
    if not param.requires_grad:
        return True
    if rules.off_sphere is not None:
        return any(one.fits(rule) for rule in rules.off_sphere)
    one_channel = not isinstance(one.module, nn.Linear) and getattr(one.module, "in_channels", 0) == 1
    return one.name in last or one_channel or orientation.rows(param.detach()).shape[1] == 1
