"""Simulated studies, on a table whose best configuration is known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from benchmarks.curves import simulate, surrogate
from benchmarks.curves.points import SPARSITY, point
from benchmarks.curves.surrogate import accuracies, log_errors
from benchmarks.curves.table import Row, Table

EPOCHS, BEST = 6, 0.98


def accuracy(params: dict[str, Any]) -> float:
    """The best momentum is .9, and dense networks are better than sparse ones."""
    error = (1 - BEST) * math.exp(40 * (params["momentum"] - 0.9) ** 2 * 10 + 2 * max(0.0, params[SPARSITY] - 0.9))
    return 1 - min(error, 0.9)


def row(index: int, seed: int) -> Row:
    params, rng = point("lpss", index), np.random.default_rng([index, seed])
    errors = np.log(1 - accuracy(params)) + np.linspace(1, 0, EPOCHS) + 0.05 * rng.normal()
    curve = [float(1 - math.exp(error)) for error in errors]
    return Row(index, seed, params, curve, 0.1, curve[-1], EPOCHS * 2.0)


@pytest.fixture(autouse=True, scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("trainings")
    Table("known", "lpss", folder).append(
        [row(index, seed) for index in range(300) for seed in range(1 if index % 10 else 3)]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surrogate, "TREES", 40)
        patch.setattr(surrogate, "FOLDS", 3)
        patch.setattr(simulate, "Table", lambda *about: Table(*about, folder))
        simulate.surrogate_of.cache_clear()
        simulate.best_configuration.cache_clear()
        yield
    simulate.surrogate_of.cache_clear()
    simulate.best_configuration.cache_clear()


def test_the_surrogate_finds_what_the_table_holds() -> None:
    found = simulate.surrogate_of("known")
    held = found.held_out()
    assert held.rows == 360
    assert held.rank > 0.9
    assert 0.5 < held.seeds / (0.05 * (1 - BEST)) < 3  # the better half has somewhat more than 2 % errors
    assert held.rmse < 0.02
    assert found.epoch_seconds == 2.0
    params = point("lpss", 5)
    (mean,) = found.means([params])
    curves = np.array([found.curve(params, np.random.default_rng(seed)) for seed in range(200)])
    assert mean.shape == (EPOCHS,)
    assert curves[:, -1].std() > 0
    assert np.log(1 - curves[:, -1]).mean() == pytest.approx(np.log(1 - mean[-1]), abs=0.1)


def test_logarithms_of_errors_and_accuracies_are_inverse() -> None:
    rows = [row(index, 0) for index in range(20)]
    assert accuracies(log_errors(rows, EPOCHS)) == pytest.approx(np.array([one.at_target for one in rows]), abs=1e-12)
    (diverged,) = log_errors([Row(0, 0, {}, [0.5], None, None, 1.0)], 3)
    assert accuracies(diverged) == pytest.approx([0.5, 0.1, 0.1])


def test_the_highest_accuracy_is_near_the_known_one() -> None:
    assert simulate.highest("known", 0.5) == pytest.approx(BEST, abs=0.004)
    assert simulate.highest("known", 0.98) < simulate.highest("known", 0.5)


@pytest.mark.parametrize("name", ["default", "Ray", "random", "no early stopping", "no priors, no first points"])
def test_a_simulated_study_has_all_its_trials_and_two_at_a_time(name: str) -> None:
    found = simulate.course("known", 0.9, 12, 0, simulate.searches()[name])
    assert found == simulate.course("known", 0.9, 12, 0, simulate.searches()[name])
    assert len(found) == 12
    epochs = [one.epochs for one in found]
    assert epochs == sorted(epochs)
    assert (epochs[-1] == 12 * EPOCHS) is (name == "no early stopping")
    assert found[-1].seconds >= epochs[-1] * 2.0 / simulate.SLOTS
    assert all(one.regret > -0.001 for one in found)


def test_a_row_counts_from_one_and_says_what_was_saved() -> None:
    ended = [simulate.Ended(regret, 3 * k, 2.0 * k) for k, regret in enumerate([0.03, 0.0005, 0.0], 1)]
    never = [simulate.Ended(0.5, 3 * k, 2.0 * k) for k in (1, 2, 3)]
    assert list(simulate._row("x", [ended], 18)) == ["x", "2", "0.50", "6"]
    assert list(simulate._row("x", [never], 18))[1] == "inf"
