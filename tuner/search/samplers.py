"""Optuna's samplers by name: what each can do, how it is set up, and how priors lead its first trials."""

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
"""(seed, the study's completed trials so far, an independent sampler) -> the sampler for what follows."""


@dataclass(frozen=True)
class SamplerKind:
    """A sampler and what it can do.

    Attributes:
        what: in one line, for `tune-sparsity list samplers`.
        front: whether it can serve a study of several sparsities, as a whole front is. A sampler that cannot searches
            the best merit at one target.
        methods: whether it can search several methods in one study.
        own_study: whether it learns from a study of its own (tuner.search.sampler_view) instead of from the record.
        constraint: whether it takes the constraint itself. Where it does not, an infeasible trial is told to it as
            worse than every feasible one (Deb's rule).
        most: trials that it sees; see tuner.search.sampler_view.
        startup: trials from the priors before it learns.
        anew: whether it is made anew for every trial, keeping nothing but the trials themselves: a search that goes on
            after a crash then proposes what it would have proposed.
        learn: makes the sampler.
    """

    what: str
    learn: Learn
    front: bool = True
    methods: bool = True
    own_study: bool = False
    constraint: bool = True
    most: int = sys.maxsize
    startup: int = 0
    anew: bool = False


def _tpe(seed: int, trials: Sequence[FrozenTrial], independent: BaseSampler) -> BaseSampler:
    # Multivariate, since p and the learning rates interact; grouped, since some apply only beside others;
    # constant_liar keeps parallel trials apart.
    return samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=0)


def _gp(seed: int, trials: Sequence[FrozenTrial], independent: BaseSampler) -> BaseSampler:
    return samplers.GPSampler(
        seed=seed, independent_sampler=independent, n_startup_trials=0, warn_independent_sampling=False
    )


def _cmaes(seed: int, trials: Sequence[FrozenTrial], independent: BaseSampler) -> BaseSampler:
    # Begins where the best trials so far lie (warm-starting CMA-ES, arXiv 2012.06932): after the first trials, after a
    # restart, and after another study's trials.
    return samplers.CmaEsSampler(
        seed=seed,
        independent_sampler=independent,
        source_trials=[_numbers_of(trial) for trial in trials],
        warn_independent_sampling=False,
    )


def _numbers_of(trial: FrozenTrial) -> FrozenTrial:
    """Return the trial with those parameters only that CMA-ES searches."""
    numeric = {
        name: distribution
        for name, distribution in trial.distributions.items()
        if not isinstance(distribution, CategoricalDistribution) and not distribution.single()
    }
    params = {name: trial.params[name] for name in numeric}
    return create_trial(state=trial.state, value=trial.value, params=params, distributions=numeric)


SAMPLERS = {
    "tpe": SamplerKind(
        "tree-structured Parzen estimator: constraint, front, several methods, conditions",
        _tpe,
        own_study=True,
        most=256,
        startup=8,
        anew=True,
    ),
    "gp": SamplerKind(
        "Gaussian process: constraint, front; one method; slow to propose, for costly trials",
        _gp,
        methods=False,
        own_study=True,
        most=128,
        startup=8,
    ),
    "nsgaii": SamplerKind(
        "genetic algorithm: constraint, front, several methods; for hundreds of trials",
        lambda seed, trials, independent: samplers.NSGAIISampler(seed=seed, population_size=16),
    ),
    "cmaes": SamplerKind(
        "evolution strategy: constraint by rank; no front, one method, draws what is no number from its prior",
        _cmaes,
        front=False,
        methods=False,
        own_study=True,
        constraint=False,
        startup=10,  # of which the best tenth is where it begins
    ),
    "qmc": SamplerKind(
        "quasi-random: an even cover of the space; learns nothing",
        lambda seed, trials, independent: samplers.QMCSampler(
            seed=seed, scramble=True, independent_sampler=independent, warn_independent_sampling=False
        ),
    ),
    "random": SamplerKind(
        "independent draws: learns nothing",
        lambda seed, trials, independent: EvenSampler({}, seed),
        anew=True,
    ),
}


def check_sampler(name: str, *, front: bool, methods: int) -> None:
    """Raises ValueError, with those that can, if a sampler cannot do what the study asks of it."""
    kind = SAMPLERS[name]
    if front and not kind.front:
        raise ValueError(
            f"--sampler {name} cannot search a whole front, having one objective: {_those(lambda k: k.front)} can"
        )
    if methods > 1 and not kind.methods:
        raise ValueError(
            f"--sampler {name} cannot search several methods in one study: {_those(lambda k: k.methods)} can"
        )


def _those(can: Callable[[SamplerKind], bool]) -> str:
    names = [name for name, kind in SAMPLERS.items() if can(kind)]
    return f"{', '.join(names[:-1])} and {names[-1]}"


class OneByOne(BaseSampler):
    """A sampler that is asked for each parameter alone."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}


class PriorSampler(OneByOne):
    """Draws every parameter from its prior, and evenly where it has none."""

    def __init__(self, priors: Mapping[str, Prior], seed: int) -> None:
        self._priors, self._seed = priors, seed
        self._rng = np.random.default_rng(seed)

    def begin(self, number: int) -> None:
        """Draws for trial `number` from now on: the same whatever was drawn before."""
        self._rng = np.random.default_rng([self._seed, number])

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return draw(param_distribution, self._priors.get(param_name), self._rng)


class EvenSampler(PriorSampler):
    """Draws of the record's own trials."""

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.begin(trial.number)


class PriorsFirst(BaseSampler):
    """Draws from the priors until `startup` trials have ended, then hands over to a sampler that learns from them.

    Args:
        learn: makes that sampler; called once, at the handing over.
        priors: by the parameters' names in the study.
        startup: completed trials to wait for.
        seed: of both.
        anew: whether that sampler is made anew for every trial.
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
        """Trial `number` of the record comes next."""
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
    """Return one of SAMPLERS.

    Args:
        priors: by the parameters' names in the study.
        begun: trials that earlier processes have begun: a sampler that starts over would propose the same again.
    """
    kind = SAMPLERS[name]
    fresh = _mixed(seed, begun) if begun and not kind.anew else seed
    if kind.startup:
        return PriorsFirst(kind.learn, priors, kind.startup, fresh, anew=kind.anew)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # QMC keeps its place in the sequence in the study itself, under its seed.
        return kind.learn(seed if name == "qmc" else fresh, (), PriorSampler(priors, fresh))


def _mixed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
