"""Which weights are prunable, and which of them live on the sphere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

_Prunable = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class Layer:
    """One prunable weight: its name in the network's state_dict, the parameter, and whether it lies on the sphere."""

    name: str
    weight: nn.Parameter
    sphere: bool


def prunable_layers(
    model: nn.Module, *, sphere: bool = True, dense: Sequence[str] = (), off_sphere: Sequence[str] | None = None
) -> list[Layer]:
    """The weights of the linear and convolution layers, in the network's order; a shared weight is listed once.

    Biases and normalisation layers are neither prunable nor on the sphere.

    Args:
        sphere: whether any of them lies on the sphere at all.
        dense: patterns (as for file names, e.g. "features.*") of weights that are not pruned, nor on the sphere.
        off_sphere: patterns of weights that are pruned but not on the sphere. By default the published choice: the
            last layer's, whose scale is the logits', and those of convolutions with one input channel, whose fan-in
            is too small to select from.

    Raises:
        ValueError: if no layer is left to prune, if a pattern fits none, or if a weight is computed from others.
    """
    seen: set[int] = set()
    found: list[tuple[str, nn.Parameter, nn.Module]] = []
    for prefix, module in model.named_modules():
        if not isinstance(module, _Prunable) or id(module.weight) in seen:
            continue
        name = f"{prefix}.weight" if prefix else "weight"
        if not isinstance(module.weight, nn.Parameter):
            raise ValueError(f"{name} is computed from other parameters (a parametrization): it cannot be pruned")
        seen.add(id(module.weight))
        found.append((name, module.weight, module))
    for pattern in (*dense, *(off_sphere or ())):
        if not any(fnmatchcase(name, pattern) for name, _, _ in found):
            raise ValueError(f"no weight fits {pattern!r}: there are {', '.join(name for name, _, _ in found)}")
    kept = [one for one in found if not _fits(one[0], dense)]
    if not kept:
        raise ValueError("the network has no linear or convolution layer: there is nothing to prune")
    last = found[-1][2]

    def off(name: str, module: nn.Module) -> bool:
        return _fits(name, off_sphere) if off_sphere is not None else module is last or _one_channel(module)

    return [Layer(name, weight, sphere and not off(name, module)) for name, weight, module in kept]


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _one_channel(module: nn.Module) -> bool:
    return not isinstance(module, nn.Linear) and getattr(module, "in_channels", 0) == 1


def has_normalisation(model: nn.Module) -> bool:
    """Whether any layer normalises its input's scale away, so that the neurons need no gain of their own."""
    kinds = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    return any(isinstance(module, kinds) for module in model.modules())
