"""Parse one parameter in the file of a search space: a range, choices, a fixed value or a schedule, with its prior.

This module does not use pydantic. Every field would need its own validator, because words such as `target` may stand
for numbers, and each error has its own message. A version with pydantic was longer by a sixth.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tune_sparsity.search_spaces.priors import WIDTH, Prior, between, same
from tune_sparsity.search_spaces.value_parser import Place, Values
from tune_sparsity.search_spaces.yaml_file import shown

_RANGE = {"low", "high", "log", "step", "prior"}
_KEYS = {
    "float": _RANGE,
    "int": _RANGE,
    "categorical": {"choices", "prior"},
    "fixed": {"value"},
    "schedule": {"shape", "start", "stop", "begin", "end", "knots"},
}
_KNOT = ("at", "value")


@dataclass(frozen=True)
class Parsed:
    """Holds a parameter. If the parameter is a schedule, holds one of its parts.

    Attributes:
        name: its name, such as "lr", or "threshold.start" for a part.
        place: its path in the file.
        distribution: the distribution to search, or None if the value is fixed.
        value: the fixed value.
        prior: the prior of the distribution, or None.
        when: the condition of the parameter as the file gives it, or None.
    """

    name: str
    place: Place
    distribution: BaseDistribution | None = None
    value: Any = None
    prior: Prior | None = None
    when: Any = None


class ParameterReader:
    """Parses the data of a parameter. Every error message names the line."""

    def __init__(self, values: Values) -> None:
        self._values = values

    def read(self, place: Place, name: str, spec: Any) -> list[Parsed]:
        """Return a list with the parameter or, if it is a schedule, with its parts.

        Args:
            place: the path of the parameter in the file.
            name: the name of the parameter.
            spec: the data of the parameter.

        Raises:
            BadFile: if the data are not valid.
        """
        if not isinstance(spec, dict):
            return [Parsed(name, place, value=self._values.plain(place, spec))]
        kind = spec.get("type")
        if not isinstance(kind, str) or kind not in _KEYS:
            raise self._values.error((*place, "type"), f"type must be one of {', '.join(_KEYS)}, not {shown(kind)}")
        only(self._values, place, spec, {"type", "when", *_KEYS[kind]})
        if kind == "schedule":
            return self._schedule(place, name, spec)
        return [self._single(place, name, spec, kind)]

    def _single(self, place: Place, name: str, spec: dict[str, Any], kind: str) -> Parsed:
        when = spec.get("when")
        if kind == "fixed":
            return Parsed(name, place, value=self._values.plain((*place, "value"), spec.get("value")), when=when)
        if kind == "categorical":
            distribution: BaseDistribution = self._choices((*place, "choices"), spec.get("choices"))
        else:
            distribution = self._range(place, spec, whole=kind == "int")
        prior = self._prior((*place, "prior"), spec.get("prior"), distribution)
        return Parsed(name, place, distribution, prior=prior, when=when)

    def _schedule(self, place: Place, name: str, spec: dict[str, Any]) -> list[Parsed]:
        """Return the parts of a schedule. A schedule has a shape with a start, or knots that straight lines connect."""
        given = [key for key in spec if key not in ("type", "when")]
        if "knots" in spec:
            if len(given) > 1:
                raise self._values.error(place, "a schedule with knots cannot have shape, start, stop, begin or end")
            return self._knots((*place, "knots"), name, spec["knots"])
        if "shape" not in spec or "start" not in spec:
            raise self._values.error(place, "a schedule needs shape and start, or knots")
        return [self._part((*place, key), f"{name}.{key}", spec[key]) for key in given]

    def _knots(self, place: Place, name: str, knots: Any) -> list[Parsed]:
        if not isinstance(knots, list) or not knots or not all(isinstance(k, list) and len(k) == 2 for k in knots):
            raise self._values.error(place, "knots must be a list of pairs [progress, value], with progress in [0, 1]")
        return [
            self._part((*place, index - 1, half), f"{name}.{part}{index}", knot[half])
            for index, knot in enumerate(knots, 1)
            for half, part in enumerate(_KNOT)
        ]

    def _part(self, place: Place, name: str, spec: Any) -> Parsed:
        """Return one part of a schedule.

        Args:
            place: the path of the part in the file.
            name: the name of the part, such as "threshold.start".
            spec: a value, a list of choices, or a mapping. A mapping without the key `type` is a range of floats, or
                has choices.
        """
        if isinstance(spec, list):
            spec = {"type": "categorical", "choices": spec}
        if not isinstance(spec, dict):
            return Parsed(name, place, value=self._values.plain(place, spec))
        kind = spec.get("type", "categorical" if "choices" in spec else "float")
        if kind not in ("float", "int", "categorical", "fixed"):
            message = f"the type of a schedule's part must be float, int, categorical or fixed, not {shown(kind)}"
            raise self._values.error((*place, "type"), message)
        only(self._values, place, spec, {"type", "when", *_KEYS[kind]})
        return self._single(place, name, spec, kind)

    def _choices(self, place: Place, choices: Any) -> CategoricalDistribution:
        if not isinstance(choices, list) or not choices:
            raise self._values.error(place, "choices must be a list with at least one value")
        found = [self._values.plain(place, choice) for choice in choices]
        if twice := [choice for index, choice in enumerate(found) if any(same(choice, one) for one in found[:index])]:
            raise self._values.error(place, f"the choice {shown(twice[0])} is given twice")
        return CategoricalDistribution(found)

    def _range(self, place: Place, spec: dict[str, Any], *, whole: bool) -> BaseDistribution:
        low, high = (self._values.number((*place, end), spec.get(end), whole=whole) for end in ("low", "high"))
        log, step = spec.get("log", False), spec.get("step")
        if not isinstance(log, bool):
            raise self._values.error((*place, "log"), f"log must be true or false, not {shown(log)}")
        if low > high:
            raise self._values.error((*place, "low"), f"low = {low:g} is above high = {high:g}")
        if step is not None:
            step = self._values.number((*place, "step"), step, whole=whole)
            if step > high - low > 0:
                message = f"step = {step:g} is larger than the range from {low:g} to {high:g}"
                raise self._values.error((*place, "step"), message)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Optuna warns if it lowers `high` to `low` + a multiple of `step`
                if whole:
                    return IntDistribution(int(low), int(high), log=log, step=1 if step is None else int(step))
                return FloatDistribution(low, high, log=log, step=step)
        except ArithmeticError as error:  # Optuna divides the range by the step, in decimals of 28 digits
            raise self._values.error((*place, "step"), "step is too small for this range") from error
        except ValueError as error:
            raise self._values.error(place, str(error)) from error

    def _prior(self, place: Place, spec: Any, distribution: BaseDistribution) -> Prior | None:
        """Return the prior, or None if the file gives none. The file gives a centre, or a mapping with a centre and a
        width."""
        if spec is None:
            return None
        if not isinstance(spec, dict):
            return Prior(self._values.inside(place, spec, distribution))
        only(self._values, place, spec, {"centre", "width"})
        if "centre" not in spec:
            raise self._values.error(place, "a prior needs a centre: the expected best value")
        width = self._values.number((*place, "width"), spec.get("width", WIDTH))
        if not 0 < width <= 1:
            raise self._values.error((*place, "width"), f"width must be a share of the range, in (0, 1], not {width:g}")
        place, centre = (*place, "centre"), spec["centre"]
        if not isinstance(centre, dict):
            return Prior(self._values.inside(place, centre, distribution), width)
        if not centre or not isinstance(distribution, FloatDistribution | IntDistribution):
            raise self._values.error(place, "centres for several targets are {target: value, ...}, only for numbers")
        centres = {
            self._values.sparsity((*place, target), target): self._values.inside((*place, target), value, distribution)
            for target, value in centre.items()
        }
        return Prior(between(distribution, centres, self._values.target), width)


def only(values: Values, place: Place, data: dict[Any, Any], accepted: set[str]) -> None:
    """Raise BadFile if the mapping has a key that is not in `accepted`."""
    for key in data:
        if key not in accepted:
            message = f"unknown key {shown(key)}: accepted are {', '.join(sorted(accepted))}"
            raise values.error((*place, key), message)
