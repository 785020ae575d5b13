"""Measures the importance of the searched parameters by functional analysis of variance (fANOVA, Hutter et al.
2014)."""

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

_LEAST, _MOST = 4, 300  # trials: with fewer the result is noise, and with more the computation takes long


def importances(records: Sequence[TrialRecord], method: str | None = None) -> tuple[dict[str, float], str, int]:
    """Return the share of the metric's variance that each parameter explains.

    Parameters that only some trials have, and parameters with a single value, are left out. For each other parameter,
    only the part of its range that the trials cover is considered.

    Args:
        records: the trials. Only completed trials count, and of these only the last 300.
        method: the method whose trials are analysed. The default is the method with the most completed trials.

    Returns:
        Three values: the share of each parameter by its name; the method; and the number of trials that were analysed.
        The shares add up to 1. They are empty if there are too few trials.
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
    """Return the range of values in the trials, for each parameter that all trials have with at least two different
    values."""
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
