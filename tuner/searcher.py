"""The searcher: Optuna's ask and tell with the target as a constraint, two objectives, and honest states.

It knows nothing of Ray: whoever runs the trials asks, reports and tells. All that it knows is in Optuna's study, which
is kept in a file of the study's folder, so a search that died goes on where it was.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend

from search_spaces import Space
from tuner.goal_spaces import FINAL_SPARSITY
from tuner.records import TrialRecord, TrialState

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

_RECORD = "record"  # the user attribute that holds a trial's record
_METHOD = "method"


@dataclass(frozen=True)
class Asked:
    """A trial to run."""

    number: int
    method: str
    params: dict[str, Any]


class OptunaSearcher:
    """Proposes trials that maximise validation accuracy and sparsity, subject to sparsity >= target.

    Args:
        spaces: one for each method; with several, the method itself is a searched parameter and every method's
            parameters are named METHOD.PARAMETER in Optuna.
        target: the constraint, in [0, 1).
        sampler: one of tuner.config.SAMPLERS.
        seed: of the sampler.
        journal: Optuna's journal file; None keeps the study in memory. An existing file is continued.
        name: of the study in that file.
        turns: final sparsities, by the method, that the trials have to have in turn; none: the sampler chooses them.
    """

    def __init__(
        self,
        spaces: Sequence[Space],
        target: float,
        *,
        sampler: str = "tpe",
        seed: int = 0,
        journal: Path | None = None,
        name: str = "study",
        turns: Sequence[Mapping[str, float]] = (),
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("optuna").setLevel(logging.ERROR)
        self.target = target
        self.spaces = {space.method: space for space in spaces}
        self.study = _open_study(journal, name)
        trials = self.study.get_trials(deepcopy=False)
        begun = sum(trial.state is not optuna.trial.TrialState.WAITING for trial in trials)
        self.study.sampler = make_sampler(sampler, seed, begun)
        self._turns = turns
        self._running: dict[int, optuna.Trial] = {}
        self._left = self._unfinished()
        if not trials:
            for space in spaces:
                self._enqueue_first(space)

    def _unfinished(self) -> list[Asked]:
        """Trials that a search that died had begun: they are handed out again under their own numbers."""
        left = []
        for frozen in self.study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
            trial = optuna.Trial(self.study, frozen._trial_id)
            self._running[frozen.number] = trial
            left.append(self._suggest(trial))
        return left

    def _enqueue_first(self, space: Space) -> None:
        for point in space.first:
            named = {self._key(space.method, name): value for name, value in point.items()}
            self.study.enqueue_trial({**named, _METHOD: space.method} if len(self.spaces) > 1 else named)

    def _key(self, method: str, parameter: str) -> str:
        return f"{method}.{parameter}" if len(self.spaces) > 1 else parameter

    def ask(self) -> Asked:
        """The next trial to run: one that an earlier process left unfinished, else a new one."""
        if self._left:
            return self._left.pop(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's samplers warn on every call that they are experimental
            self._take_turns()
            trial = self.study.ask()
            self._running[trial.number] = trial
            return self._suggest(trial)

    def _take_turns(self) -> None:
        """Fixes the next trial's final sparsity where it is not the sampler's to choose; all else is."""
        if self._turns and not self.study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.WAITING]):
            turn = self._turns[len(self.study.get_trials(deepcopy=False)) % len(self._turns)]
            self.study.enqueue_trial({self._key(method, FINAL_SPARSITY): sparsity for method, sparsity in turn.items()})

    def _suggest(self, trial: optuna.Trial) -> Asked:
        """The trial's parameters; those already in the storage come from there."""
        method = (
            trial.suggest_categorical(_METHOD, list(self.spaces)) if len(self.spaces) > 1 else next(iter(self.spaces))
        )
        space = self.spaces[method]
        params = {
            name: _suggest(trial, self._key(method, name), distribution)
            for name, distribution in space.distributions.items()
        }
        return Asked(trial.number, method, {**params, **space.fixed})

    def tell(self, record: TrialRecord) -> None:
        """Ends a trial with its record's state: COMPLETE with both objectives and the constraint, PRUNED or FAIL.

        What a stopped trial had reached is kept in its record only, never as values that a sampler takes for a result.
        """
        trial = self._running.pop(record.number)
        trial.set_user_attr(_RECORD, record.to_dict())
        if record.state is TrialState.COMPLETED:
            assert record.val_accuracy is not None
            assert record.sparsity is not None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a crash between these two lines leaves the constraint, and it holds
                trial.set_constraint("target", self.target - record.sparsity)
            self.study.tell(trial, [record.val_accuracy, record.sparsity])
        elif record.state is TrialState.PRUNED:
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def finished(self) -> list[TrialRecord]:
        """The records of all ended trials, this process's and earlier ones', by number."""
        records = [
            TrialRecord.from_dict(frozen.user_attrs[_RECORD])
            for frozen in self.study.get_trials(deepcopy=False)
            if frozen.state.is_finished() and _RECORD in frozen.user_attrs
        ]
        return sorted(records, key=lambda record: record.number)

    def states(self) -> Mapping[int, str]:
        """Optuna's own state of every trial that was asked for, by number."""
        return {trial.number: trial.state.name for trial in self.study.get_trials(deepcopy=False)}


def _open_study(journal: Path | None, name: str) -> optuna.Study:
    """A new study, or the one that the journal holds, whatever its name: a study's folder may have been renamed."""
    storage = None
    if journal is not None:
        _drop_torn_line(journal)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
        names = optuna.get_all_study_names(storage)
        name = names[0] if names else name
    return optuna.create_study(
        storage=storage, study_name=name, directions=["maximize", "maximize"], load_if_exists=True
    )


def _drop_torn_line(journal: Path) -> None:
    """Cuts off a last line that a process died in: Optuna would write its next one behind it, and read neither."""
    text = journal.read_bytes() if journal.exists() else b""
    if text and not text.endswith(b"\n"):
        os.truncate(journal, text.rfind(b"\n") + 1)


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
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


def make_sampler(name: str, seed: int, begun: int = 0) -> BaseSampler:
    """One of Optuna's samplers, set up for two objectives and a constraint as far as it supports them.

    Args:
        begun: trials that earlier processes have begun: a sampler that starts over would propose the same again.
    """
    import numpy as np
    from optuna import samplers

    # QMC keeps its place in the sequence in the study itself, under its seed.
    if begun and name != "qmc":
        seed = int(np.random.SeedSequence([seed, begun]).generate_state(1)[0])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "tpe":
            # Multivariate, since p and the learning rates interact; constant_liar keeps parallel trials apart.
            return samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=8)
        if name == "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=8, deterministic_objective=False)
        if name == "nsgaii":
            return samplers.NSGAIISampler(seed=seed, population_size=16)
        if name == "qmc":
            return samplers.QMCSampler(seed=seed, scramble=True)
        return samplers.RandomSampler(seed=seed)
