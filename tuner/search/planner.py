"""How the trials of a study of several sparsities are laid out: their sparsity, their method, and which of them repeat
a configuration that is known to be good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tune_sparsity.search_spaces import Space, space_layout
from tune_sparsity.tuner.search.configurations import FIRST, Configuration, Outcome, best_configuration
from tune_sparsity.tuner.search.cover import Cover
from tune_sparsity.tuner.search.monotone import NOISE
from tune_sparsity.tuner.search.spaces import clipped, least, range_of
from tune_sparsity.tuner.study.goal import Goal
from tune_sparsity.tuner.study.pareto import Point
from tune_sparsity.tuner.study.trial import FINAL_SPARSITY

FIRST_ROUNDS = 2
"""A method begins with so many trials for each of its space's first points."""
SEARCHED = 3
"""After that one of so many trials has parameters that the sampler proposes; the others repeat the configuration that
has surely done best at like sparsity. On digits half of the trials for the sampler found less: a trial that repeats a
good configuration at another sparsity gains more than most proposals."""


@dataclass(frozen=True)
class Plan:
    """What is decided of a trial before the sampler proposes the rest.

    Attributes:
        sparsities: the final sparsity by method, for every method that may have the trial.
        method: None if the sampler chooses it.
        configuration: that the trial repeats; None if the sampler proposes the other parameters.
    """

    sparsities: dict[str, float]
    method: str | None
    configuration: Configuration | None


class Planner:
    """Plans the trials of a study of several sparsities, from those that it has been told of.

    Args:
        spaces: one for each method, from `spaces_of`.
        goal: with several targets, or a front.
    """

    def __init__(self, spaces: Sequence[Space], goal: Goal) -> None:
        self._spaces = {space.method: space for space in spaces}
        self._searched = {
            method: space.distributions[FINAL_SPARSITY]
            for method, space in self._spaces.items()
            if FINAL_SPARSITY in space.distributions
        }
        self._layouts = {method: space_layout(self._spaces[method].name) for method in self._searched}
        self._first_points = {method: len(laid_out(goal.lowest).first) for method, laid_out in self._layouts.items()}
        self._noise = NOISE * goal.scale
        self._cover = Cover(goal, {method: range_of(own) for method, own in self._searched.items()})
        self._placed: dict[str, list[float]] = {method: [] for method in self._searched}
        self._completed: list[Point] = []
        self._outcomes: dict[str, list[Outcome]] = {method: [] for method in self._searched}
        self._params: dict[str, dict[str, Any]] = {}

    def begun(self, method: str, sparsity: float) -> None:
        """Take note of a trial that has begun: of where in the cover it lies."""
        if method in self._searched:
            self._placed[method].append(sparsity)

    def ended(
        self, method: str, params: dict[str, Any], configuration: str, sparsity: float, merit: float | None
    ) -> None:
        """Take note of a trial that was completed or stopped.

        Args:
            params: its searched parameters.
            configuration: the name of the configuration that it repeats, or its own.
            sparsity: that it ended on, or was to end on.
            merit: its validation accuracy's, or that of another objective; None if it was stopped.
        """
        if merit is not None:
            self._completed.append((sparsity, merit))
        if method in self._searched:
            self._outcomes[method].append(Outcome(configuration, sparsity, merit))
            self._params.setdefault(configuration, {k: v for k, v in params.items() if k != FINAL_SPARSITY})

    def plan(self, number: int, *, first_points: bool) -> Plan | None:
        """Return what is decided of the next trial; None if no method has a final sparsity.

        Args:
            number: of the trial.
            first_points: whether the spaces' first points are to be tried.
        """
        turn = self._cover.next(number, self._placed, self._completed)
        if turn is None:
            return None
        sparsities = {method: least(own, turn.sparsity) for method, own in self._searched.items()}
        method = next(iter(self._spaces)) if len(self._spaces) == 1 else turn.method
        if method is None:
            return Plan(sparsities, None, None)
        configuration = self._configuration(method, turn.sparsity, first_points)
        return Plan({method: sparsities[method]}, method, configuration)

    def _configuration(self, method: str, sparsity: float, first_points: bool) -> Configuration | None:
        number = len(self._placed[method])
        if first_points and number < FIRST_ROUNDS * self._first_points[method]:
            return self._first_point(method, sparsity, _nearest(self._layouts[method](sparsity), sparsity, number))
        if number % SEARCHED == SEARCHED - 1:
            return None
        name = best_configuration(self._outcomes[method], sparsity, self._noise)
        if name is None:
            return None
        if name.startswith(FIRST):
            return self._first_point(method, sparsity, int(name.removeprefix(FIRST)))
        return Configuration(name, self._params[name])

    def _first_point(self, method: str, sparsity: float, index: int) -> Configuration:
        """Return a first point as it is laid out for a sparsity, within the whole study's ranges."""
        params = clipped(self._layouts[method](sparsity).first[index], self._spaces[method].distributions)
        return Configuration(f"{FIRST}{index}", {k: v for k, v in params.items() if k != FINAL_SPARSITY})


def _nearest(space: Space, sparsity: float, number: int) -> int:
    """Return which first point to try: that for the nearest target, or where points do not say theirs each in turn."""
    apart = space.apart_from(sparsity)
    return number % len(space.first) if len(apart) < len(space.first) else min(apart, key=lambda index: apart[index])


def planner_for(spaces: Sequence[Space], goal: Goal) -> Planner | None:
    """Return the planner of a study's trials; None with one target, where the sampler chooses their sparsities."""
    return Planner(spaces, goal) if goal.multi_objective else None
