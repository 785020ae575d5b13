"""Searches with Optuna: proposes trials and receives their results. Merit and sparsity are the two objectives, and the
target sparsity is a constraint. The merit is the metric, negated if it is minimised.

The searcher's whole state is in a study of Optuna. The file of Optuna's study, the journal, is in the study's folder. A
study can therefore be resumed, and Optuna's dashboard can open the journal. Some samplers learn from another, small
study of Optuna in memory (tuner.search.sampler_view). The searcher does not need Ray.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import KeysView, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, create_trial

from tune_sparsity.search_spaces import Prior, Space
from tune_sparsity.tuner.search.journal import RECORD, Journal, RecordStorage, read_records
from tune_sparsity.tuner.search.like_sparsity import LikeSparsityStudy
from tune_sparsity.tuner.search.planner import Planner
from tune_sparsity.tuner.search.sampler_view import (
    CONSTRAINT,
    FOR_DASHBOARD,
    OwnStudy,
    SamplingStudy,
    View,
    suggest,
)
from tune_sparsity.tuner.search.samplers import DEFAULT_SAMPLER, SAMPLERS, SamplerKind, check_sampler, make_sampler
from tune_sparsity.tuner.search.warm_start import WarmStart
from tune_sparsity.tuner.study.objective import ACCURACY, Objective
from tune_sparsity.tuner.study.pareto import known_point
from tune_sparsity.tuner.study.trial import FINAL_SPARSITY, TrialRecord, TrialState, trial_name

_METHOD = "method"
_CONFIGURATION = "configuration"  # an attribute of a trial: the name of the configuration that it repeats
_EARLIER = "earlier"  # an attribute of the study: the records of trials from other studies


@dataclass(frozen=True)
class Asked:
    """A trial that the search proposes: its number, method and parameters."""

    number: int
    method: str
    params: dict[str, Any]


class OptunaSearcher:
    """Proposes trials that maximise merit and sparsity, subject to sparsity >= target. The merit is the metric, negated
    if it is minimised.

    Args:
        spaces: one search space for each method. If there are several, the method itself is a parameter, and the
            parameters of each method are named METHOD.PARAMETER in Optuna.
        target: the lowest feasible sparsity, in [0, 1).
        sampler: a name in tuner.search.samplers.SAMPLERS.
        seed: the seed of the sampler.
        journal: Optuna's journal file. If the file exists, its study is continued. If None, the study is only in
            memory.
        name: the name of a new study in the journal.
        planner: chooses the final sparsity of each trial, for a front or several targets. If None, the sampler proposes
            the sparsity, too, and looks for the feasible trial with the best merit.
        earlier: trials and parameters of earlier studies. They are used only in a new study, and are stored in its
            journal.
        objective: the metric that gives the merit.

    Raises:
        ValueError: if the sampler cannot do this search. The message names the samplers that can.
    """

    def __init__(
        self,
        spaces: Sequence[Space],
        target: float,
        *,
        sampler: str = DEFAULT_SAMPLER,
        seed: int = 0,
        journal: Path | None = None,
        name: str = "study",
        planner: Planner | None = None,
        earlier: WarmStart | None = None,
        objective: Objective = ACCURACY,
    ) -> None:
        check_sampler(sampler, front=planner is not None, methods=len(spaces))
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("optuna").setLevel(logging.ERROR)
        self.target = target
        self.spaces = {space.method: space for space in spaces}
        file = None if journal is None else Journal(journal)
        self._together = nullcontext if file is None else file.together
        self.study = _open_study(file, name)
        trials = self.study.get_trials(deepcopy=False)
        self._count = len(trials)  # the trials that have begun or wait
        begun = sum(trial.state is not optuna.trial.TrialState.WAITING for trial in trials)
        inner = make_sampler(sampler, seed, self._priors(), begun)
        self._planner = planner
        self._sampling = self._sampling_study(inner, SAMPLERS[sampler])
        self.study.sampler = self._sampling or inner
        if not trials:
            with self._together():
                self._name_values(objective)
                self._line_up(earlier or WarmStart())
        ended = [trial for trial in trials if trial.state.is_finished()]
        if self._sampling is not None:
            self._sampling.add(self._earlier())
            self._sampling.add(sorted(ended, key=_elapsed))
        for trial in ended:
            self._begun(trial.params)
            self._ended(trial)
        self._running: dict[int, optuna.Trial] = {}
        self._left = self._unfinished()

    def _unfinished(self) -> list[Asked]:
        """Return the trials that an earlier process has begun but not ended. `ask` returns these trials again, with
        their numbers."""
        left = []
        for frozen in self.study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
            trial = optuna.Trial(self.study, frozen._trial_id)
            self._running[frozen.number] = trial
            left.append(self._suggest(trial))
        return left

    def _name_values(self, objective: Objective) -> None:
        """Set the names of the two objectives for Optuna's plots. The name of a metric to minimise begins with
        "minus_"."""
        merit = objective.val if objective.maximize else f"minus_{objective.val}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study.set_metric_names([merit, "sparsity"])

    def _line_up(self, earlier: WarmStart) -> None:
        """Enqueue the first trials of a new study: first the best parameters of earlier studies, then the first points
        of the search spaces.

        First points are used only without a planner, and without trials of earlier studies. The trials of earlier
        studies are stored in an attribute of the study, because they are not trials of this study.
        """
        self.study.set_user_attr(_EARLIER, [record.to_dict() for record in earlier.trials])
        for method, point in earlier.points:
            self._enqueue(method, point)
        if not earlier.trials and self._planner is None:
            for space in self.spaces.values():
                for point in space.first_for(self.target):
                    self._enqueue(space.method, point)

    def _earlier(self) -> list[FrozenTrial]:
        """Return the trials of earlier studies as trials of Optuna, from which the sampler learns."""
        return [self._frozen(TrialRecord.from_dict(data)) for data in self.study.user_attrs.get(_EARLIER, [])]

    @property
    def _has_earlier(self) -> bool:
        return bool(self.study.user_attrs.get(_EARLIER))

    def _frozen(self, record: TrialRecord) -> FrozenTrial:
        space = self.spaces[record.method]
        searched = {name: value for name, value in record.params.items() if name in space.distributions}
        params = {self._key(record.method, name): value for name, value in searched.items()}
        distributions = {self._key(record.method, name): space.distributions[name] for name in searched}
        if len(self.spaces) > 1:
            params[_METHOD] = record.method
            distributions[_METHOD] = CategoricalDistribution(list(self.spaces))
        complete = record.state is TrialState.COMPLETED
        return create_trial(
            state=optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.PRUNED,
            values=_values(record) if complete else None,
            constraints={CONSTRAINT: self.target - _values(record)[1]} if complete else None,
            params=params,
            distributions=distributions,
        )

    def _enqueue(self, method: str, point: Mapping[str, Any]) -> None:
        named = {self._key(method, name): value for name, value in point.items()}
        self.study.enqueue_trial({**named, _METHOD: method} if len(self.spaces) > 1 else named)

    def _priors(self) -> dict[str, Prior]:
        """Return a dict from the names in Optuna of all parameters to the parameters' priors."""
        return {
            self._key(method, name): prior
            for method, space in self.spaces.items()
            for name, prior in space.priors.items()
        }

    def _sampling_study(self, sampler: BaseSampler, kind: SamplerKind) -> OwnStudy | None:
        """Return the small study from which the sampler learns. Return None if the sampler learns from the study in the
        journal.

        A sampler that cannot search several methods sees all parameters in each trial.
        """
        if not kind.own_study:
            return None
        sparsities = {self._key(method, FINAL_SPARSITY) for method in self.spaces}
        everything: dict[str, BaseDistribution] = {}
        centre: dict[str, Any] = {}
        if not kind.methods:
            space = next(iter(self.spaces.values()))
            everything, centre = space.distributions, space.centre()
        if self._planner is None:
            return SamplingStudy(
                sampler, View(kind.constraint, kind.most, running=kind.running, everything=everything, centre=centre)
            )
        everything, centre = ({k: v for k, v in one.items() if k not in sparsities} for one in (everything, centre))
        view = View(kind.constraint, kind.most, running=kind.running, everything=everything, centre=centre)
        return LikeSparsityStudy(sampler, view, self._sparsity_of, sparsities)

    def _method_of(self, params: Mapping[str, Any]) -> str | None:
        """Return the method of a trial from its parameters in Optuna; None if no method is chosen yet."""
        return params.get(_METHOD) if len(self.spaces) > 1 else next(iter(self.spaces))

    def _sparsity_of(self, params: Mapping[str, Any]) -> float:
        """Return the final sparsity of a trial from its parameters in Optuna. If no method is chosen yet, return the
        final sparsity for any of the methods."""
        method = self._method_of(params)
        methods = self.spaces if method is None else [method]
        found = (params.get(self._key(one, FINAL_SPARSITY)) for one in methods)
        fixed = (self.spaces[one].fixed.get(FINAL_SPARSITY) for one in methods)
        return next((float(one) for one in (*found, *fixed) if one is not None), 0.0)

    def _key(self, method: str, parameter: str) -> str:
        return f"{method}.{parameter}" if len(self.spaces) > 1 else parameter

    def ask(self) -> Asked:
        """Return the next trial to run: a trial that an earlier process has not ended, or a new trial."""
        if self._left:
            return self._left.pop(0)
        with self._together(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's samplers warn on every call that they are experimental
            self._take_turns()
            trial = self.study.ask()
            self._count = max(self._count, trial.number + 1)
            self._running[trial.number] = trial
            return self._suggest(trial)

    def _take_turns(self) -> None:
        """Ask the planner for the next trial, and enqueue its choices. The sampler proposes the other parameters."""
        if self._planner is None:
            return
        if self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)):
            return
        plan = self._planner.plan(self._count, first_points=not self._has_earlier)
        if plan is None:
            return
        given: dict[str, Any] = {
            self._key(method, FINAL_SPARSITY): sparsity for method, sparsity in plan.sparsities.items()
        }
        if plan.method is not None and len(self.spaces) > 1:
            given[_METHOD] = plan.method
        if plan.method is not None and plan.configuration is not None:
            given |= {self._key(plan.method, name): value for name, value in plan.configuration.params.items()}
        self.study.enqueue_trial(given, {_CONFIGURATION: plan.configuration.name} if plan.configuration else None)

    def _begun(self, params: Mapping[str, Any]) -> None:
        """Report a trial that has begun to the planner.

        Args:
            params: a dict from the names in Optuna of the trial's parameters to their values.
        """
        method = self._method_of(params)
        if self._planner is not None and method is not None and (key := self._key(method, FINAL_SPARSITY)) in params:
            self._planner.begun(method, params[key])

    def _ended(self, trial: FrozenTrial) -> None:
        """Report an ended trial to the planner. Failed trials are not reported."""
        method = self._method_of(trial.params)
        if self._planner is None or method is None or trial.state is optuna.trial.TrialState.FAIL:
            return
        space, prefix = self.spaces[method], self._key(method, "")
        named = {key.removeprefix(prefix): value for key, value in trial.params.items()}
        params = {name: value for name, value in named.items() if name in space.distributions}
        configuration = trial.user_attrs.get(_CONFIGURATION) or trial_name(trial.number)
        merit, sparsity = trial.values or (None, self._sparsity_of(trial.params))
        self._planner.ended(method, params, configuration, sparsity, merit)

    def _suggest(self, trial: optuna.Trial) -> Asked:
        """Return the trial with all its parameters. Parameters that are already in the journal do not change."""
        method = (
            trial.suggest_categorical(_METHOD, list(self.spaces)) if len(self.spaces) > 1 else next(iter(self.spaces))
        )
        space = self.spaces[method]
        params: dict[str, Any] = {}
        for name, distribution in space.distributions.items():
            if space.applies(name, params):
                params[name] = suggest(trial, self._key(method, name), distribution)
        if self._sampling is not None:
            self._sampling.settle(trial)
        self._begun(trial.params)
        return Asked(trial.number, method, {**params, **space.fixed_for(params)})

    def tell(self, record: TrialRecord) -> None:
        """End a trial in Optuna, as complete, pruned or failed. A complete trial gets the values of both objectives and
        of the constraint.

        A pruned trial, which was stopped early, gets no values. Otherwise a sampler would learn from the values of its
        last epoch as if the trial were complete.

        Args:
            record: the ended trial.
        """
        with self._together():
            self._tell(self._running.pop(record.number), record)

    def _tell(self, trial: optuna.Trial, record: TrialRecord) -> None:
        trial.set_user_attr(RECORD, record.to_dict())
        if record.state is TrialState.COMPLETED:
            values = _values(record)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # The constraint comes before the values: if the process ends between the two, the constraint is
                # correct.
                missing = self.target - values[1]
                trial.set_constraint(CONSTRAINT, missing)
                trial.storage.set_trial_system_attr(trial._trial_id, FOR_DASHBOARD, [missing])
            self.study.tell(trial, values)
        elif record.state is TrialState.PRUNED:
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        if self._planner is not None:
            self._ended(trial.storage.get_trial(trial._trial_id))

    @property
    def running(self) -> KeysView[int]:
        """Return the numbers of the trials that have begun but not ended, including trials of an earlier process. The
        result is a live view: it changes with the search. Other threads may read it."""
        return self._running.keys()

    def finished(self) -> list[TrialRecord]:
        """Return the records of all ended trials, including those of earlier processes, ordered by number."""
        return read_records(self.study)

    def states(self) -> Mapping[int, str]:
        """Return a dict from the number of each trial to the name of the trial's state in Optuna."""
        return {trial.number: trial.state.name for trial in self.study.get_trials(deepcopy=False)}


def _elapsed(trial: FrozenTrial) -> float:
    """Return the seconds that the study had run when a trial ended."""
    return float(trial.user_attrs.get(RECORD, {}).get("elapsed", 0.0))


def _values(record: TrialRecord) -> list[float]:
    """Return the two values of a completed trial that Optuna maximises: merit and sparsity."""
    sparsity, merit = known_point(record)
    return [merit, sparsity]


def _open_study(journal: Journal | None, name: str) -> optuna.Study:
    """Return the study in the journal. If there is none, return a new study with this name. The study in the journal
    may have another name, if its folder was renamed."""
    storage = None
    if journal is not None:
        storage = RecordStorage(journal)
        names = optuna.get_all_study_names(storage)
        name = names[0] if names else name
    return optuna.create_study(
        storage=storage, study_name=name, directions=["maximize", "maximize"], load_if_exists=True
    )
