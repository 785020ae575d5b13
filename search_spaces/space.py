"""Search spaces: named parameters with their distributions, and the points to try first."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from search_spaces.reader import Lines, read_mapping, shown
from sparsity import METHODS, suggest_p
from sparsity.published import published_p, published_p_early

_FOLDER = Path(__file__).parent
BUILT_IN = tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))

# What a space may say instead of a number, as a function of the study's target.
_SYMBOLS: dict[str, Callable[[float], float]] = {
    "target": lambda target: target,
    "above": lambda target: target + 0.2 * (1 - target),  # .9 -> .92: a little above, a fifth of what is left
    "suggest_p": lambda target: max(1.05, suggest_p(target)),
    "published_p": published_p,
    "published_p_early": published_p_early,
}
_LARGEST = 1e300  # so that sums and products of the ends of a range stay finite
_NUMERIC_KEYS = {"float": {"low", "high", "log", "step"}, "int": {"low", "high", "log", "step"}}
_KEYS = {**_NUMERIC_KEYS, "categorical": {"choices"}, "fixed": {"value"}}


@dataclass(frozen=True)
class Space:
    """A method's search space for one target.

    Attributes:
        name: of the space: a built-in name or the file it was read from.
        method: the method whose parameters it searches.
        distributions: the searched parameters, as Optuna's distributions.
        fixed: parameters with one value.
        first: points to try first, each complete and within the distributions.
    """

    name: str
    method: str
    distributions: dict[str, BaseDistribution]
    fixed: dict[str, Any]
    first: tuple[dict[str, Any], ...]


def load_space(name: str, target: float) -> Space:
    """The built-in space of that name, or the one in the file of that name, laid out for `target` in [0, 1).

    Raises:
        BadFile: for a file that is not a valid space; the line is named.
        ValueError: for an unknown name, with the nearest ones.
    """
    path = _FOLDER / f"{name}.yaml" if name in BUILT_IN else Path(name)
    if name not in BUILT_IN and path.suffix not in {".yaml", ".yml"}:
        near = difflib.get_close_matches(name, BUILT_IN, n=2)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise ValueError(f"unknown space {name!r}{hint}: a .yaml file or one of {', '.join(BUILT_IN)}")
    data, lines = read_mapping(path)
    return _Parser(lines, target).space(name, data)


class _Parser:
    """Turns the plain data of a space file into a Space, and every mistake into an error with its line."""

    def __init__(self, lines: Lines, target: float) -> None:
        self._lines, self._target = lines, target

    def space(self, name: str, data: dict[str, Any]) -> Space:
        self._only((), data, {"method", "parameters", "first"})
        method = data.get("method")
        if not isinstance(method, str) or method not in METHODS:
            raise self._lines.error(("method",), f"method must be one of {', '.join(METHODS)}, not {shown(method)}")
        parameters = data.get("parameters")
        if not isinstance(parameters, dict) or not parameters:
            raise self._lines.error(("parameters",), "parameters must be a mapping with at least one parameter")
        distributions: dict[str, BaseDistribution] = {}
        fixed: dict[str, Any] = {}
        for key, spec in parameters.items():
            place = ("parameters", key)
            self._known(place, method, key)
            parsed = self._distribution(place, spec)
            if isinstance(parsed, BaseDistribution):
                distributions[key] = parsed
            else:
                fixed[key] = parsed
        for key in _required(method) - set(parameters):
            raise self._lines.error(("parameters",), f"{method} needs the parameter {key!r}")
        self._usable(method, distributions, fixed)
        return Space(name, method, distributions, fixed, self._first(data.get("first", []), distributions))

    def _known(self, place: tuple[Any, ...], method: str, key: Any) -> None:
        known = {field.name for field in dataclass_fields(METHODS[method].settings)}
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise self._lines.error(place, f"{method} has no parameter {shown(key)}{hint}: {', '.join(sorted(known))}")

    def _only(self, place: tuple[Any, ...], data: dict[Any, Any], accepted: set[str]) -> None:
        for key in data:
            if key not in accepted:
                message = f"unknown key {shown(key)}: accepted are {', '.join(sorted(accepted))}"
                raise self._lines.error((*place, key), message)

    def _distribution(self, place: tuple[Any, ...], spec: Any) -> BaseDistribution | Any:
        """An Optuna distribution, or the value itself for a fixed parameter."""
        if not isinstance(spec, dict):
            return self._value(place, spec)
        kind = spec.get("type")
        if not isinstance(kind, str) or kind not in _KEYS:
            raise self._lines.error((*place, "type"), f"type must be one of {', '.join(_KEYS)}, not {shown(kind)}")
        self._only(place, spec, {"type", *_KEYS[kind]})
        if kind == "fixed":
            return self._value((*place, "value"), spec.get("value"))
        if kind == "categorical":
            return self._categorical(place, spec)
        return self._range(place, spec, integer=kind == "int")

    def _categorical(self, place: tuple[Any, ...], spec: dict[str, Any]) -> BaseDistribution:
        choices = spec.get("choices")
        if not isinstance(choices, list) or not choices:
            raise self._lines.error((*place, "choices"), "choices must be a list of at least one value")
        return CategoricalDistribution([self._value((*place, "choices"), choice) for choice in choices])

    def _range(self, place: tuple[Any, ...], spec: dict[str, Any], *, integer: bool) -> BaseDistribution:
        low, high = (self._number((*place, end), spec.get(end), integer) for end in ("low", "high"))
        log, step = spec.get("log", False), spec.get("step")
        if not isinstance(log, bool):
            raise self._lines.error((*place, "log"), f"log must be true or false, not {shown(log)}")
        if low > high:
            raise self._lines.error((*place, "low"), f"low = {low:g} is above high = {high:g}")
        if step is not None:
            step = self._number((*place, "step"), step, integer)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # `high` moves to the last step below it: it may depend on the target
                if integer:
                    return IntDistribution(int(low), int(high), log=log, step=1 if step is None else int(step))
                return FloatDistribution(low, high, log=log, step=step)
        except ArithmeticError as error:  # from Optuna's decimals
            raise self._lines.error((*place, "step"), "step is too small for this range") from error
        except ValueError as error:
            raise self._lines.error(place, str(error)) from error

    def _number(self, place: tuple[Any, ...], value: Any, integer: bool) -> float:
        if isinstance(value, str | int | float):
            value = self._value(place, value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            accepted = f"a number or one of {', '.join(_SYMBOLS)}"
            raise self._lines.error(place, f"{place[-1]} must be {accepted}, not {shown(value)}")
        if integer and value != int(value):
            raise self._lines.error(place, f"{place[-1]} must be a whole number, not {shown(value)}")
        return float(value)

    def _value(self, place: tuple[Any, ...], value: Any) -> Any:
        """A number, text or truth value, with the symbols replaced by their numbers for the target."""
        if isinstance(value, str) and value in _SYMBOLS:
            return _SYMBOLS[value](self._target)
        if not isinstance(value, str | int | float | bool):
            raise self._lines.error(place, f"must be a number, text, true or false, not {shown(value)}")
        if not isinstance(value, str) and not abs(value) <= _LARGEST:
            raise self._lines.error(place, f"{shown(value)} is not a finite number below {_LARGEST:g}")
        return value

    def _usable(self, method: str, distributions: dict[str, BaseDistribution], fixed: dict[str, Any]) -> None:
        """Tries the ends of every parameter, with the others inside theirs, on the method's own checks."""
        inside = {**fixed, **{key: _samples(dist)[0] for key, dist in distributions.items()}}
        for key in (*distributions, *fixed):
            values = _samples(distributions[key]) if key in distributions else [fixed[key]]
            for value in values:
                try:
                    METHODS[method].settings(**{**inside, key: value})
                except (ValueError, TypeError) as error:
                    # It may be another parameter that has no accepted value at all: the message begins with its name.
                    named = str(error).partition(" ")[0]
                    raise self._lines.error(("parameters", named if named in inside else key), str(error)) from error

    def _first(self, points: Any, distributions: dict[str, BaseDistribution]) -> tuple[dict[str, Any], ...]:
        if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
            raise self._lines.error(("first",), "first must be a list of mappings of parameters to values")
        return tuple(self._point(("first", index), point, distributions) for index, point in enumerate(points))

    def _point(
        self, place: tuple[Any, ...], point: dict[str, Any], distributions: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        checked = {}
        for key, value in point.items():
            if key not in distributions:
                raise self._lines.error((*place, key), f"{shown(key)} is not a searched parameter of this space")
            checked[key] = self._clipped((*place, key), value, distributions[key])
        return checked

    def _clipped(self, place: tuple[Any, ...], value: Any, distribution: BaseDistribution) -> Any:
        """The value, moved to the nearest one that is searched: theory may suggest what a narrower space leaves out."""
        if isinstance(distribution, CategoricalDistribution):
            value = self._value(place, value)
            for choice in distribution.choices:
                if choice == value and isinstance(choice, bool) == isinstance(value, bool):  # in Python 1 == True
                    return choice
            message = f"{shown(value)} is not one of {', '.join(map(str, distribution.choices))}"
            raise self._lines.error(place, message)
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        value = self._number(place, value, isinstance(distribution, IntDistribution))
        low, high, step = distribution.low, distribution.high, distribution.step
        value = min(max(value, low), high)
        if step is not None and not distribution.log:
            value = min(low + round((value - low) / step) * step, high)
        return type(low)(value)


def _samples(distribution: BaseDistribution) -> list[Any]:
    """Every choice, or an inner point and the two ends of a range."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    middle = math.sqrt(low) * math.sqrt(high) if distribution.log else (low + high) / 2
    return [type(low)(min(max(middle, low), high)), low, high]


def _required(method: str) -> set[str]:
    """The parameters without a default: a space has to give them."""
    from dataclasses import MISSING

    fields = dataclass_fields(METHODS[method].settings)
    return {field.name for field in fields if field.default is MISSING and field.default_factory is MISSING}
