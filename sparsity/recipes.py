"""The methods by name. A recipe takes a network and typed settings and returns the SparseTraining that trains it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any

from torch import Generator, nn

from sparsity import baselines
from sparsity.layers import PUBLISHED, LayerRules
from sparsity.lp_spherical import LpssSettings, lpss
from sparsity.training import SparseTraining


@dataclass(frozen=True)
class Method:
    """A method by name: what makes a SparseTraining, and the settings it takes."""

    name: str
    settings: type[Any]
    make: Callable[..., SparseTraining]

    def build(
        self,
        model: nn.Module,
        params: dict[str, Any],
        *,
        total_steps: int,
        generator: Generator,
        rules: LayerRules = PUBLISHED,
        epochs: int | None = None,
    ) -> SparseTraining:
        """The SparseTraining for `params`.

        Args:
            rules: which layers are pruned, and lie on the sphere.
            epochs: of the training, for methods that have the parameter `knots_for_epochs` and are not given it.

        Raises:
            ValueError: for an unknown, missing or ill-chosen parameter.
        """
        known = {field.name: field for field in fields(self.settings)}
        unknown = sorted(set(params) - set(known))
        if unknown:
            raise ValueError(f"{self.name} has no parameter {unknown[0]!r}: it takes {', '.join(sorted(known))}")
        for name, field in known.items():
            if field.default is MISSING and name not in params:
                raise ValueError(f"{self.name} needs the parameter {name!r}")
        if epochs is not None and "knots_for_epochs" in known:
            params = {"knots_for_epochs": epochs, **params}
        return self.make(model, self.settings(**params), total_steps=total_steps, generator=generator, rules=rules)


_ALL = (
    Method("lpss", LpssSettings, lpss),
    Method("rigl", baselines.DropGrowSettings, baselines.rigl),
    Method("set", baselines.DropGrowSettings, baselines.set_),
    Method("sparse-momentum", baselines.DropGrowSettings, baselines.sparse_momentum),
    Method("snip", baselines.SnipSettings, baselines.snip),
    Method("static", baselines.StaticSettings, baselines.static),
    Method("gmp", baselines.GmpSettings, baselines.gmp),
    Method("dense", baselines.DenseSettings, baselines.dense),
)
METHODS = {method.name: method for method in _ALL}
