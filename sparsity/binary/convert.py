"""Convert an ordinary network into a binary one in place. Each layer is replaced together with the modules that follow
it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tune_sparsity.sparsity.binary.blocks import BinaryBlock
from tune_sparsity.sparsity.binary.inference import SignLayer
from tune_sparsity.sparsity.binary.products import ConvolutionProduct, LinearProduct, Product
from tune_sparsity.sparsity.torch_internals import BatchNorm

ACTIVATIONS = ("binary", "real")
_REPLACED = (BatchNorm, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Dropout)
_KEPT = (nn.Flatten, nn.Unflatten, nn.Identity)


class Place(NamedTuple):
    """Describes a module without children, and its position in the network: the module is the child of `parent` with
    the name `key`. `name` is its full name in the network."""

    parent: nn.Module
    key: str
    module: nn.Module
    name: str


class _Group(NamedTuple):
    """A layer, and the pooling between it and the next layer."""

    layer: Place
    pool: tuple[int, int]


def make_binary(model: nn.Module, activations: str = "binary") -> list[BinaryBlock]:
    """Replace a network's layers by binary blocks in place, and return the blocks. A block includes the normalisation,
    activation, dropout and pooling that follow its layer.

    Args:
        model: an nn.Sequential of layers. Its children may also be nn.Sequential.
        activations: "binary" or "real". With "real", only the weights are binary, and a ReLU follows each layer except
            the last.

    Raises:
        ValueError: if a module has no binary form. The message is one line about the first such module, and the network
            is unchanged.
    """
    groups = _groups(list(places(model)))
    if not groups:
        raise ValueError("the network has no linear layer or convolution that can be binary")
    blocks = list[BinaryBlock]()
    between = "sign" if activations == "binary" else "relu"
    for group in groups:
        product = _product(group, first=not blocks or activations == "real")
        kind = "none" if group is groups[-1] else between
        before = blocks[-1] if blocks else None
        blocks.append(BinaryBlock(group.layer.module.weight, product, kind, before))  # type: ignore[arg-type]
    for place in list(places(model)):
        if isinstance(place.module, (*_REPLACED, nn.MaxPool2d)):
            setattr(place.parent, place.key, nn.Identity())
    for group, block in zip(groups, blocks, strict=True):
        setattr(group.layer.parent, group.layer.key, block)
    return blocks


def fold(model: nn.Module) -> list[tuple[str, SignLayer]]:
    """Replace a network's binary blocks in place by layers for inference. Return these layers with their names."""
    found = []
    for place in list(places(model)):
        if isinstance(place.module, BinaryBlock):
            layer = place.module.folded().train(place.module.training)
            setattr(place.parent, place.key, layer)
            found.append((place.name, layer))
    return found


def as_stored(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Prepare a new network, in place, for `load_state_dict(tensors)`. If the tensors come from a binary network after
    `fold`, the function calls `make_binary` and `fold` for the new network. Otherwise it does nothing."""
    own = model.state_dict()
    if not any(
        name in own and own[name].is_floating_point() and one.dtype == torch.int8 for name, one in tensors.items()
    ):
        return
    make_binary(model, "binary" if any(name.endswith(".threshold") for name in tensors) else "real")
    fold(model)


def places(module: nn.Module, name: str = "") -> Iterator[Place]:
    """Yield the modules without children, in the order in which the network applies them. Raise ValueError if a module
    with children is not an nn.Sequential."""
    if not isinstance(module, nn.Sequential):
        raise ValueError(
            "the method binary needs an nn.Sequential of layers, "
            f"but {name or 'the network'} is a {type(module).__name__}"
        )
    for key, child in module.named_children():
        inner = f"{name}.{key}" if name else key
        if next(child.children(), None) is None:
            yield Place(module, key, child, inner)
        else:
            yield from places(child, inner)


def _groups(found: list[Place]) -> list[_Group]:
    groups = list[_Group]()
    for place in found:
        module = place.module
        if isinstance(module, nn.Linear | nn.Conv2d):
            groups.append(_Group(place, (1, 1)))
        elif isinstance(module, nn.MaxPool2d) and groups and groups[-1].pool == (1, 1):
            groups[-1] = groups[-1]._replace(pool=_window(place))
        elif not isinstance(module, _KEPT) and not (groups and isinstance(module, _REPLACED)):
            raise _no_form(place)
    return groups


def _window(place: Place) -> tuple[int, int]:
    module = place.module
    assert isinstance(module, nn.MaxPool2d)
    size = _pair(module.kernel_size)
    plain = _pair(module.padding) == (0, 0) and _pair(module.dilation) == (1, 1) and not module.ceil_mode
    if _pair(module.stride) != size or not plain:
        raise _no_form(
            place,
            ": its stride must equal its kernel_size, and padding, dilation and ceil_mode must have their defaults",
        )
    return size


def _product(group: _Group, *, first: bool) -> Product:
    layer = group.layer.module
    if isinstance(layer, nn.Linear):
        if group.pool != (1, 1):
            raise _no_form(group.layer, " before a pooling")
        return LinearProduct()
    assert isinstance(layer, nn.Conv2d)
    if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise _no_form(group.layer, ": it must have groups=1, padding_mode='zeros' and a padding in numbers")
    fill = 0.0 if first else -1.0
    return ConvolutionProduct(_pair(layer.stride), _pair(layer.padding), _pair(layer.dilation), fill, group.pool)


def _no_form(place: Place, why: str = "") -> ValueError:
    return ValueError(f"{place.name} ({type(place.module).__name__}) has no binary form{why}")


def _pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
