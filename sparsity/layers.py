"""Which weights are prunable, and which of them live on the sphere."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

_Prunable = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class Layer:
    """One prunable weight: its name in the network's state_dict, the parameter, and whether it lies on the sphere."""

    name: str
    weight: nn.Parameter
    sphere: bool


def prunable_layers(model: nn.Module, *, sphere: bool = True) -> list[Layer]:
    """The weights of the linear and convolution layers, in the network's order; a shared weight is listed once.

    With `sphere`, all lie on the sphere but the last layer's, whose scale is the logits', and those of convolutions
    with one input channel, whose fan-in is too small to select from (the published choice). Biases and normalisation
    layers are neither prunable nor on the sphere.

    Raises:
        ValueError: if the network has no linear or convolution layer, or one whose weight is computed from others.
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
    if not found:
        raise ValueError("the network has no linear or convolution layer: there is nothing to prune")
    last = found[-1][2]
    return [Layer(name, weight, sphere and m is not last and not _one_channel(m)) for name, weight, m in found]


def _one_channel(module: nn.Module) -> bool:
    return not isinstance(module, nn.Linear) and getattr(module, "in_channels", 0) == 1


def has_normalisation(model: nn.Module) -> bool:
    """Whether any layer normalises its input's scale away, so that the neurons need no gain of their own."""
    kinds = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    return any(isinstance(module, kinds) for module in model.modules())
