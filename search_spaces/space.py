"""Search spaces: named parameters with their distributions, conditions and priors, and the points to try first."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution

from search_spaces.priors import Prior, middle
from search_spaces.reader import BadFile
from search_spaces.values import same

_FOLDER = Path(__file__).parent
BUILT_IN = tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


@dataclass(frozen=True)
class Space:
    """A method's search space for one target.

    A schedule's parts are parameters named SCHEDULE.PART, such as threshold.start; the method takes them as one value.

    Attributes:
        name: of the space: a built-in name or the file it was read from.
        method: the method whose parameters it searches.
        distributions: the searched parameters, as Optuna's distributions; those that others depend on come first.
        fixed: parameters with one value.
        first: points to try first, within the distributions and without parameters that do not apply to them.
        near: for each first point the target that it is for, None where it is for any.
        priors: of those searched parameters that have one.
        when: by the name of a parameter that applies only sometimes: the parameters that decide, each with the values
            at which it applies.
    """

    name: str
    method: str
    distributions: dict[str, BaseDistribution]
    fixed: dict[str, Any]
    first: tuple[dict[str, Any], ...]
    priors: dict[str, Prior] = field(default_factory=dict)
    when: dict[str, dict[str, tuple[Any, ...]]] = field(default_factory=dict)
    near: tuple[float | None, ...] = ()

    def applies(self, name: str, values: Mapping[str, Any]) -> bool:
        """Whether a parameter applies, given the values of all searched ones that apply among those it depends on."""
        condition = self.when.get(name, {})
        return applies(condition, {**self.fixed, **values}) and all(
            self.applies(parent, values) for parent in condition
        )

    def fixed_for(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The fixed parameters that apply beside the searched ones' values."""
        return {name: value for name, value in self.fixed.items() if self.applies(name, values)}

    def centre(self) -> dict[str, Any]:
        """Every searched parameter, applying or not, at its prior's centre, else in the middle of its range."""
        return {
            name: self.priors[name].centre if name in self.priors else middle(distribution)
            for name, distribution in self.distributions.items()
        }


def applies(condition: Mapping[str, tuple[Any, ...]], values: Mapping[str, Any]) -> bool:
    """Whether every parameter that decides is there with one of its accepted values."""
    return all(
        parent in values and any(same(values[parent], value) for value in accepted)
        for parent, accepted in condition.items()
    )


def load_space(name: str, target: float) -> Space:
    """The built-in space of that name, or the one in the file of that name, laid out for `target` in [0, 1).

    Raises:
        BadFile: for a file that is not a valid space; the line is named.
        ValueError: for an unknown name, with the nearest ones.
    """
    from search_spaces.parser import parse_space

    return parse_space(name, space_file(name), target)


def space_text(name: str) -> str:
    """A space as it is written, with its comments: what one of one's own can start from. Raises as load_space does."""
    path = space_file(name)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BadFile(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not text in UTF-8'}"
        ) from error


def space_file(name: str) -> Path:
    """The file of a space. Raises ValueError for an unknown name, with the nearest ones."""
    if name in BUILT_IN:
        return _FOLDER / f"{name}.yaml"
    if Path(name).suffix in {".yaml", ".yml"}:
        return Path(name)
    near = difflib.get_close_matches(name, BUILT_IN, n=2)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    raise ValueError(f"unknown space {name!r}{hint}: a .yaml file or one of {', '.join(BUILT_IN)}")
