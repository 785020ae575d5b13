"""Gives a sampler its own small study in memory, from which it learns quickly.

The record is Optuna's study in the journal. It has two objectives and keeps all trials. A sampler that learned from the
record would become slow: at each proposal it would sort all trials by domination and compute a kernel for each. Its own
study contains

- one objective: the merit, or with several sparsities, the merit minus the expected merit at the trial's sparsity;
- only the useful trials: the best and the latest ones, or those of similar sparsity;
- stopped and failed trials as bad results, so that the sampler avoids their parameters.
"""

from __future__ import annotations

import sys
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
"""The system attribute of a trial in which Optuna's dashboard expects the constraints, as a list. It contains
CONSTRAINT a second time. Optuna reads it as another constraint, which is hidden from samplers."""
LIKE, LIKE_SHARE = 24, 3
"""A sampler learns from the third (LIKE_SHARE) of the trials that is nearest in sparsity, and at least from LIKE
trials."""
_WORST = -2.0  # below all other values: feasible ones are above 0, and infeasible ones above -1


@dataclass(frozen=True)
class View:
    """Defines the trials and values that a sampler sees.

    Attributes:
        constraint: whether the sampler handles the constraint itself. If not, each infeasible trial gets a value below
            all feasible ones, and each stopped trial a value below all infeasible ones (Deb's rules, 2000). This suits
            samplers that compare only ranks.
        most: the largest number of ended trials. Above it, the `best` ones and the latest ones are kept.
        best: the number of best trials that are kept.
        running: the largest number of running trials. Above it, only the latest ones are seen.
        everything: distributions of parameters that each trial gets, even if a parameter does not apply in it. This is
            for samplers that learn only from trials with the same parameters.
        centre: the values for parameters in `everything` that a trial of another study does not have.
    """

    constraint: bool = True
    most: int = 256
    best: int = 64
    running: int = sys.maxsize
    everything: Mapping[str, BaseDistribution] = field(default_factory=dict)
    centre: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Numbered(Protocol):
    """A sampler whose random numbers depend on the trial's number. Its proposals are then the same after a restart of
    the process."""

    def begin(self, number: int) -> None:
        """Prepare to propose the parameters of trial `number`."""


class OwnStudy(OneByOne):
    """A sampler for the record that asks another sampler for all parameters. The other sampler has its own study.

    Args:
        sampler: the sampler that proposes the parameters.
        view: the trials and values that it sees.
    """

    def __init__(self, sampler: BaseSampler, view: View) -> None:
        self._sampler, self._view = sampler, view
        self._open: dict[int, optuna.Trial] = {}  # the running trials that are seen, by their numbers in the record
        self._study = self._new_study()

    def _new_study(self) -> optuna.Study:
        return optuna.create_study(sampler=self._sampler, direction=StudyDirection.MAXIMIZE)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return suggest(self._open[trial.number], param_name, param_distribution)

    def settle(self, trial: optuna.Trial) -> None:
        """Copy the parameters of the record's trial, which are now complete, to the trial in the sampler's own
        study."""
        own = self._open[trial.number]
        for name, distribution in self._seen_params({**self._view.everything, **trial.distributions}).items():
            suggest(own, name, distribution)

    @abstractmethod
    def add(self, trials: Iterable[FrozenTrial]) -> None:
        """Add trials that ended in an earlier process or in another study."""

    def _seen_params(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters, or their distributions, that the sampler sees, by name."""
        return dict(named)

    def _begin(self, number: int, given: Mapping[str, Any]) -> None:
        if isinstance(self._sampler, Numbered):
            self._sampler.begin(number)
        if given:
            self._study.enqueue_trial(dict(given))
        self._open[number] = self._study.ask()

    def _stopped(self) -> tuple[TrialState, list[float] | None]:
        """Return the state and the values that the sampler sees for a trial that was stopped or failed."""
        return (TrialState.PRUNED, None) if self._view.constraint else (TrialState.COMPLETE, [_WORST])


class SamplingStudy(OwnStudy):
    """Lets the sampler learn from the best and the latest trials."""

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Begin the trial in the sampler's own study too. Parameters that are fixed already, by an enqueued point or an
        earlier process, are kept."""
        self._begin(trial.number, {**trial.system_attrs.get("fixed_params", {}), **trial.params})
        if len(self._open) > self._view.running:
            oldest = self._open.pop(next(iter(self._open)))
            self._study.tell(oldest, state=TrialState.FAIL)  # no sampler reads failed trials

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """End the trial in the sampler's own study too, with the values that the sampler sees."""
        own = self._open.pop(trial.number, None)
        if own is None:
            self._study.add_trial(self._seen(trial, state, values))
        else:
            self._tell(own, trial, state, values)
        self._forget()

    def _tell(self, own: optuna.Trial, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        state, told = self._told(state, values, _constraint(trial))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if state is TrialState.COMPLETE and self._view.constraint:
                for name, value in _constraint(trial).items():
                    own.set_constraint(name, value)
            self._study.tell(own, told, state=state)

    def add(self, trials: Iterable[FrozenTrial]) -> None:
        for trial in trials:
            if trial.params:
                self._study.add_trial(self._seen(trial, trial.state, trial.values))
        self._forget()

    def _told(
        self, state: TrialState, values: Sequence[float] | None, constraints: Mapping[str, float]
    ) -> tuple[TrialState, list[float] | None]:
        """Return the state and the values of a trial as the sampler sees them."""
        if state is TrialState.COMPLETE:
            assert values is not None
            missing = _missing(constraints)
            if self._view.constraint:
                return state, [values[0]]
            return state, [_ranked(values[0]) if missing <= 0 else -missing]
        return self._stopped()

    def _seen(self, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> FrozenTrial:
        state, told = self._told(state, values, _constraint(trial))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return create_trial(
                state=state,
                values=told,
                params={**self._view.centre, **trial.params},
                distributions={**self._view.everything, **trial.distributions},
                constraints=_constraint(trial) if state is TrialState.COMPLETE and self._view.constraint else None,
            )

    def _forget(self) -> None:
        """Replace a study that has become too large by a new one with the best and the latest trials. Running trials
        are kept and not counted: otherwise hundreds of them would leave no room for ended trials."""
        ended = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        if len(ended) <= self._view.most:
            return
        ranked = sorted(zip(_ranks(ended), range(len(ended)), strict=True))
        keep = {index for _, index in ranked[: self._view.best]}
        recent = [index for index in reversed(range(len(ended))) if index not in keep]
        keep |= set(recent[: max(0, self._view.most * 3 // 4 - len(keep))])
        self._study = self._new_study()
        self._study.add_trials([ended[index] for index in sorted(keep)])
        self._study.add_trials([_running(own) for own in self._open.values()])
        begun = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self._open = {
            number: optuna.Trial(self._study, own._trial_id) for number, own in zip(self._open, begun, strict=True)
        }


def _running(own: optuna.Trial) -> FrozenTrial:
    """Return a copy of a running trial, to be added to another study."""
    return create_trial(state=TrialState.RUNNING, params=own.params, distributions=own.distributions)


def suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    """Return the value that Optuna suggests for a parameter with this distribution."""
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
    """Return the value of CONSTRAINT by its name; an empty dict if the trial has none."""
    return {name: value for name, value in trial.constraints.items() if name == CONSTRAINT}


def _missing(constraints: Mapping[str, float]) -> float:
    """Return the sum of a trial's violations of its constraints; 0 if the trial is feasible."""
    return sum(max(0.0, value) for value in constraints.values())


def _ranked(merit: float) -> float:
    """Return a number in (0, 1) that rises with the merit, for samplers that compare only ranks."""
    return 0.5 + 0.5 * merit / (1 + abs(merit))


def _ranks(trials: Sequence[FrozenTrial]) -> list[tuple[float, float]]:
    """Return a key for each trial that sorts the best first: feasible trials by value, then infeasible ones, then
    stopped ones."""
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
    """An ended trial from which the sampler learns."""

    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]
    position: float  # the log_sparsity of its final sparsity
    merit: float | None  # None: the trial was stopped or failed


class LikeSparsityStudy(OwnStudy):
    """Lets the sampler learn from trials of similar sparsity. A planner chooses the final sparsity of each trial first.

    For each new trial the sampler gets a new study. It contains the ended trials that are nearest in the logarithm of
    the density. The value of a trial is its merit minus the monotone fit of the other trials, so the effect of sparsity
    is removed.

    Args:
        sampler: the sampler that proposes all parameters except the final sparsity.
        view: the trials and values that it sees.
        sparsity_of: returns a trial's final sparsity from those of its parameters in the record that are fixed so far.
        sparsities: the names of the final sparsity in the record. The sampler does not see these parameters.
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
        """Return a study with the ended trials nearest to this position, and with the latest running trials."""

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
        for own in list(self._open.values())[-self._view.running :]:
            study.add_trial(_running(own))
        return study
