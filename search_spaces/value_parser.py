"""Parse single values in the file of a search space: numbers, text and booleans. Some words, such as `target`, stand
for numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tune_sparsity.search_spaces.priors import nearest, same
from tune_sparsity.search_spaces.yaml_file import BadFile, Lines, shown
from tune_sparsity.sparsity import suggest_p
from tune_sparsity.sparsity.methods.lpss import published_p, published_p_early

# Words that may stand for numbers in a space. The numbers depend on the study's target.
SYMBOLS: dict[str, Callable[[float], float]] = {
    "target": lambda target: target,
    "above": lambda target: target + 0.2 * (1 - target),  # a fifth of the way from the target to 1: .9 -> .92
    "suggest_p": lambda target: max(1.05, suggest_p(target)),
    "published_p": published_p,
    "published_p_early": published_p_early,
}
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # YAML 1.1 reads 1e-2, without a point, as text
_LARGEST = 1e300  # so that the difference of the ends of a range stays finite

Place = tuple[Any, ...]


class Values:
    """Parses single values for one target sparsity. Every error message names the line.

    Attributes:
        target: the study's target sparsity. Each word in SYMBOLS stands for a number that depends on this target. For
            example, `above` stands for a number between the target and 1.
    """

    def __init__(self, lines: Lines, target: float) -> None:
        self._lines, self.target = lines, target

    def error(self, place: Place, message: str) -> BadFile:
        return self._lines.error(place, message)

    def plain(self, place: Place, value: Any) -> Any:
        """Return a number, text or boolean. A word of SYMBOLS is replaced by its number."""
        if isinstance(value, str) and value in SYMBOLS:
            return SYMBOLS[value](self.target)
        if isinstance(value, str) and _EXPONENT.fullmatch(value):
            value = float(value)
        if not isinstance(value, str | int | float | bool):
            raise self.error(place, f"the value must be a number, text, true or false, not {shown(value)}")
        if not isinstance(value, str) and not abs(value) <= _LARGEST:
            raise self.error(place, f"{shown(value)} must be a finite number between -{_LARGEST:g} and {_LARGEST:g}")
        return value

    def number(self, place: Place, value: Any, *, whole: bool = False) -> float:
        if isinstance(value, str | int | float):
            value = self.plain(place, value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            accepted = f"a number or one of {', '.join(SYMBOLS)}"
            raise self.error(place, f"{place[-1]} must be {accepted}, not {shown(value)}")
        if whole and value != int(value):
            raise self.error(place, f"{place[-1]} must be a whole number, not {shown(value)}")
        return float(value)

    def sparsity(self, place: Place, value: Any) -> float:
        """Return a number of the file that is a target sparsity, such as the value of `near`."""
        sparsity = self.number(place, value)
        if not 0 <= sparsity < 1:
            raise self.error(place, f"a target must lie in [0, 1), not {shown(value)}")
        return sparsity

    def inside(self, place: Place, value: Any, distribution: BaseDistribution) -> Any:
        """Return the value of the distribution that is nearest to `value`. `value` may lie outside the range: for
        example, the number for the word `suggest_p` depends on the target. For a categorical distribution, `value` must
        be a choice."""
        if isinstance(distribution, CategoricalDistribution):
            return self.choice(place, value, distribution)
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        return nearest(distribution, self.number(place, value, whole=isinstance(distribution, IntDistribution)))

    def choice(self, place: Place, value: Any, distribution: CategoricalDistribution) -> Any:
        value = self.plain(place, value)
        for choice in distribution.choices:
            if same(choice, value):
                return choice
        raise self.error(place, f"{shown(value)} is not one of {', '.join(map(str, distribution.choices))}")
