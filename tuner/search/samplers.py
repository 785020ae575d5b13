"""Defines the samplers of Optuna that a study can use, and their settings. Some samplers need completed trials to learn
from. Until there are enough of them, the parameters of trials are drawn from priors."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna import samplers
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_sparsity.search_spaces import Prior
from tune_sparsity.search_spaces.priors import draw

DEFAULT_SAMPLER = "tpe"
Learn = Callable[[int, Sequence[FrozenTrial], BaseSampler], BaseSampler]
"""A function that makes a sampler. Its arguments are the seed, the study's completed trials so far, and another sampler
for parameters that the new sampler cannot propose."""


@dataclass(frozen=True)
class SamplerKind:
    """Describes a sampler: its abilities and its settings.

    Attributes:
        what: a description of one line, which `tune-sparsity list samplers` prints.
        learn: a function that makes the sampler. Its arguments are those of `Learn`.
        front: whether the sampler can search a front, or several targets, in one study.
        methods: whether the sampler can search several methods in one study.
        own_study: whether the sampler learns from a small study of its own (tuner.search.sampler_view) instead of the
            study in the journal.
        constraint: whether the sampler itself handles the constraint that a trial reaches the target sparsity. If not,
            an infeasible trial gets a value below all feasible ones (Deb's rule).
        most: the largest number of ended trials in its own study. None if it needs all in one study, see `View.most`.
        running: the largest number of running trials in its own study.
        startup: the number of completed trials before the sampler learns. Until then, parameters are drawn from the
            priors.
        anew: whether the proposals depend only on the trials, so that a resumed search makes the same proposals as an
            uninterrupted search. If `startup` is not 0, a new sampler is then made for each trial. If it is 0, the
            sampler must itself be of this kind, as `EvenSampler` is.
    """

    what: str
    learn: Learn
    front: bool = True
    methods: bool = True
    own_study: bool = False
    constraint: bool = True
    most: int | None = None
    running: int = sys.maxsize
    startup: int = 0
    anew: bool = False


def _tpe(seed: int, trials: Sequence[FrozenTrial], independent: BaseSampler) -> BaseSampler:
    # multivariate, because p and the learning rates interact; group, because some parameters apply only for certain
    # values of others; constant_liar, because parallel trials should differ.
    return samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=0)


def _gp(seed: int, trials: Sequence[FrozenTrial], independent: BaseSampler) -> BaseSampler:
    return samplers.GPSampler(
        seed=seed, independent_sampler=independent, n_startup_trials=0, warn_independent_sampling=False
    )


def _cmaes(seed: int, trials: Sequence[FrozenTrial], independent: BaseSampler) -> BaseSampler:
    # CMA-ES begins at the best trials so far (warm-starting CMA-ES, arXiv 2012.06932). These may be trials of another
    # study, or of an earlier process.
    return samplers.CmaEsSampler(
        seed=seed,
        independent_sampler=independent,
        source_trials=[_numbers_of(trial) for trial in trials],
        warn_independent_sampling=False,
    )


def _numbers_of(trial: FrozenTrial) -> FrozenTrial:
    """Return the trial with only its numeric parameters, because CMA-ES searches only these."""
    numeric = {
        name: distribution
        for name, distribution in trial.distributions.items()
        if not isinstance(distribution, CategoricalDistribution) and not distribution.single()
    }
    params = {name: trial.params[name] for name in numeric}
    return create_trial(state=trial.state, value=trial.value, params=params, distributions=numeric)


SAMPLERS = {
    "tpe": SamplerKind(
        "tree-structured Parzen estimator: for any goal and for one or several methods",
        _tpe,
        own_study=True,
        most=128,
        running=64,
        startup=8,
        anew=True,
    ),
    "gp": SamplerKind(
        "Gaussian process: for any goal and for one method; it proposes slowly, so use it for long trials",
        _gp,
        methods=False,
        own_study=True,
        most=128,
        running=64,
        startup=8,
    ),
    "nsgaii": SamplerKind(
        "genetic algorithm: for any goal and for one or several methods; it needs hundreds of trials",
        lambda seed, trials, independent: samplers.NSGAIISampler(seed=seed, population_size=16),
    ),
    "cmaes": SamplerKind(
        "evolution strategy: for one target and one method; it draws parameters that are not numbers from the priors",
        _cmaes,
        front=False,
        methods=False,
        own_study=True,
        constraint=False,
        startup=10,  # CMA-ES begins at the best tenth of the trials, which must be at least one trial
    ),
    "qmc": SamplerKind(
        "quasi-random: covers the space evenly; does not learn from trials",
        lambda seed, trials, independent: samplers.QMCSampler(
            seed=seed, scramble=True, independent_sampler=independent, warn_independent_sampling=False
        ),
    ),
    "random": SamplerKind(
        "independent draws: does not learn from trials",
        lambda seed, trials, independent: EvenSampler({}, seed),
        anew=True,
    ),
}


def check_sampler(name: str, *, front: bool, methods: int) -> None:
    """Check that a sampler can do the study's search.

    Args:
        name: the sampler's name.
        front: whether the study searches a front or several targets.
        methods: the number of methods in the study.

    Raises:
        ValueError: if the sampler cannot do this search. The message names the samplers that can.
    """
    kind = SAMPLERS[name]
    if front and not kind.front:
        raise ValueError(
            f"--sampler {name} cannot search several sparsities, because it has one objective: "
            f"{_those(lambda k: k.front)} can"
        )
    if methods > 1 and not kind.methods:
        raise ValueError(
            f"--sampler {name} cannot search several methods in one study: {_those(lambda k: k.methods)} can"
        )


def _those(can: Callable[[SamplerKind], bool]) -> str:
    names = [name for name, kind in SAMPLERS.items() if can(kind)]
    return f"{', '.join(names[:-1])} and {names[-1]}"


class OneByOne(BaseSampler):
    """A sampler that Optuna asks for one parameter after the other."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}


class PriorSampler(OneByOne):
    """Draws each parameter from its prior. Without a prior, the distribution is uniform.

    Args:
        priors: a dict from the parameters' names in Optuna to the priors.
        seed: the seed of the random numbers.
    """

    def __init__(self, priors: Mapping[str, Prior], seed: int) -> None:
        self._priors, self._seed = priors, seed
        self._rng = np.random.default_rng(seed)

    def begin(self, number: int) -> None:
        """Reset the random numbers for trial `number`, so that they do not depend on earlier trials."""
        self._rng = np.random.default_rng([self._seed, number])

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return draw(param_distribution, self._priors.get(param_name), self._rng)


class EvenSampler(PriorSampler):
    """Draws the parameters of each trial from random numbers that depend only on the seed and the trial's number."""

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.begin(trial.number)


class PriorsFirst(BaseSampler):
    """Draws from the priors until `startup` trials have completed. After that, a sampler that learns from the trials
    proposes the parameters.

    Args:
        learn: a function that makes the sampler that learns.
        priors: a dict from the parameters' names in Optuna to the priors.
        startup: the number of completed trials before the sampler learns.
        seed: the seed from which the sampler of the priors and the sampler that learns get their seeds.
        anew: whether a new learning sampler is made for each trial. If not, it is made once.
    """

    def __init__(
        self, learn: Learn, priors: Mapping[str, Prior], startup: int, seed: int, *, anew: bool = False
    ) -> None:
        first, self._seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
        self._independent = PriorSampler(priors, first)
        self._learn, self._startup, self._anew = learn, startup, anew
        self._learned: BaseSampler | None = None
        self._number = 0

    def begin(self, number: int) -> None:
        """Prepare to propose the parameters of the trial with this number in the journal."""
        self._number = number
        if self._anew:
            self._independent.begin(number)

    @property
    def _sampler(self) -> BaseSampler:
        return self._learned or self._independent

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        if self._learned is None or self._anew:
            done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if len(done) >= self._startup:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    self._learned = self._learn(self._seed_now(), done, self._independent)
        self._sampler.before_trial(study, trial)

    def _seed_now(self) -> int:
        return _mixed(self._seed, self._number) if self._anew else self._seed

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._sampler.after_trial(study, trial, state, values)


def make_sampler(name: str, seed: int, priors: Mapping[str, Prior], begun: int = 0) -> BaseSampler:
    """Return the sampler with this name.

    Args:
        name: a key of SAMPLERS.
        seed: the study's seed.
        priors: a dict from the parameters' names in Optuna to the priors.
        begun: the number of trials that earlier processes of this study have begun. If it is not 0, some samplers get
            another seed, because they would otherwise propose the first trials again.
    """
    kind = SAMPLERS[name]
    fresh = _mixed(seed, begun) if begun and not kind.anew else seed
    if kind.startup:
        return PriorsFirst(kind.learn, priors, kind.startup, fresh, anew=kind.anew)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # After a restart, QMC needs the same seed: the key under which Optuna stores the position in the sequence
        # depends on the seed.
        return kind.learn(seed if name == "qmc" else fresh, (), PriorSampler(priors, fresh))


def _mixed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
