"""Plans each trial of a study of a front or of several targets: its final sparsity, in most cases its method, and
whether it tries good parameters again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tune_sparsity.search_spaces import Space, space_layout
from tune_sparsity.tuner.search.configurations import FIRST, Configuration, Outcome, best_configuration
from tune_sparsity.tuner.search.cover import Cover
from tune_sparsity.tuner.search.monotone import NOISE
from tune_sparsity.tuner.search.spaces import clipped, least, range_of
from tune_sparsity.tuner.study.goal import Goal, GoalKind
from tune_sparsity.tuner.study.trial import FINAL_SPARSITY

FIRST_TRIALS = 12
"""The first FIRST_TRIALS trials of a study use first points of the search spaces. After them, the sampler begins to
propose parameters."""
SEARCHED = 3
"""After the first points, the sampler proposes the parameters of one trial in SEARCHED. The others repeat the best
configuration at a similar sparsity. On digits, the front was worse when the sampler had half of the trials: a good
configuration at another sparsity gains more than most proposals."""


@dataclass(frozen=True)
class Plan:
    """Choices for a trial that are made before the sampler proposes the other parameters.

    Attributes:
        sparsities: a dict from the name of each method that the trial may have to the trial's final sparsity with this
            method.
        method: the method; None if the sampler chooses it.
        configuration: the parameters that this trial tries at its sparsity: a first point of the search space, or
            parameters of an earlier trial. None if the sampler proposes the parameters.
    """

    sparsities: dict[str, float]
    method: str | None
    configuration: Configuration | None


class Planner:
    """Plans the trials of a study of a front or of several targets. Call `begun` for each trial that has begun, and
    `ended` for each trial that has ended. Then call `plan` for the next trial.

    Args:
        spaces: one space for each method, from `spaces_of`.
        goal: a goal with several targets, or a front.
        trials: the number of trials of the study.
    """

    def __init__(self, spaces: Sequence[Space], goal: Goal, trials: int) -> None:
        self._spaces = {space.method: space for space in spaces}
        self._searched = {
            method: space.distributions[FINAL_SPARSITY]
            for method, space in self._spaces.items()
            if FINAL_SPARSITY in space.distributions
        }
        self._layouts = {method: space_layout(self._spaces[method].name) for method in self._searched}
        self._goal, self._noise = goal, NOISE * goal.scale
        self._cover = Cover(goal, {method: range_of(own) for method, own in self._searched.items()}, trials)
        self._placed: dict[str, list[float]] = {method: [] for method in self._searched}
        self._outcomes: dict[str, list[Outcome]] = {method: [] for method in self._searched}
        self._params: dict[str, dict[str, Any]] = {}

    def begun(self, method: str, sparsity: float) -> None:
        """Record the method and the final sparsity of a trial that has begun."""
        if method in self._searched:
            self._placed[method].append(sparsity)

    def ended(
        self, method: str, params: dict[str, Any], configuration: str, sparsity: float, merit: float | None
    ) -> None:
        """Record a trial that was completed or stopped.

        Args:
            method: the trial's method.
            params: the trial's searched parameters.
            configuration: the name of the configuration that the trial tries again. For a trial with new parameters,
                this is the trial's own name.
            sparsity: the trial's final sparsity.
            merit: the trial's metric, negated if it is minimised; None if the trial was stopped.
        """
        if method in self._searched:
            self._outcomes[method].append(Outcome(configuration, sparsity, merit))
            self._params.setdefault(configuration, {k: v for k, v in params.items() if k != FINAL_SPARSITY})

    def plan(self, number: int, *, first_points: bool) -> Plan | None:
        """Return the plan of the next trial. Return None if no method of the study searches a final sparsity.

        Args:
            number: the next trial's number.
            first_points: whether each method begins with the points of the list `first` in its search space. These
                points are known good parameters.
        """
        turn = self._cover.next(number, self._placed)
        if turn is None:
            return None
        sparsities = {method: least(own, turn.sparsity) for method, own in self._searched.items()}
        method = next(iter(self._spaces)) if len(self._spaces) == 1 else turn.method
        if method is None:
            return Plan(sparsities, None, None)
        configuration = self._configuration(number, method, turn.sparsity, first_points)
        if configuration is None and self._goal.kind is GoalKind.FRONT and len(self._spaces) > 1:
            # the sampler chooses the method, too, so that methods without a searched sparsity also get trials
            return Plan(sparsities, None, None)
        return Plan({method: sparsities[method]}, method, configuration)

    def _configuration(self, number: int, method: str, sparsity: float, first_points: bool) -> Configuration | None:
        if first_points and number < FIRST_TRIALS and (space := self._layouts[method](sparsity)).first:
            return self._first_point(space, _nearest(space, sparsity, len(self._placed[method])))
        # The round counts, too. Otherwise, of three targets, only the last would have proposals.
        round_of_targets, target = divmod(number, len(self._goal.targets))
        if (round_of_targets + target) % SEARCHED == SEARCHED - 1:
            return None
        name = best_configuration(self._outcomes[method], sparsity, self._noise)
        if name is None:
            return None
        if name.startswith(FIRST):
            return self._first_point(self._layouts[method](sparsity), int(name.removeprefix(FIRST)))
        return Configuration(name, self._params[name])

    def _first_point(self, space: Space, index: int) -> Configuration:
        """Return a first point of the space for a sparsity. Its values are moved into the ranges of the whole study."""
        params = clipped(space.first[index], self._spaces[space.method].distributions)
        return Configuration(f"{FIRST}{index}", {k: v for k, v in params.items() if k != FINAL_SPARSITY})


def _nearest(space: Space, sparsity: float, number: int) -> int:
    """Return the index of the first point to try: the point for the nearest target. If some first points have no
    target, return each index in turn."""
    apart = space.apart_from(sparsity)
    return number % len(space.first) if len(apart) < len(space.first) else min(apart, key=lambda index: apart[index])


def planner_for(spaces: Sequence[Space], goal: Goal, trials: int) -> Planner | None:
    """Return the planner for a front or for several targets. Return None for any other goal, because the sampler then
    chooses the sparsity."""
    return Planner(spaces, goal, trials) if goal.multi_objective else None
