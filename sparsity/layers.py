"""Which weights are prunable, and which of them live on the sphere."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from tune_sparsity.sparsity.torch_internals import NormBase

_Prunable = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class Layer:
    """One prunable weight: its name in the network's state_dict, the parameter, and whether it lies on the sphere."""

    name: str
    weight: nn.Parameter
    sphere: bool


Rule = str | type[nn.Module]
"""Which layers: a pattern, as for file names, of the weight's name ("features.*"), or a kind of layer (nn.Conv2d)."""


@dataclass(frozen=True)
class LayerRules:
    """Which of a network's linear and convolution layers are pruned, and which of those lie on the sphere.

    Attributes:
        dense: rules for weights that are not pruned, nor on the sphere.
        off_sphere: rules for weights that are pruned but not on the sphere. None is the published choice: the last
            layer's, whose scale is the logits', and those of convolutions with one input channel, whose fan-in is too
            small to select from.
    """

    dense: tuple[Rule, ...] = ()
    off_sphere: tuple[Rule, ...] | None = None


PAPER_RULES = LayerRules()


def prunable_layers(model: nn.Module, rules: LayerRules = PAPER_RULES, *, sphere: bool = True) -> list[Layer]:
    """The weights of the linear and convolution layers, in the network's order; a shared weight is listed once.

    Biases and normalisation layers are neither prunable nor on the sphere.

    Args:
        rules: the exceptions.
        sphere: whether any of them lies on the sphere at all.

    Raises:
        ValueError: if no layer is left to prune, if a rule fits none, or if a weight is computed from others.
    """
    found = _candidates(model)
    for rule in (*rules.dense, *(rules.off_sphere or ())):
        if not any(_fits(name, module, rule) for name, _, module in found):
            known = ", ".join(f"{name} ({type(module).__name__})" for name, _, module in found)
            raise ValueError(f"no weight fits {rule if isinstance(rule, str) else rule.__name__!r}: there are {known}")
    kept = [one for one in found if not any(_fits(one[0], one[2], rule) for rule in rules.dense)]
    if not kept:
        raise ValueError("the network has no linear or convolution layer: there is nothing to prune")
    last = found[-1][2]

    def off(name: str, module: nn.Module) -> bool:
        if rules.off_sphere is None:
            return module is last or _one_channel(module)
        return any(_fits(name, module, rule) for rule in rules.off_sphere)

    return [Layer(name, weight, sphere and not off(name, module)) for name, weight, module in kept]


def _candidates(model: nn.Module) -> list[tuple[str, nn.Parameter, _Prunable]]:
    """The layers that have a weight to prune, under the weight's name."""
    seen: set[int] = set()
    found: list[tuple[str, nn.Parameter, _Prunable]] = []
    for prefix, module in model.named_modules():
        if not isinstance(module, _Prunable) or id(module.weight) in seen:
            continue
        name = f"{prefix}.weight" if prefix else "weight"
        if not isinstance(module.weight, nn.Parameter):
            raise ValueError(f"{name} is computed from other parameters (a parametrization): it cannot be pruned")
        seen.add(id(module.weight))
        found.append((name, module.weight, module))
    return found


def _fits(name: str, module: nn.Module, rule: Rule) -> bool:
    return fnmatchcase(name, rule) if isinstance(rule, str) else isinstance(module, rule)


def _one_channel(module: nn.Module) -> bool:
    return not isinstance(module, nn.Linear) and getattr(module, "in_channels", 0) == 1


def has_normalisation(model: nn.Module) -> bool:
    """Whether any layer normalises its input's scale away, so that the neurons need no gain of their own."""
    kinds = (NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    return any(isinstance(module, kinds) for module in model.modules())
