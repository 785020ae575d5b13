"""Which of the searched parameters mattered: functional analysis of variance (Hutter et al. 2014) by Optuna."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tune_sparsity.tuner.study.trial import TrialRecord, TrialState

_LEAST, _MOST = 4, 300  # trials: with fewer the answer is noise, with more it takes long


def importances(records: Sequence[TrialRecord], method: str | None = None) -> tuple[dict[str, float], str, int]:
    """Return the share of the metric's variance that each parameter explains.

    Parameters that only some of the trials have, and those that never change, are left out. The ranges are those that
    the trials cover.

    Args:
        method: whose trials to look at; by default the method that most of the completed trials have.

    Returns:
        (shares by the parameter's name, adding up to 1; empty where too little is known, the method, its trials).
    """
    done = [r for r in records if r.state is TrialState.COMPLETED and r.merit is not None]
    method = method or next(iter(Counter(record.method for record in done).most_common(1)), ("", 0))[0]
    done = [record for record in done if record.method == method][-_MOST:]
    distributions = _covered(done)
    if len(done) < _LEAST or not distributions or len({record.merit for record in done}) == 1:
        return {}, method, len(done)
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study(direction="maximize")
            study.add_trials(
                [
                    optuna.create_trial(
                        params={name: record.params[name] for name in distributions},
                        distributions=distributions,
                        value=record.merit,
                    )
                    for record in done
                ]
            )
            evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=32, seed=0)
            return dict(optuna.importance.get_param_importances(study, evaluator=evaluator)), method, len(done)
    finally:
        optuna.logging.set_verbosity(before)


def _covered(records: Sequence[TrialRecord]) -> dict[str, BaseDistribution]:
    """Return the parameters that all trials have and that differ between them, over the ranges that the trials
    cover."""
    if not records:
        return {}
    names = [name for name in records[0].params if all(name in record.params for record in records)]
    found: dict[str, BaseDistribution] = {}
    for name in names:
        values = [record.params[name] for record in records]
        if len({repr(value) for value in values}) == 1:
            continue
        if any(isinstance(value, bool | str) or value is None for value in values):
            choices: list[CategoricalChoiceType] = list(dict.fromkeys(values))
            found[name] = CategoricalDistribution(choices)
        elif all(isinstance(value, int | float) for value in values):
            low, high = min(values), max(values)
            log = low > 0 and high / low >= 20
            whole = all(isinstance(value, int) for value in values)
            found[name] = IntDistribution(low, high, log=log) if whole else FloatDistribution(low, high, log=log)
    return found
