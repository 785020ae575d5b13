"""Where a sampler learns: a study of its own in memory, beside the record, with what helps it and no more.

The record is a study in a file, with two objectives, that keeps every trial for ever. A sampler that learns from it
pays for all of that at every proposal: sorting by domination, and a kernel for every trial ever made. Here it gets

- one objective: the merit, where the goal is the best network at a target; where several sparsities are wanted, by
  how much the merit is above what other trials of like sparsity have;
- the trials that matter: the best ones and the latest, or those of like sparsity;
- stopped and failed trials as what they are to a search: places where not to go again.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_sparsity.tuner.search.cover import log_sparsity
from tune_sparsity.tuner.search.monotone import residuals
from tune_sparsity.tuner.search.samplers import OneByOne

CONSTRAINT = "target"
FOR_DASHBOARD = "constraints"
"""A trial's system attribute where Optuna's dashboard looks for constraints: the same one once more, in a list. Optuna
reads it as another constraint, of which a sampler is not told."""
LIKE, LIKE_SHARE = 24, 3
"""Trials of like sparsity that a sampler learns from: a third of them, and no fewer than so many."""
_WORST = -2.0  # below the worst of all: ranks are above 0, and what is missing to a target is less than 1


@dataclass(frozen=True)
class View:
    """What a sampler gets to see.

    Attributes:
        constraint: the constraint as such. If not, infeasible trials have a value below every feasible one's, and
            stopped ones a value below those: Deb's rules (2000), for samplers that go by rank.
        most: ended trials; beyond it the `best` ones stay, and of the others the latest.
        everything: distributions that are asked for in every trial, whether they apply in it or not, for samplers that
            only learn from trials of equal parameters.
        centre: values for those of them that a trial from elsewhere does not have.
    """

    constraint: bool = True
    most: int = 256
    best: int = 64
    everything: Mapping[str, BaseDistribution] = field(default_factory=dict)
    centre: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Numbered(Protocol):
    """A sampler whose randomness is told which trial of the record comes next: what it proposes then depends on that
    number and on the trials that it sees, not on which process asked for those before."""

    def begin(self, number: int) -> None: ...


class OwnStudy(OneByOne):
    """To the record's study this is a sampler; it passes every question on to another one, in a study of its own."""

    def __init__(self, sampler: BaseSampler, view: View) -> None:
        self._sampler, self._view = sampler, view
        self._open: dict[int, optuna.Trial] = {}  # the running trials, by their numbers in the record
        self._study = self._new_study()

    def _new_study(self) -> optuna.Study:
        return optuna.create_study(sampler=self._sampler, direction=StudyDirection.MAXIMIZE)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return suggest(self._open[trial.number], param_name, param_distribution)

    def settle(self, trial: optuna.Trial) -> None:
        """All parameters of the record's trial are known: those that were given in it become known here."""
        own = self._open[trial.number]
        for name, distribution in self._seen_params({**self._view.everything, **trial.distributions}).items():
            suggest(own, name, distribution)

    @abstractmethod
    def add(self, trials: Iterable[FrozenTrial]) -> None:
        """Take up trials that ended elsewhere: in an earlier process, or in another study."""

    def _seen_params(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the named parameters, or of their distributions, that the sampler gets to see."""
        return dict(named)

    def _begin(self, number: int, given: Mapping[str, Any]) -> None:
        if isinstance(self._sampler, Numbered):
            self._sampler.begin(number)
        if given:
            self._study.enqueue_trial(dict(given))
        self._open[number] = self._study.ask()

    def _stopped(self) -> tuple[TrialState, list[float] | None]:
        """Return the state and the values that the sampler is told of a trial that was stopped or that failed."""
        return (TrialState.PRUNED, None) if self._view.constraint else (TrialState.COMPLETE, [_WORST])


class SamplingStudy(OwnStudy):
    """The sampler learns from the best trials and the latest."""

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Begins the trial here too, with what is given in it: a point to try, or what an earlier process proposed."""
        self._begin(trial.number, {**trial.system_attrs.get("fixed_params", {}), **trial.params})

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Ends it here too, as far as it helps the sampler."""
        state, told = self._told(state, values, _constraint(trial))
        own = self._open.pop(trial.number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if state is TrialState.COMPLETE and self._view.constraint:
                for name, value in _constraint(trial).items():
                    own.set_constraint(name, value)
            self._study.tell(own, told, state=state)
        self._forget()

    def add(self, trials: Iterable[FrozenTrial]) -> None:
        for trial in trials:
            if trial.params:
                self._study.add_trial(self._seen(trial))
        self._forget()

    def _told(
        self, state: TrialState, values: Sequence[float] | None, constraints: Mapping[str, float]
    ) -> tuple[TrialState, list[float] | None]:
        """Return the state and the values that the sampler is told."""
        if state is TrialState.COMPLETE:
            assert values is not None
            missing = _missing(constraints)
            if self._view.constraint:
                return state, [values[0]]
            return state, [_ranked(values[0]) if missing <= 0 else -missing]
        return self._stopped()

    def _seen(self, trial: FrozenTrial) -> FrozenTrial:
        state, values = self._told(trial.state, trial.values, _constraint(trial))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return create_trial(
                state=state,
                values=values,
                params={**self._view.centre, **trial.params},
                distributions={**self._view.everything, **trial.distributions},
                constraints=_constraint(trial) if state is TrialState.COMPLETE and self._view.constraint else None,
            )

    def _forget(self) -> None:
        """Begins the study anew when it has grown too large, with the trials that matter. Those that run are not
        counted: with hundreds at once there would be no room for others, and all to begin anew whenever one ends."""
        ended = [trial for trial in self._study.get_trials(deepcopy=False) if trial.state.is_finished()]
        if len(ended) <= self._view.most:
            return
        running = dict(self._open)
        ranked = sorted(zip(_ranks(ended), range(len(ended)), strict=True))
        keep = {index for _, index in ranked[: self._view.best]}
        recent = [index for index in reversed(range(len(ended))) if index not in keep]
        keep |= set(recent[: max(0, self._view.most * 3 // 4 - len(keep))])
        self._study = self._new_study()
        self._study.add_trials([ended[index] for index in sorted(keep)])
        for number, own in running.items():
            self._begin(number, own.params)
            for name, distribution in own.distributions.items():
                suggest(self._open[number], name, distribution)


def suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    """Asks Optuna for a parameter by its distribution."""
    if isinstance(distribution, FloatDistribution):
        return trial.suggest_float(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    assert isinstance(distribution, CategoricalDistribution)
    return trial.suggest_categorical(name, distribution.choices)


def _constraint(trial: FrozenTrial) -> dict[str, float]:
    """Return the record's constraint by its name, if the trial has it."""
    return {name: value for name, value in trial.constraints.items() if name == CONSTRAINT}


def _missing(constraints: Mapping[str, float]) -> float:
    """By how much a trial misses its constraints, all together; 0 where it is feasible."""
    return sum(max(0.0, value) for value in constraints.values())


def _ranked(merit: float) -> float:
    """Return a number in (0, 1) that rises with the merit, which may have any size: for samplers that go by rank."""
    return 0.5 + 0.5 * merit / (1 + abs(merit))


def _ranks(trials: Sequence[FrozenTrial]) -> list[tuple[float, float]]:
    """Sorts the best first: feasible ones by value, infeasible ones, stopped ones."""
    ranks = []
    for trial in trials:
        if trial.state is not TrialState.COMPLETE:
            ranks.append((2.0, 0.0))
        elif (missing := _missing(trial.constraints)) > 0:
            ranks.append((1.0, missing))
        else:
            ranks.append((0.0, -trial.values[0]))
    return ranks


@dataclass(frozen=True)
class _Ended:
    """A trial that has ended, as the next proposals see it."""

    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]
    position: float  # log_sparsity of what it was to end on
    merit: float | None  # None: it was stopped or failed


class LikeSparsityStudy(OwnStudy):
    """A study for trials whose final sparsity has been decided before the sampler is asked.

    The sampler learns anew for every trial, from the ended trials whose sparsity is nearest on the logarithm of the
    density. Their value is by how much their merit is above the monotone fit of the others: what is left of it once
    the sparsity has been accounted for.

    Args:
        sampler: asked for all parameters but the final sparsity.
        view: what the sampler gets to see.
        sparsity_of: (a trial's parameters in the record, or those that are fixed so far) -> its final sparsity.
        sparsities: the names that the final sparsity has in the record, which the sampler does not see.
    """

    def __init__(
        self,
        sampler: BaseSampler,
        view: View,
        sparsity_of: Callable[[Mapping[str, Any]], float],
        sparsities: Collection[str],
    ) -> None:
        super().__init__(sampler, view)
        self._sparsity_of, self._sparsities = sparsity_of, sparsities
        self._ended: list[_Ended] = []

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        given = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        self._study = self._near(log_sparsity(self._sparsity_of(given)))
        self._begin(trial.number, self._seen_params(given))

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        del self._open[trial.number]
        self._take(trial.params, trial.distributions, values if state is TrialState.COMPLETE else None)

    def add(self, trials: Iterable[FrozenTrial]) -> None:
        for trial in trials:
            if trial.params:
                self._take(trial.params, trial.distributions, trial.values)

    def _take(
        self, params: dict[str, Any], distributions: dict[str, BaseDistribution], values: Sequence[float] | None
    ) -> None:
        seen = {**self._view.centre, **self._seen_params(params)}
        known = {name: own for name, own in {**self._view.everything, **distributions}.items() if name in seen}
        position = log_sparsity(self._sparsity_of(params))
        self._ended.append(_Ended(seen, known, position, None if values is None else values[0]))

    def _seen_params(self, named: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in named.items() if name not in self._sparsities}

    def _near(self, position: float) -> optuna.Study:
        """Return a study of the ended trials next to this position, and of those that run."""

        def nearest(trials: list[_Ended]) -> list[_Ended]:
            most = max(LIKE, len(trials) // LIKE_SHARE)
            return sorted(trials, key=lambda trial: abs(trial.position - position))[: min(most, self._view.most)]

        completed = nearest([trial for trial in self._ended if trial.merit is not None])
        others = nearest([trial for trial in self._ended if trial.merit is None])
        points = [(trial.position, trial.merit) for trial in completed if trial.merit is not None]
        values = residuals(points) if len(points) > 2 else [0.0] * len(points)
        study = self._new_study()
        for trial, value in zip(completed, values, strict=True):
            study.add_trial(create_trial(value=value, params=trial.params, distributions=trial.distributions))
        state, told = self._stopped()
        for trial in others:
            study.add_trial(
                create_trial(state=state, values=told, params=trial.params, distributions=trial.distributions)
            )
        for own in self._open.values():
            study.add_trial(create_trial(state=TrialState.RUNNING, params=own.params, distributions=own.distributions))
        return study
