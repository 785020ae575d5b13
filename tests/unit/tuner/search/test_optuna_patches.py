"""TPE with scipy's normal distribution proposes what it proposes with Optuna's own, and works without either name."""

from __future__ import annotations

import sys

import numpy as np
import optuna
import pytest
from optuna.samplers._tpe import _truncnorm

from tune_sparsity.tuner.search.optuna_patches import quick_normal
from tune_sparsity.tuner.search.samplers import SAMPLERS


def proposals() -> list[dict[str, float]]:
    sampler = SAMPLERS["tpe"].learn(0, (), optuna.samplers.RandomSampler(seed=0))
    study = optuna.create_study(sampler=sampler)

    def objective(trial: optuna.Trial) -> float:
        return abs(trial.suggest_float("p", 1, 2) - 1.3) + trial.suggest_int("steps", 1, 100, log=True) / 100

    study.optimize(objective, 30)
    return [trial.params for trial in study.trials]


@pytest.fixture(params=["optuna", "scipy"])
def missing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna has no such module, or scipy is missing."""
    module = {"optuna": "optuna.samplers._tpe._truncnorm", "scipy": "scipy.special"}[request.param]
    if request.param == "optuna":
        monkeypatch.delattr("optuna.samplers._tpe._truncnorm")
    monkeypatch.setitem(sys.modules, module, None)


def test_both_functions_agree() -> None:
    at = np.concatenate([np.linspace(-60, 40, 1001), [-1e3, -1e5]])
    own = _truncnorm._log_ndtr
    expected = own(at)
    with quick_normal():
        assert _truncnorm._log_ndtr is not own
        assert _truncnorm._log_ndtr(at) == pytest.approx(expected, rel=1e-12)
    assert _truncnorm._log_ndtr is own


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_without_a_name_the_proposals_are_the_same(missing: None, request: pytest.FixtureRequest) -> None:
    own = _truncnorm._log_ndtr
    with quick_normal():
        assert _truncnorm._log_ndtr is own
    without = proposals()
    request.getfixturevalue("monkeypatch").undo()
    for one, other in zip(proposals(), without, strict=True):
        assert one == pytest.approx(other, rel=1e-9)
