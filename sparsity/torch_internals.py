"""Contain all uses of private names of torch, each with its reason. Other modules use only the private operations
`torch._foreach_*`."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.optim import Optimizer, optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten_with_path, tree_leaves, tree_map

__all__ = [
    "COMPILED",
    "GLOBAL_STEP_HOOKS",
    "BatchNorm",
    "EagerMode",
    "NormBase",
    "TorchDispatchMode",
    "call_eagerly",
    "compiled_network",
    "is_compiled",
    "leave_compiler_out",
    "tree_leaves",
    "tree_map",
    "tree_paths",
]


class EagerMode(TorchDispatchMode):
    """A base class for dispatch modes that do not load torch's compiler. A direct subclass of TorchDispatchMode loads
    the compiler at its first use, which takes a second. Subclasses of EagerMode are never used in compiled code, so
    they do not need the compiler."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


BatchNorm = _BatchNorm
"""The class of all batch normalisations, which has no public name."""
NormBase = _NormBase
"""The class of all batch and instance normalisations."""
GLOBAL_STEP_HOOKS = (optimizer._global_optimizer_pre_hooks, optimizer._global_optimizer_post_hooks)
"""The hooks that torch calls before and after the steps of all optimizers. While there are such hooks, steps are not
recorded as a CUDA graph."""

COMPILED = "_orig_mod"
"""The attribute that contains the original network, in the module that torch.compile returns."""


def compiled_network(module: Any) -> nn.Module | None:
    """Return the network inside the module that torch.compile returns, or None for any other module. The function looks
    for the attribute COMPILED, because an import of the module's class would load the compiler."""
    return dict(module.named_children()).get(COMPILED) if isinstance(module, nn.Module) else None


def is_compiled(model: nn.Module) -> bool:
    """Return whether torch.compile was applied to the network or to a part of it."""
    return any(
        compiled_network(module) is not None or module._compiled_call_impl is not None for module in model.modules()
    )


def call_eagerly(module: nn.Module) -> None:
    """Undo `module.compile()`. torch has no public function for it."""
    if module._compiled_call_impl is not None:
        module._compiled_call_impl = None


def tree_paths(nest: Any) -> list[tuple[tuple[str, ...], Any]]:
    """Return the leaves of nested dicts, tuples and lists as pairs (path, leaf). A path contains the keys and indices
    that lead to the leaf, as texts."""
    leaves, _ = tree_flatten_with_path(nest)
    return [(tuple(str(getattr(key, "key", getattr(key, "idx", key))) for key in path), leaf) for path, leaf in leaves]


def leave_compiler_out() -> None:
    """Keep torch from loading its compiler, which takes two seconds, at the first call of an optimizer's method.

    torch loads the compiler only to exclude the called method from compilation. This package never compiles an
    optimizer's step. Users can compile their own code as before.
    """
    for method in vars(Optimizer).values():
        function = getattr(method, "__wrapped__", None)
        if function is not None:
            function.__dict__.setdefault("__dynamo_disable", function)  # torch._disable_dynamo reads this attribute
