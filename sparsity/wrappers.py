"""Remove wrappers of networks, such as torch.compile and DataParallel, and the prefixes that they add to the names of
tensors. A plain name is a name without these prefixes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from tune_sparsity.sparsity.torch_internals import COMPILED, call_eagerly, compiled_network

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_HELD = "module"  # the attribute in which these classes, and users' own wrappers, hold a network


def plain_name(model: nn.Module, name: str) -> str:
    """Return the name of a network's module or tensor without the prefixes of wrappers, such as "0.weight" for
    "_orig_mod.0.weight" under torch.compile.

    Wrappers come from torch.compile, nn.DataParallel and DistributedDataParallel. A module around the whole network is
    also a wrapper if it contains only one module, under the name "module", and no own parameters or buffers.
    """
    module: Any = model
    kept: list[str] = []
    for part in name.split("."):
        if part != _held(module, outermost=not kept):
            kept.append(part)
        module = getattr(module, part, None)
    return ".".join(kept)


def _held(module: Any, *, outermost: bool) -> str:
    """Return the name of the attribute in which a wrapper stores its network, or "" for any other module."""
    if compiled_network(module) is not None:
        return COMPILED
    if isinstance(module, _PARALLEL) or (outermost and _holds_one_alone(module)):
        return _HELD
    return ""


def _holds_one_alone(module: Any) -> bool:
    if not isinstance(module, nn.Module) or [name for name, _ in module.named_children()] != [_HELD]:
        return False
    return not [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def plain_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the names and parameters of `named_parameters`, with plain names."""
    for name, param in model.named_parameters():
        yield plain_name(model, name), param


def plain_state(model: nn.Module) -> dict[str, Any]:
    """Return the state_dict with plain names. The network can load this state_dict after its wrappers are removed."""
    return {plain_name(model, name): tensor for name, tensor in model.state_dict().items()}


def as_plain(model: nn.Module, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dict with the same tensors under plain names, as in `plain_state`. The given names may have prefixes of
    wrappers, as in files of earlier versions of this package. A tensor that the network does not have keeps its
    given name."""
    plain = plain_state(model)
    bare = {_bare(name): name for name in plain}
    return {name if name in plain else bare.get(_bare(name), name): tensor for name, tensor in tensors.items()}


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in (COMPILED, _HELD))


def load_plain(model: nn.Module, tensors: Mapping[str, Any]) -> None:
    """Load a state_dict whose names are plain or have prefixes of wrappers. The function raises the errors of the
    network's `load_state_dict`."""
    own = {plain_name(model, name): name for name in model.state_dict()}
    model.load_state_dict({own.get(name, name): tensor for name, tensor in as_plain(model, tensors).items()})


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network without the wrappers of torch.compile and DataParallel, and remove these wrappers inside the
    network, in place. Wrappers of other classes stay, because they may compute something."""
    model = _replaced(model, compiled=True)
    for module in model.modules():
        call_eagerly(module)
    return model


def on_one_device(model: nn.Module) -> nn.Module:
    """Return the network without DataParallel, because DataParallel would use all GPUs and a training uses one
    device."""
    return _replaced(model, compiled=False)


def _replaced(model: nn.Module, *, compiled: bool) -> nn.Module:
    """Return the network with each wrapper replaced by the network inside it.

    Args:
        compiled: whether to replace the wrappers of torch.compile, too.
    """
    model = _inner(model, compiled)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if compiled_network(module) is None and (inner := _inner(child, compiled)) is not child:
                setattr(module, name, inner)
    return model


def _inner(module: nn.Module, compiled: bool) -> nn.Module:
    held = module.module if isinstance(module, _PARALLEL) else compiled_network(module) if compiled else None
    return module if held is None else _inner(held, compiled)
