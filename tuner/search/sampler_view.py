"""Gives a sampler its own small study in memory, from which it learns quickly.

Optuna's study in the journal has two objectives (merit and sparsity) and contains all trials. The merit of a trial is
its metric, negated if it is minimised. A sampler that learned from this study would become slow: at each proposal it
would sort all trials by Pareto dominance and compute a kernel for each trial. The sampler's own study contains

- one objective: the merit. For a front or several targets, it is the merit minus the expected merit at the trial's
  sparsity;
- only the useful trials: the best and the latest ones, or those of similar sparsity;
- stopped and failed trials as bad results, so that the sampler avoids their parameters.
"""

from __future__ import annotations

import sys
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, Protocol, runtime_checkable

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_sparsity.tuner.search.samplers import OneByOne

CONSTRAINT = "target"
FOR_DASHBOARD = "constraints"
"""The system attribute of a trial in which Optuna's dashboard expects the constraints, as a list. The list repeats the
value of CONSTRAINT. Optuna itself would read it as another constraint, so it is hidden from samplers."""
_WORST = -2.0  # below all other values: feasible ones are above 0, and infeasible ones above -1


@dataclass(frozen=True)
class View:
    """Settings that define which trials and values a sampler sees.

    Attributes:
        constraint: whether the sampler itself handles the constraint that a trial reaches the target sparsity. If not,
            each infeasible trial gets a value below all feasible ones, and each stopped trial a value below all
            infeasible ones (Deb's rules, 2000). This suits samplers that compare only ranks.
        most: the largest number of ended trials in the sampler's study. If there are more, only the best and the latest
            trials are kept, and half of `most` are the best. None if all are kept, in one study, because the sampler
            stores its state in this study.
        running: the largest number of running trials. If there are more, the sampler sees only the latest ones.
        everything: a dict from names of parameters to distributions. In the sampler's study, each trial has all these
            parameters, including parameters that the trial itself does not use. This is for samplers that learn only
            from trials with the same parameters.
        centre: a dict from the names in `everything` to values. When an ended trial is added to the sampler's study,
            parameters that the trial does not use get these values.
    """

    constraint: bool = True
    most: int | None = 128
    running: int = sys.maxsize
    everything: Mapping[str, BaseDistribution] = field(default_factory=dict)
    centre: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Numbered(Protocol):
    """A sampler whose random numbers depend on the trial's number. After a restart of the process, it therefore makes
    the same proposals."""

    def begin(self, number: int) -> None:
        """Prepare to propose the parameters of trial `number`."""


class OwnStudy(OneByOne):
    """A sampler of Optuna that asks another sampler for all parameters. The other sampler learns from its own study,
    and not from the study in the journal.

    Args:
        sampler: the sampler that proposes the parameters.
        view: the trials and values that it sees.
    """

    def __init__(self, sampler: BaseSampler, view: View) -> None:
        self._sampler, self._view = sampler, view
        # Running trials in `_study`. The keys are the trials' numbers in the journal.
        self._open: dict[int, optuna.Trial] = {}
        self._study = self._new_study()

    def _new_study(self) -> optuna.Study:
        return optuna.create_study(sampler=self._sampler, direction=StudyDirection.MAXIMIZE)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return suggest(self._open[trial.number], param_name, param_distribution)

    def settle(self, trial: optuna.Trial) -> None:
        """Copy the parameters of a trial in the journal to its copy in the sampler's own study. Call this method when
        all parameters of the trial are chosen."""
        own = self._open[trial.number]
        for name, distribution in self._seen_params({**self._view.everything, **trial.distributions}).items():
            suggest(own, name, distribution)

    @abstractmethod
    def add(self, trials: Iterable[FrozenTrial]) -> None:
        """Add ended trials of an earlier process or of another study to the sampler's own study. They come in the order
        in which they ended."""

    def _seen_params(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of `named` that the sampler sees. `named` is a dict from parameters' names to their values or
        distributions."""
        return dict(named)

    def _begin(self, number: int, given: Mapping[str, Any]) -> None:
        if isinstance(self._sampler, Numbered):
            self._sampler.begin(number)
        if given:
            self._study.enqueue_trial(dict(given))
        self._open[number] = self._study.ask()

    def _stopped(self) -> tuple[TrialState, list[float] | None]:
        """Return the state and the values with which the sampler sees a trial that was stopped or failed."""
        return (TrialState.PRUNED, None) if self._view.constraint else (TrialState.COMPLETE, [_WORST])


class _Told(NamedTuple):
    """An ended trial as the sampler sees it."""

    rank: tuple[float, float]  # better trials have smaller ones
    number: int  # in the journal
    seen: FrozenTrial


class SamplingStudy(OwnStudy):
    """Lets a sampler learn from the best and the latest trials, in a study of its own.

    The trials in this study are sorted by their numbers in the journal. Which trials it has depends only on the ended
    trials, in the order of their ends, and on the running ones. So after a restart of the process, a sampler sees the
    same study as without the restart. (This does not hold if more than `View.running` trials have been running at the
    same time.)

    Args:
        sampler: the sampler that proposes the parameters.
        view: the trials and values that it sees.
    """

    def __init__(self, sampler: BaseSampler, view: View) -> None:
        super().__init__(sampler, view)
        self._best, self._later = list[_Told](), list[_Told]()  # the ended trials in `_study`, if `most` limits them
        self._highest = -1  # the highest number of all trials
        self._sorted = True

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Begin the trial also in the sampler's own study. Parameters that are already fixed keep their values: the
        parameters of an enqueued trial, and parameters that an earlier process has proposed."""
        if self._view.most is not None and (self._forget(self._view.most) or not self._sorted):
            self._rebuild()
        self._begin(trial.number, {**trial.system_attrs.get("fixed_params", {}), **trial.params})
        self._sorted = trial.number > self._highest
        self._highest = max(self._highest, trial.number)
        if len(self._open) > self._view.running:
            oldest = self._open.pop(next(iter(self._open)))
            self._study.tell(oldest, state=TrialState.FAIL)  # no sampler reads failed trials

    def settle(self, trial: optuna.Trial) -> None:
        """As `OwnStudy.settle`. Then replace the running trial by a copy without the attributes that a sampler gave it:
        TPE notes parameters that it proposed and that do not apply, and a restarted process would not know them."""
        super().settle(trial)
        if self._view.most is not None:
            own = self._open[trial.number]
            self._study.tell(own, state=TrialState.FAIL)
            self._study.add_trial(running_copy(own))
            (*_, copy) = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            self._open[trial.number] = optuna.Trial(self._study, copy._trial_id)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """End the trial also in the sampler's own study. The settings in `View` decide which state and which value the
        trial gets there."""
        seen = self._remembered(trial, state, values)
        own = self._open.pop(trial.number, None)
        if own is None:
            self._study.add_trial(seen)
        else:
            self._tell(own, seen)

    def _tell(self, own: optuna.Trial, seen: FrozenTrial) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, value in seen.constraints.items():
                own.set_constraint(name, value)
            self._study.tell(own, seen.values, state=seen.state)

    def add(self, trials: Iterable[FrozenTrial]) -> None:
        seen = [self._remembered(trial, trial.state, trial.values) for trial in trials if trial.params]
        self._study.add_trials(seen)
        self._sorted = False

    def _remembered(self, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> FrozenTrial:
        """Remember an ended trial. Return it as the sampler sees it."""
        seen = self._seen(trial, state, values)
        if self._view.most is not None:
            self._later.append(_Told(_rank(seen), trial.number, seen))
        self._highest = max(self._highest, trial.number)
        return seen

    def _told(
        self, state: TrialState, values: Sequence[float] | None, constraints: Mapping[str, float]
    ) -> tuple[TrialState, list[float] | None]:
        """Return the state and the values with which the sampler sees a trial."""
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

    def _forget(self, most: int) -> bool:
        """Forget trials that are neither among the best nor among the latest, if there are more than `most` ended
        trials. Return whether there were more.

        Several trials are forgotten at a time, so that the study is seldom rebuilt. Running trials do not count.
        Otherwise hundreds of them would leave no space for ended trials.
        """
        forgets = len(self._best) + len(self._later) > most
        while len(self._best) + len(self._later) > most:
            step = max(1, most // 4)
            self._best = nsmallest(most // 2, [*self._best, *self._later[:step]], key=attrgetter("rank"))
            del self._later[:step]
        return forgets

    def _rebuild(self) -> None:
        """Replace the sampler's own study by a new one, in which the trials are sorted."""
        running = dict(sorted(self._open.items()))
        trials = [(told.number, told.seen) for told in (*self._best, *self._later)]
        trials += [(number, running_copy(own)) for number, own in running.items()]
        self._study = self._new_study()
        self._study.add_trials([trial for _, trial in sorted(trials, key=itemgetter(0))])
        begun = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self._open = {
            number: optuna.Trial(self._study, own._trial_id) for number, own in zip(running, begun, strict=True)
        }


def running_copy(own: optuna.Trial) -> FrozenTrial:
    """Return a copy of a running trial, to be added to another study."""
    return create_trial(state=TrialState.RUNNING, params=own.params, distributions=own.distributions)


def suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    """Call Optuna's `suggest` method for this distribution, and return the value of the parameter."""
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
    """Return {CONSTRAINT: its value} of a trial. Return an empty dict if the trial does not have this constraint."""
    return {name: value for name, value in trial.constraints.items() if name == CONSTRAINT}


def _missing(constraints: Mapping[str, float]) -> float:
    """Return by how much a trial violates its constraints: the sum over all constraints, or 0 if the trial is
    feasible."""
    return sum(max(0.0, value) for value in constraints.values())


def _ranked(merit: float) -> float:
    """Return a number in (0, 1) that increases with the merit. It replaces the merit for samplers that compare only
    ranks."""
    return 0.5 + 0.5 * merit / (1 + abs(merit))


def _rank(trial: FrozenTrial) -> tuple[float, float]:
    """Return a sort key. Feasible trials come first, the best of them at the front, then infeasible trials, and then
    stopped trials."""
    if trial.state is not TrialState.COMPLETE:
        return 2.0, 0.0
    missing = _missing(trial.constraints)
    return (1.0, missing) if missing > 0 else (0.0, -trial.values[0])
