"""Find methods by name. A method makes networks sparse: it returns a SparseTraining, the optimizer for a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from torch import Generator, nn

from tune_sparsity.sparsity.layers import PAPER_RULES, LayerRules
from tune_sparsity.sparsity.methods import baselines
from tune_sparsity.sparsity.methods.binary import BinarySettings, binary
from tune_sparsity.sparsity.methods.lpss import LpssSettings, lpss
from tune_sparsity.sparsity.patterns import UNSTRUCTURED
from tune_sparsity.sparsity.training import SparseTraining


@dataclass(frozen=True)
class Method:
    """Describes a method that makes networks sparse.

    Attributes:
        name: the name of the method.
        settings: the dataclass of its settings. The fields are the method's parameters.
        make: the function (network, settings, ...) -> SparseTraining.
        patterned: whether the zeros of the method can have a pattern, such as "2:4".
    """

    name: str
    settings: type[Any]
    make: Callable[..., SparseTraining]
    patterned: bool = False

    def defaults(self) -> dict[str, Any]:
        """Return the default value of each parameter that has a default."""
        return {field.name: field.default for field in fields(self.settings) if field.default is not MISSING}

    def configure(self, params: Mapping[str, Any]) -> Any:
        """Return the settings of the method with the values in `params`. The name "threshold.start" stands for the
        field `start` of the setting `threshold`.

        Raises:
            ValueError: if a parameter is unknown, missing or out of range.
        """
        params = nested(params)
        known = {field.name: field for field in fields(self.settings)}
        unknown = sorted(set(params) - set(known))
        if unknown:
            raise ValueError(f"{self.name} has no parameter {unknown[0]!r}: it takes {', '.join(sorted(known))}")
        for name, field in known.items():
            if field.default is MISSING and name not in params:
                raise ValueError(f"{self.name} needs the parameter {name!r}")
        return self.settings(**params)

    def build(
        self,
        model: nn.Module,
        params: Mapping[str, Any],
        *,
        total_steps: int,
        generator: Generator,
        rules: LayerRules = PAPER_RULES,
        epochs: int | None = None,
        trained: bool = False,
    ) -> SparseTraining:
        """Return the optimizer that trains a network with this method.

        Args:
            model: the network.
            params: a dict from the names of the method's parameters to their values, as for `configure`.
            total_steps: the number of calls of `step()`, at least 1.
            generator: draws random masks, on the CPU.
            rules: rules that select the layers to prune and the layers on the sphere.
            epochs: the number of epochs. If the method has the parameter `knots_for_epochs`, this number is the default
                of that parameter.
            trained: whether the network is pretrained. lpss and gmp then begin with all weights of the network or, if
                `width` < 1, with its most important neurons. static, set, rigl and sparse-momentum begin with its
                largest weights. The argument has no effect on snip, dense and binary.

        Raises:
            ValueError: if a parameter is unknown, missing or out of range, or if the method cannot make the pattern of
                zeros in `rules`.
        """
        if rules.pattern != UNSTRUCTURED and not self.patterned:
            raise ValueError(f"the zeros of {self.name} cannot have the pattern {rules.pattern}")
        if epochs is not None and any(field.name == "knots_for_epochs" for field in fields(self.settings)):
            params = {"knots_for_epochs": epochs, **params}
        settings = self.configure(params)
        return self.make(model, settings, total_steps=total_steps, generator=generator, rules=rules, trained=trained)


def nested(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters whose names have no points: {"threshold.start": 0.2} becomes {"threshold": {"start": 0.2}}.

    Raises:
        ValueError: if a name has both a value and a field, as in {"threshold": 0.2, "threshold.start": 0.2}.
    """
    result = {name: value for name, value in params.items() if "." not in name}
    parts = [(*name.partition("."), value) for name, value in params.items() if "." in name]
    for base, _, part, value in parts:
        if base in params:
            raise ValueError(f"{base} is given both as one value and by its part {part!r}")
        result.setdefault(base, {})[part] = value
    return result


_ALL = (
    Method("lpss", LpssSettings, lpss, patterned=True),
    Method("rigl", baselines.DropGrowSettings, baselines.rigl),
    Method("set", baselines.DropGrowSettings, baselines.set_),
    Method("sparse-momentum", baselines.DropGrowSettings, baselines.sparse_momentum),
    Method("snip", baselines.SnipSettings, baselines.snip),
    Method("static", baselines.StaticSettings, baselines.static),
    Method("gmp", baselines.GmpSettings, baselines.gmp, patterned=True),
    Method("dense", baselines.DenseSettings, baselines.dense),
    Method("binary", BinarySettings, binary),
)
METHODS = {method.name: method for method in _ALL}
