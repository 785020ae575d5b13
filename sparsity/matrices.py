"""Find the weight matrices of a network, their orientations, and the reasons why some of them stay dense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from tune_sparsity.sparsity.orientation import STANDARD, Orientation, oriented
from tune_sparsity.sparsity.wrappers import plain_name

Rule = str | type[nn.Module]
"""A rule that selects weights: a pattern for their names with the wildcards of fnmatch, such as "features.*", or the
class of their layer, such as nn.Conv2d."""

FanIn = int | tuple[int, ...]
"""The dimensions of a parameter that are the fan-in of its neurons: one index, or a tuple of indices."""

_STANDARD = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Bilinear)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Matrix:
    """Describes a weight matrix of a network.

    Attributes:
        name: the matrix's name in the network's state_dict, without the prefixes of wrappers. If the layer computes the
            matrix from other parameters, the name contains the attribute of the layer that holds the result.
        module: the module that contains the matrix.
        params: the matrix itself, or, if the layer computes the matrix (as with torch's parametrizations), all
            parameters from which it is computed. A parameter that a rule selects comes first.
        orientation: which dimensions are the fan-in, or None if neither the layer's class nor a rule determines them.
        is_layer: whether the matrix is the weight of a layer whose class is known.
        reason: why the matrix is not pruned unless a rule selects it (see `LayerRules.prune`). The reason is empty if
            the matrix is prunable.
    """

    name: str
    module: nn.Module
    params: tuple[nn.Parameter, ...]
    orientation: Orientation | None
    is_layer: bool
    reason: str = ""

    @property
    def size(self) -> int:
        """Return the number of weights."""
        return max(param.numel() for param in self.params)

    @property
    def neurons(self) -> int:
        """Return the number of neurons."""
        return len((self.orientation or STANDARD).rows(self.params[0].detach()))

    def better_known(self, other: Matrix) -> bool:
        """Return whether this object describes a parameter more completely than `other`. An object with an orientation
        is more complete. If both or none have an orientation, an object without a `reason` is more complete."""
        return (self.orientation is not None, not self.reason) > (other.orientation is not None, not other.reason)

    def fits(self, rule: Rule) -> bool:
        return fnmatchcase(self.name, rule) if isinstance(rule, str) else isinstance(self.module, rule)


def weight_matrices(model: nn.Module, prune: Mapping[Rule, FanIn]) -> list[Matrix]:
    """Return all weight matrices of a network, in the network's order: the weights of layers, and all other parameters
    with at least two dimensions larger than 1. A shared matrix is listed once.

    Args:
        prune: a dict from rules to fan-in dimensions, as in `LayerRules`.

    Raises:
        ValueError: if a rule of `prune` fits no parameter, or has a dimension that its parameter does not have.
    """
    found: dict[int, Matrix] = {}
    used: set[Rule] = set()
    computed: dict[int, Matrix] = {}  # id of a source parameter -> the computed matrix
    for wrapped, module in model.named_modules():
        prefix = plain_name(model, wrapped)
        own = {name: param for name, param in module.named_parameters(recurse=False) if _numbers(prefix, name, param)}
        known = _weights_of(module)
        for name, orientation in known.items():
            if name not in own and (sources := _sources(module, name, own)):
                reason = _why_computed(module, name)
                one = Matrix(_joined(prefix, name), module, sources, orientation, True, reason)
                found[id(sources[0])] = one
                computed |= {id(source): one for source in sources}
        for name, param in own.items():
            one = Matrix(_joined(prefix, name), module, (param,), known.get(name), name in known)
            one, rule = _asked(one, prune)
            if rule is not None:
                used.add(rule)
                if (whole := computed.get(id(param))) is not None:
                    found.pop(id(whole.params[0]), None)
                    others = (other for other in whole.params if other is not param)
                    one = replace(one, params=(param, *others), is_layer=True)
            elif name not in known and (id(param) in computed or not _is_matrix(param)):
                continue
            earlier = found.get(id(param))
            if earlier is None or one.better_known(earlier):
                found.pop(id(param), None)
                found[id(param)] = one
    for rule in prune:
        if rule not in used:
            names = ", ".join(one.name for one in found.values())
            raise ValueError(
                f"prune: no parameter of 2 or more dimensions fits {shown(rule)!r}: the matrices are {names}"
            )
    return list(found.values())


def shown(rule: Rule) -> str:
    return rule if isinstance(rule, str) else rule.__name__


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _numbers(prefix: str, name: str, param: nn.Parameter) -> int:
    """Return the number of elements of a parameter. Raise ValueError if its shape is not known yet."""
    if isinstance(param, UninitializedParameter):
        raise ValueError(
            f"{_joined(prefix, name)} belongs to a lazy layer, which has no weights yet: give the layer its sizes, or "
            "call the network once before"
        )
    return param.numel()


def _is_matrix(param: Tensor) -> bool:
    return sum(size > 1 for size in param.shape) >= 2


def _asked(one: Matrix, prune: Mapping[Rule, FanIn]) -> tuple[Matrix, Rule | None]:
    """Return the matrix with the orientation of the first rule that fits it, and this rule. If no rule fits, return the
    matrix with its reason to stay dense, and None."""
    (param,) = one.params
    for rule, fan_in in prune.items():
        if param.dim() >= 2 and one.fits(rule):
            try:
                orientation = oriented(fan_in, param.dim())
            except ValueError as error:
                raise ValueError(f"prune: {one.name} has the shape {tuple(param.shape)}: {error}") from None
            return replace(one, orientation=orientation), rule
    return replace(one, reason=_reason(one, param)), None


def _reason(one: Matrix, param: nn.Parameter) -> str:
    if isinstance(one.module, torch.jit.ScriptModule):
        return "in TorchScript"
    if not param.is_floating_point():
        return "not floating-point"
    if not one.is_layer:
        return "an embedding" if isinstance(one.module, nn.Embedding | nn.EmbeddingBag) else "of an unknown layer class"
    return "" if param.requires_grad else "frozen"


def _weights_of(module: nn.Module) -> dict[str, Orientation]:
    """Return the names of a layer's weight matrices, each with its orientation. The result is empty for an unknown
    class."""
    if isinstance(module, _TRANSPOSED):
        return {"weight": Orientation((0, *range(2, 2 + len(module.kernel_size))), module.groups)}
    if isinstance(module, _STANDARD):
        return {"weight": STANDARD}
    if isinstance(module, nn.RNNCellBase):
        return dict.fromkeys(("weight_ih", "weight_hh"), STANDARD)
    if isinstance(module, nn.RNNBase):
        kinds = ("ih", "hh", "hr") if module.proj_size else ("ih", "hh")
        ends = ("", "_reverse") if module.bidirectional else ("",)
        names = (f"weight_{kind}_l{i}{end}" for i in range(module.num_layers) for end in ends for kind in kinds)
        return dict.fromkeys(names, STANDARD)
    if isinstance(module, nn.MultiheadAttention):
        packed = module.kdim == module.vdim == module.embed_dim
        parts = ["in_proj_weight"] if packed else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
        return dict.fromkeys(parts, STANDARD)
    if "Conv1D" in (kind.__name__ for kind in type(module).__mro__) and hasattr(module, "nf"):  # of transformers
        return {"weight": Orientation((0,))}
    return {}


def _why_computed(module: nn.Module, name: str) -> str:
    if isinstance(getattr(module, f"{name}_mask", None), Tensor):
        return "masked by torch.nn.utils.prune, whose remove() makes it an ordinary weight"
    return "computed from other parameters"


def _sources(module: nn.Module, name: str, own: Mapping[str, nn.Parameter]) -> tuple[nn.Parameter, ...]:
    """Return the parameters from which a layer computes its weight. The function does not read the weight, because the
    computation of the weight may change these parameters. torch.nn.utils.weight_norm and other older functions store
    the parameters in the layer, under the name of the weight with a suffix."""
    if parametrize.is_parametrized(module, name):
        parametrizations: nn.ModuleDict = module.parametrizations  # type: ignore[assignment]
        return tuple(parametrizations[name].parameters())
    others = own.keys() - _weights_of(module).keys()
    return tuple(param for other, param in own.items() if other.startswith(f"{name}_") and other in others)
