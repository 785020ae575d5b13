"""Gives a sampler a small study of the trials whose sparsity is similar to that of the next trial."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_sparsity.search_spaces.priors import log_sparsity
from tune_sparsity.tuner.search.monotone import residuals
from tune_sparsity.tuner.search.sampler_view import OwnStudy, View, running_copy

LIKE, LIKE_SHARE = 24, 3
"""A sampler learns from 1 / LIKE_SHARE of the trials, those of the most similar sparsity, and at least from LIKE
trials."""


@dataclass(frozen=True)
class _Ended:
    """An ended trial from which the sampler learns."""

    number: int  # in the journal
    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]
    position: float  # the log_sparsity of its final sparsity
    merit: float | None  # None: the trial was stopped or failed


class LikeSparsityStudy(OwnStudy):
    """Lets a sampler learn from trials of similar sparsity, in a study of its own. A planner (tuner.search.planner)
    chooses the final sparsity of each trial before the sampler proposes the other parameters.

    For each new trial, the sampler gets a new study of Optuna. It contains the ended trials whose values of log(1 -
    sparsity) are most similar to that of the new trial. The value of a trial is its merit minus the merit that is
    expected at its sparsity. The expected merit is a non-increasing function of the sparsity, which is fitted to the
    other trials (`FallingFit`).

    Args:
        sampler: the sampler that proposes all parameters except the final sparsity.
        view: the trials and values that it sees.
        sparsity_of: a function that returns a trial's final sparsity. Its argument contains the parameters of the trial
            that are known so far, as a dict from their names in Optuna to their values.
        sparsities: the names of the parameters in Optuna that are final sparsities. The sampler does not see them.
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
        self._given: dict[int, dict[str, Any]] = {}  # the fixed parameters of trials for which nothing is proposed yet

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._given[trial.number] = {**trial.system_attrs.get("fixed_params", {}), **trial.params}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if (given := self._given.pop(trial.number, None)) is not None:
            self._study = self._near(log_sparsity(self._sparsity_of(given)))
            self._begin(trial.number, self._seen_params(given))
        return super().sample_independent(study, trial, param_name, param_distribution)

    def settle(self, trial: optuna.Trial) -> None:
        if self._given.pop(trial.number, None) is not None:  # all parameters are fixed, so the sampler proposes none
            self._study = self._new_study()
            self._begin(trial.number, {**self._view.centre, **self._seen_params(trial.params)})
        super().settle(trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        del self._open[trial.number]
        self._take(trial, values if state is TrialState.COMPLETE else None)

    def add(self, trials: Iterable[FrozenTrial]) -> None:
        for trial in trials:
            if trial.params:
                self._take(trial, trial.values)

    def _take(self, trial: FrozenTrial, values: Sequence[float] | None) -> None:
        seen = {**self._view.centre, **self._seen_params(trial.params)}
        known = {name: own for name, own in {**self._view.everything, **trial.distributions}.items() if name in seen}
        position = log_sparsity(self._sparsity_of(trial.params))
        self._ended.append(_Ended(trial.number, seen, known, position, None if values is None else values[0]))

    def _seen_params(self, named: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in named.items() if name not in self._sparsities}

    def _near(self, position: float) -> optuna.Study:
        """Return a new study for the sampler. It has the ended trials nearest to this position, which is -log(1 -
        sparsity), and the latest running trials. Equally near trials are sorted by number, because the order of the
        trials may change after a restart of the process."""

        def nearest(trials: list[_Ended]) -> list[_Ended]:
            most = max(LIKE, len(trials) // LIKE_SHARE)
            near = sorted(trials, key=lambda trial: (abs(trial.position - position), trial.number))
            return near[:most][: self._view.most]

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
            study.add_trial(running_copy(own))
        return study
