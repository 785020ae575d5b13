"""Parse the file of a search space: its parameters, their conditions, and the points that a study tries first."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, replace
from dataclasses import fields as dataclass_fields
from itertools import count
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tune_sparsity.search_spaces.parameter_parser import ParameterReader, Parsed, only
from tune_sparsity.search_spaces.priors import middle
from tune_sparsity.search_spaces.space import Space, applies
from tune_sparsity.search_spaces.value_parser import Place, Values
from tune_sparsity.search_spaces.yaml_file import read_mapping, shown
from tune_sparsity.sparsity import METHODS

NEAR = "near"
"""The key, in an entry of the list `first`, of the target sparsity for which the point is meant."""
Condition = dict[str, tuple[Any, ...]]


def read_space(name: str, path: Path, overlays: Sequence[Path] = ()) -> Callable[[float], Space]:
    """Read a space's file once. Return a function that takes a target sparsity in [0, 1) and returns the Space for it.

    Args:
        name: the name of the returned spaces.
        path: the YAML file of the space.
        overlays: files with parameters. A parameter of such a file replaces the parameter of the space that has the
            same name, and is removed from the points to try first. An overlay has no effect if the method lacks one of
            the overlay's parameters.

    Raises:
        BadFile: if a file is not valid. The returned function raises it, too. The message names the line.
    """
    data, lines = read_mapping(path)
    for overlay in overlays:
        given, _ = read_mapping(overlay)
        if not given.keys() <= _parameters_of(data["method"]):
            continue
        data["parameters"] |= given
        data["first"] = [{key: value for key, value in one.items() if key not in given} for one in data["first"]]
    return lambda target: _Parser(Values(lines, target)).space(name, data)


class _Parser:
    """Makes a Space from the data of a space's file. Every error message names the line."""

    def __init__(self, values: Values) -> None:
        self._values = values
        self._parameters = ParameterReader(values)

    def space(self, name: str, data: dict[str, Any]) -> Space:
        only(self._values, (), data, {"method", "parameters", "first"})
        method = data.get("method")
        if not isinstance(method, str) or method not in METHODS:
            raise self._values.error(("method",), f"method must be one of {', '.join(METHODS)}, not {shown(method)}")
        specs = data.get("parameters")
        if not isinstance(specs, dict) or not specs:
            raise self._values.error(("parameters",), "parameters must be a mapping with at least one parameter")
        parsed: dict[str, Parsed] = {}
        for key, spec in specs.items():
            self._known(("parameters", key), method, key)
            parsed.update({one.name: one for one in self._parameters.read(("parameters", key), key, spec)})
        when = self._conditions(specs, parsed)
        for key in _required(method):
            if key not in specs:
                raise self._values.error(("parameters",), f"{method} needs the parameter {key!r}")
            if any(_base(name) == key for name in when):
                raise self._values.error(("parameters", key, "when"), f"{method} always needs {key}: remove its 'when'")
        parsed = {key: parsed[key] for key in self._order(parsed, when)}
        self._usable(method, parsed, when)
        space = Space(
            name,
            method,
            distributions={key: p.distribution for key, p in parsed.items() if p.distribution is not None},
            fixed={key: p.value for key, p in parsed.items() if p.distribution is None},
            first=(),
            priors={key: p.prior for key, p in parsed.items() if p.prior is not None},
            when=when,
        )
        first = data.get("first", [])
        return replace(space, first=self._first(first, space), near=tuple(map(self._near, count(), first)))

    def _known(self, place: Place, method: str, key: Any) -> None:
        known = _parameters_of(method)
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise self._values.error(place, f"{method} has no parameter {shown(key)}{hint}: {', '.join(sorted(known))}")

    # Conditions

    def _conditions(self, specs: dict[str, Any], parsed: dict[str, Parsed]) -> dict[str, Condition]:
        """Return the condition of each parameter that has a condition (the key `when`). All parts of a schedule also
        have the schedule's condition."""
        conditions: dict[str, Condition] = {}
        for name, one in parsed.items():
            key = _base(name)
            own = {}
            if isinstance(specs[key], dict) and "when" in specs[key]:
                own = self._condition(("parameters", key, "when"), key, specs[key]["when"], parsed)
            if one.place != ("parameters", key) and one.when is not None:
                own = {**own, **self._condition((*one.place, "when"), key, one.when, parsed)}
            if own:
                conditions[name] = own
        return conditions

    def _condition(self, place: Place, key: str, spec: Any, parsed: dict[str, Parsed]) -> Condition:
        if not isinstance(spec, dict) or not spec:
            raise self._values.error(
                place, "when must be a mapping of parameters to the value or values at which this parameter applies"
            )
        condition = {}
        for parent, accepted in spec.items():
            if parent not in parsed or _base(parent) == key:
                names = ", ".join(name for name in parsed if _base(name) != key)
                raise self._values.error(
                    (*place, parent), f"{shown(parent)} is not another parameter of this space: {names}"
                )
            accepted = accepted if isinstance(accepted, list) else [accepted]
            condition[parent] = tuple(self._accepted((*place, parent), value, parsed[parent]) for value in accepted)
            if not accepted:
                raise self._values.error((*place, parent), "give at least one value of the other parameter")
        return condition

    def _accepted(self, place: Place, value: Any, parent: Parsed) -> Any:
        """Check and return one value in a condition.

        Args:
            place: the path of the value in the file.
            value: the value as the file gives it.
            parent: the parameter that must have this value.
        """
        if isinstance(parent.distribution, CategoricalDistribution):
            return self._values.choice(place, value, parent.distribution)
        if isinstance(parent.distribution, FloatDistribution):
            raise self._values.error(
                place, f"{parent.name} is a float: 'when' accepts parameters of type categorical or int"
            )
        if isinstance(parent.distribution, IntDistribution):
            whole = int(self._values.number(place, value, whole=True))
            if not parent.distribution._contains(whole):
                raise self._values.error(place, f"{whole} is not a value of {parent.name}")
            return whole
        # The parent has a fixed value. If `value` differs from it, the condition never holds.
        return self._values.plain(place, value)

    def _order(self, parsed: dict[str, Parsed], when: dict[str, Condition]) -> list[str]:
        """Return the names of the parameters in the order of the file, with one exception: a parameter comes after the
        parameters in its condition."""
        order: list[str] = []
        begun: set[str] = set()

        def add(name: str) -> None:
            if name in order:
                return
            if name in begun:
                raise self._values.error((*parsed[name].place[:2], "when"), f"{_base(name)} depends on itself")
            begun.add(name)
            for parent in when.get(name, {}):
                add(parent)
            order.append(name)

        for name in parsed:
            add(name)
        return order

    # Values that the method accepts

    def _usable(self, method: str, parsed: dict[str, Parsed], when: dict[str, Condition]) -> None:
        """Check that the method accepts both ends of every range, and every choice. For each check, all other
        parameters have a value inside their ranges."""
        samples = {key: [p.value] if p.distribution is None else _samples(p.distribution) for key, p in parsed.items()}
        inside = {key: values[0] for key, values in samples.items()}
        for key, values in samples.items():
            needed = _needed(key, when)
            for value in values:
                tried = {**inside, **needed, key: value}
                tried = {name: v for name, v in tried.items() if _all_apply(name, tried, when)}
                try:
                    METHODS[method].configure(tried)
                except (ValueError, TypeError) as error:
                    # The mistake may be in another parameter: the message begins with the name of the wrong one.
                    named = str(error).partition(" ")[0]
                    place = parsed[named if named in parsed else key].place
                    raise self._values.error(place, str(error)) from error

    # Points to try first

    def _first(self, points: Any, space: Space) -> tuple[dict[str, Any], ...]:
        if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
            raise self._values.error(("first",), "first must be a list of mappings of parameters to values")
        return tuple(self._point(("first", index), point, space) for index, point in enumerate(points))

    def _near(self, index: int, point: dict[str, Any]) -> float | None:
        """Return the target in a point's key `near`, or None if the point has no such key."""
        return self._values.sparsity(("first", index, NEAR), point[NEAR]) if NEAR in point else None

    def _point(self, place: Place, point: dict[str, Any], space: Space) -> dict[str, Any]:
        """Return a point of the list `first`. Values outside a range are moved to its nearer end. A parameter that the
        point does not give gets the centre of its prior. Without a prior, it gets no value."""
        given: dict[str, Any] = {}
        for key, value in point.items():
            if key == NEAR:
                continue
            parts = value.items() if isinstance(value, dict) else [(None, value)]
            for part, inner in parts:
                at, name = ((*place, key), key) if part is None else ((*place, key, part), f"{key}.{part}")
                if name not in space.distributions:
                    raise self._values.error(at, f"{shown(name)} is not a searched parameter of this space")
                given[name] = self._values.inside(at, inner, space.distributions[name])
        complete: dict[str, Any] = {}
        for name in space.distributions:
            if not space.applies(name, complete) and name in given:
                decides = ", ".join(space.when[name])
                raise self._values.error(
                    (*place, _base(name)), f"{name} does not apply at this point, because of the value of {decides}"
                )
            if name in given:
                complete[name] = given[name]
            elif name in space.priors and space.applies(name, complete):
                complete[name] = space.priors[name].centre
        return complete


def _base(name: str) -> str:
    """Return the name before the first dot: "threshold" for the part "threshold.start" of a schedule."""
    return name.partition(".")[0]


def _needed(name: str, when: Mapping[str, Condition]) -> dict[str, Any]:
    """Return a value for each parameter in the condition of this parameter, and in the conditions of those parameters.
    The value is the first one that the condition accepts."""
    needed: dict[str, Any] = {}
    for parent, accepted in when.get(name, {}).items():
        needed |= {**_needed(parent, when), parent: accepted[0]}
    return needed


def _all_apply(name: str, values: Mapping[str, Any], when: Mapping[str, Condition]) -> bool:
    """Return whether the condition of a parameter holds, and the conditions of all parameters in that condition."""
    condition = when.get(name, {})
    return applies(condition, values) and all(_all_apply(parent, values, when) for parent in condition)


def _samples(distribution: BaseDistribution) -> list[Any]:
    """Return all choices of a categorical distribution. For a range, return its middle and its two ends."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return [middle(distribution), distribution.low, distribution.high]


def _required(method: str) -> set[str]:
    """Return the method's parameters that have no default. Every space of the method must contain them."""
    fields = dataclass_fields(METHODS[method].settings)
    return {field.name for field in fields if field.default is MISSING and field.default_factory is MISSING}


def _parameters_of(method: str) -> set[str]:
    return {field.name for field in dataclass_fields(METHODS[method].settings)}
