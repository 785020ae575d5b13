"""Which weights are prunable, and which of them live on the sphere."""

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
from tune_sparsity.sparsity.patterns import UNSTRUCTURED, Pattern, pattern_from
from tune_sparsity.sparsity.torch_internals import NormBase


@dataclass(frozen=True)
class Layer:
    """One prunable weight: its name in the network's state_dict, without the prefixes of wrappers, the parameter,
    whether it lies on the sphere, how it is seen as a matrix (neurons, fan-in), and whether a normalisation takes away
    the scale of its rows."""

    name: str
    weight: nn.Parameter
    sphere: bool
    orientation: Orientation = STANDARD
    normalised: bool = False

    def turned(self, x: Tensor) -> Tensor:
        """Return a tensor of the weight's shape as (neurons, fan-in...)."""
        return self.orientation.turned(x)

    def turned_back(self, x: Tensor) -> Tensor:
        """Return in the weight's shape what `turned` made of it."""
        return self.orientation.turned_back(x, self.weight.shape)

    def rows(self) -> Tensor:
        """Return the weight as a matrix (neurons, fan-in)."""
        return self.orientation.rows(self.weight.detach())


@dataclass(frozen=True)
class LayerRules:
    """Which of a network's weight matrices are pruned, and which of those lie on the sphere.

    Attributes:
        dense: rules for weights that are not pruned, nor on the sphere.
        off_sphere: rules for weights that are pruned but not on the sphere. None is the published choice: the last
            layer's, whose scale is the logits', and those of convolutions with one input channel, whose fan-in is too
            small to select from. So are neurons with one weight, and frozen weights that `prune` names.
        prune: rules for what is pruned beside the layers of known kinds, each with the dimensions of the parameter that
            are its neurons' fan-in: {"embedding.weight": 1}. Also frozen weights, which are left alone otherwise.
        last: the names of the last layer's weights. None for those of the layer that was registered last;
            `prunable_layers` finds them where it is given an example.
        normalised: the names of weights whose rows have a scale that does not count, because a batch or instance
            normalisation follows directly. None for those of layers behind which one was registered;
            `prunable_layers` finds them where it is given an example.
        pattern: of the zeros, for methods that have patterns: a Pattern, or its text, such as "2:4". Weights of a shape
            that cannot have it stay dense.

    Raises:
        ValueError: if the text names no pattern.
    """

    dense: tuple[Rule, ...] = ()
    off_sphere: tuple[Rule, ...] | None = None
    prune: Mapping[Rule, FanIn] = field(default_factory=dict, hash=False)
    last: tuple[str, ...] | None = None
    normalised: tuple[str, ...] | None = None
    pattern: Pattern = UNSTRUCTURED

    def __post_init__(self) -> None:
        if isinstance(self.pattern, str):
            object.__setattr__(self, "pattern", pattern_from(self.pattern))


PAPER_RULES = LayerRules()


def turned_back(layers: Sequence[Layer], masks: Iterable[Tensor]) -> list[Tensor]:
    """Return masks of the shapes (neurons, fan-in...), one a layer, in the weights' shapes."""
    return [layer.turned_back(mask) for layer, mask in zip(layers, masks, strict=True)]


def has_normalisation(model: nn.Module) -> bool:
    """Return whether any layer normalises its input's scale away, so that magnitudes of neurons do not compare."""
    kinds = (NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    return any(isinstance(module, kinds) for module in model.modules())


class DeadNeurons(NamedTuple):
    """How many of a layer's neurons have no connection left.

    Attributes:
        dead: their number.
        neurons: the number of all the layer's neurons.
    """

    dead: int
    neurons: int


def dead_neurons(layers: Sequence[Layer], masks: Iterable[Tensor]) -> dict[str, DeadNeurons]:
    """Return the layers that have neurons without any connection, by name.

    Args:
        masks: one a layer, in the weights' shapes.
    """
    found = {}
    for layer, mask in zip(layers, masks, strict=True):
        connected = (layer.turned(mask).flatten(1) != 0).any(1)
        found[layer.name] = DeadNeurons(int((~connected).sum()), len(connected))
    return {name: one for name, one in found.items() if one.dead}


class LeftDense(NamedTuple):
    """A weight matrix that is not pruned."""

    name: str
    reason: str
    size: int


def prunable_layers(
    model: nn.Module, rules: LayerRules = PAPER_RULES, *, sphere: bool = True, example: Any = None
) -> list[Layer]:
    """Return the weights of linear, convolution, attention and recurrent layers, in the network's order; a shared
    weight is listed once.

    Biases and normalisation layers are neither prunable nor on the sphere. Weights that are frozen, or computed from
    other parameters, are left out (`left_dense` names them).

    Args:
        rules: the exceptions.
        sphere: whether any of them lies on the sphere at all.
        example: a batch of inputs, as the network takes them. The last layer is then the one that no other layer
            follows on the way to the outputs, else the one that was registered last.

    Raises:
        ValueError: if no layer is left to prune, if a rule fits none, if a weight shares its memory, or if the network
            is TorchScript.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("the network is TorchScript, whose layers cannot be seen: give the nn.Module it was made from")
    if example is not None:
        rules = with_last_layer(rules, model, example)
    found = weight_matrices(model, rules.prune)
    for rule in (*rules.dense, *(rules.off_sphere or ())):
        if not any(one.fits(rule) for one in found):
            known = ", ".join(f"{one.name} ({type(one.module).__name__})" for one in found)
            raise ValueError(f"no weight fits {shown(rule)!r}: there are {known}")
    kept = [one for one in found if not _why_dense(one, rules)]
    if not kept:
        dense = "; ".join(f"{one.name} stays dense, {_why_dense(one, rules)}" for one in found[:3])
        raise ValueError(
            "the network has no linear or convolution layer, nor another weight matrix, that can be pruned: "
            f"there is nothing to prune{dense and f' ({dense})'}"
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
    """Return the weight matrices that are not pruned, with the reason and the number of weights of each."""
    reasons = [(one, _why_dense(one, rules)) for one in weight_matrices(model, rules.prune)]
    return [LeftDense(one.name, reason, one.size) for one, reason in reasons if reason]


@dataclass(frozen=True)
class NetworkSize:
    """How many of a network's parameters can be pruned.

    Attributes:
        layers: prunable weights, as tensors.
        prunable: their numbers.
        dense: the weight matrices that stay dense.
        parameters: all of the network's numbers that are trained or frozen.
        pattern: of the zeros.
    """

    layers: int
    prunable: int
    dense: tuple[LeftDense, ...]
    parameters: int
    pattern: Pattern = UNSTRUCTURED

    @property
    def matrices(self) -> int:
        """Return the numbers of all weight matrices."""
        return self.prunable + sum(one.size for one in self.dense)

    def sparsity_matrices(self, nonzero: int) -> float:
        """Return the fraction of zeros over all weight matrices, if so many of the prunable weights are not zero."""
        return (self.prunable - nonzero) / self.matrices

    def share(self, one: LeftDense) -> float:
        """Return the part of all matrix weights that a matrix has."""
        return one.size / self.matrices

    def dense_text(self, most: int = 3) -> str:
        """Name the largest weight matrices that stay dense, with their shares and the reasons; nothing without any.

        Args:
            most: how many are named.
        """
        largest = sorted(self.dense, key=lambda one: -one.size)
        named = ", ".join(f"{one.name} {self.share(one):.1%} ({one.reason})" for one in largest[:most])
        return named + (f" and {len(largest) - most} more" if len(largest) > most else "")


def network_size(model: nn.Module, rules: LayerRules = PAPER_RULES) -> NetworkSize:
    """Return how many of the network's parameters can be pruned. Raises what `prunable_layers` does."""
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
    """Return the rules with the names of the last layer's weights, and of those that are normalised, where they are
    asked for and an example tells them. The arguments are those of `followers`."""
    known = rules.last is not None or rules.off_sphere is not None
    if known and rules.normalised is not None:
        return rules
    layers = [one for one in weight_matrices(model, rules.prune) if one.orientation is not None]
    if not known and len(layers) < 2:  # then there is nothing to ask the network
        return replace(rules, last=tuple(one.name for one in layers) or None)
    found = followers(model, layers, example, forward, norms)
    normalised = rules.normalised
    if normalised is None and found.last:  # else there is no graph
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
    """Return the names of the weights whose rows a normalisation follows."""
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
