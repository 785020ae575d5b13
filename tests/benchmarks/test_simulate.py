"""Test simulated studies, with a table of trainings whose best configuration is known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from benchmarks.curves import fronts, infill, pictures, simulate, studies, surrogate
from benchmarks.curves.points import INFILL, LEAST, SPARSITY, applying, point
from benchmarks.curves.surrogate import accuracies, features, log_errors
from benchmarks.curves.table import Row, Table
from benchmarks.front import FRONT
from tune_sparsity.search_spaces import load_space

EPOCHS, BEST = 6, 0.98
METHODS = ("lpss", "gmp")


def accuracy(params: dict[str, Any]) -> float:
    """Return a made-up accuracy: the best momentum is .9, and the accuracy falls if the sparsity exceeds .9."""
    error = (1 - BEST) * math.exp(40 * (params["momentum"] - 0.9) ** 2 * 10 + 2 * max(0.0, params[SPARSITY] - 0.9))
    return 1 - min(error, 0.9)


def row(index: int, seed: int, method: str = "lpss") -> Row:
    params, rng = point(method, index), np.random.default_rng([index, seed])
    errors = np.log(1 - accuracy(params)) + np.linspace(1, 0, EPOCHS) + 0.05 * rng.normal()
    curve = [float(1 - math.exp(error)) for error in errors]
    return Row(index, seed, params, curve, 0.1, curve[-1], EPOCHS * 2.0)


def forget() -> None:
    """Forget the surrogates and what was computed with them."""
    for cached in (studies.surrogate_of, studies.best_configuration, studies.highest):
        cached.cache_clear()


@pytest.fixture(autouse=True, scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("trainings")
    for method in METHODS:
        rows = [row(index, seed, method) for index in range(300) for seed in range(1 if index % 10 else 3)]
        Table("known", method, folder).append(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surrogate, "TREES", 40)
        patch.setattr(surrogate, "FOLDS", 3)
        patch.setattr(studies, "Table", lambda *about: Table(*about, folder))
        patch.setattr(fronts, "METHODS", METHODS)
        forget()
        yield
    forget()


def test_the_surrogate_predicts_the_accuracies_of_the_table() -> None:
    found = studies.surrogate_of("known")
    (held,) = found.held_out()
    assert held.rows == 360
    assert not held.infill
    assert held.rank > 0.9
    # `seeds` is the deviation of the accuracy between seeds in the better half of the trainings: 0.05 times the error,
    # because the noise of the logarithm is 0.05. In this half, an error is about 1 - BEST or somewhat larger.
    assert 0.5 < held.seeds / (0.05 * (1 - BEST)) < 3
    assert held.rmse < 0.02
    assert found.epoch_seconds == 2.0
    params = point("lpss", 5)
    (mean,), (errors,) = found.means([params]), found.expected_errors([params])
    assert accuracies(errors) == pytest.approx(mean)
    curves = np.array([found.curve(errors, np.random.default_rng(seed)) for seed in range(200)])
    assert mean.shape == (EPOCHS,)
    assert curves[:, -1].std() > 0
    assert np.log(1 - curves[:, -1]).mean() == pytest.approx(np.log(1 - mean[-1]), abs=0.1)


def test_accuracies_are_recovered_from_the_logarithms_of_errors() -> None:
    rows = [row(index, 0) for index in range(20)]
    assert accuracies(log_errors(rows, EPOCHS)) == pytest.approx(np.array([one.at_target for one in rows]), abs=1e-12)
    (diverged,) = log_errors([Row(0, 0, {}, [0.5], None, None, 1.0)], 3)
    assert accuracies(diverged) == pytest.approx([0.5, 0.1, 0.1])


def test_the_highest_accuracy_of_the_surrogate_is_near_the_true_optimum() -> None:
    assert studies.highest("known", 0.5) == pytest.approx(BEST, abs=0.004)
    assert studies.highest("known", 0.98) < studies.highest("known", 0.5)


def test_the_best_configuration_has_exactly_the_parameters_that_apply() -> None:
    """The surrogate has seen no others: a parameter that does not apply would lead it astray."""
    for target in (0.5, 0.9, 0.98):
        best = studies.best_configuration("known", target)
        assert best == applying(load_space("lpss", target), best)
        assert best[SPARSITY] == target


def test_a_parameter_that_does_not_apply_has_no_influence_and_a_missing_one_is_an_error() -> None:
    params = next(one for one in (point("lpss", index) for index in range(9)) if one["drop"] == "ramp")
    assert features("lpss", {**params, "threshold.shape": "cubic", "feedback_gain": 0.3}) == features("lpss", params)
    with pytest.raises(KeyError, match="momentum"):
        features("lpss", {name: value for name, value in params.items() if name != "momentum"})


def test_infill_proposes_the_best_configuration_and_one_from_the_priors_over_all_sparsities(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(infill, "TARGETS", 8)
    found = dict(infill.proposed("lpss", studies.Table("known", "lpss").rows(), INFILL))
    assert list(found) == list(range(INFILL, INFILL + 2 * infill.TARGETS))
    best, drawn = list(found.values())[::2], list(found.values())[1::2]
    targets = [one[SPARSITY] for one in best]
    assert targets == [one[SPARSITY] for one in drawn]
    places = sorted(np.log(1 - np.array(targets)) / np.log(1 - infill.HIGHEST))
    assert np.diff(places).max() < 2 * np.diff(places).min()
    low = math.log(1 - LEAST) / math.log(1 - infill.HIGHEST)
    step = (1 - low) / infill.TARGETS
    assert low <= places[0] <= low + step
    assert 1 - step <= places[-1] <= 1
    for params in (*best, *drawn):
        assert params == applying(load_space("lpss", params[SPARSITY]), params)
    assert np.mean([abs(one["momentum"] - 0.9) for one in best]) < 0.01  # the optimum of the made-up accuracy
    assert np.mean([one["drop"] == "ramp" for one in drawn]) >= 0.5  # the prior's probability is .85


@pytest.mark.parametrize("name", ["default", "Ray", "random", "no early stopping", "no priors, no first points"])
def test_a_simulated_study_ends_all_its_trials_and_runs_two_at_a_time(name: str) -> None:
    found = simulate.course("known", 0.9, 12, 0, simulate.searches()[name])
    assert found == simulate.course("known", 0.9, 12, 0, simulate.searches()[name])
    assert len(found) == 12
    epochs = [one.epochs for one in found]
    assert epochs == sorted(epochs)
    assert (epochs[-1] == 12 * EPOCHS) is (name == "no early stopping")
    assert found[-1].seconds >= epochs[-1] * 2.0 / studies.SLOTS
    assert all(one.regret > -0.001 for one in found)


def test_a_row_counts_trials_from_one_and_has_the_share_of_saved_epochs() -> None:
    ended = [simulate.State(regret, 3 * k, 2.0 * k) for k, regret in enumerate([0.03, 0.0005, 0.0], 1)]
    never = [simulate.State(0.5, 3 * k, 2.0 * k) for k in (1, 2, 3)]
    assert list(simulate._row("x", [ended], 18)) == ["x", "2", "0.50", "6"]
    assert list(simulate._row("x", [never], 18))[1] == "inf"


def test_regret_over_time_is_that_of_the_last_ended_trial() -> None:
    first = [simulate.State(0.3, 1, 2.0), simulate.State(0.1, 2, 5.0)]
    second = [simulate.State(0.5, 1, 1.0), simulate.State(0.2, 2, 4.0)]
    assert pictures.over_trials([first, second]).tolist() == [[0.3, 0.1], [0.5, 0.2]]
    found = pictures.over_seconds([first, second], np.array([1.5, 2.0, 4.5, 9.0]))
    assert found[0].tolist() == pytest.approx([math.nan, 0.3, 0.3, 0.1], nan_ok=True)
    assert found[1].tolist() == [0.5, 0.5, 0.2, 0.2]


def test_the_confidence_band_of_a_normal_mean_is_that_of_students_t() -> None:
    mean, low, high = pictures.band(np.array([[1.0], [2.0], [3.0]]))  # standard error 1 / sqrt(3), t = 4.3027
    assert [*mean, *low, *high] == pytest.approx([2.0, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5])
    assert [part.tolist() for part in pictures.band(np.array([[1.0, 2.0]]))] == [[1.0, 2.0]] * 3


def test_the_picture_of_regrets_has_a_line_and_a_band_in_both_plots() -> None:
    course = [simulate.State(0.3, 1, 2.0), simulate.State(0.1, 2, 5.0)]
    figure = pictures.regret_figure({"one": [course, course], "other": [course]}, "regrets")
    lines = [trace for trace in figure.data if trace.mode == "lines" and trace.fill is None]
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert [(trace.name, trace.xaxis) for trace in lines] == [
        ("one", "x"),
        ("one", "x2"),
        ("other", "x"),
        ("other", "x2"),
    ]
    assert len(bands) == 4
    assert lines[0].y.tolist() == pytest.approx([30.0, 10.0])


@pytest.mark.parametrize("name", [name for name in fronts.searches() if "three methods" not in name])
def test_a_simulated_front_is_reproducible_and_its_regrets_are_not_negative(name: str) -> None:
    found = fronts.result_of("known", 8, 0, fronts.searches()[name])
    assert found == fronts.result_of("known", 8, 0, fronts.searches()[name])
    assert list(found.regrets) == list(fronts.SPARSITIES)
    assert all(regret > -0.002 for regret in found.regrets.values())
    if name in ("grid", "Ray", "front, no early stopping"):
        assert found.epochs == 8 * EPOCHS
    else:
        assert 8 <= found.epochs <= 8 * EPOCHS


def test_a_front_of_several_methods_has_trials_of_each() -> None:
    make = partial(studies.Ours, methods=METHODS)
    ended = studies.ended_trials("known", FRONT, 8, 0, make)
    numbers = {one.trial.number: "threshold_interval" in one.trial.params for one in ended}
    assert sorted(numbers) == list(range(8))
    assert set(numbers.values()) == {True, False}


class Best(fronts.FrontSearch):
    """A search whose trials are the surrogate's best configurations, one at each sparsity of the front."""

    def params(self, number: int) -> dict[str, Any]:
        return studies.best_configuration("known", fronts.SPARSITIES[number])


def test_a_search_that_knows_the_best_configurations_has_nearly_no_regret() -> None:
    found = fronts.result_of("known", len(fronts.SPARSITIES), 0, fronts.Searched(Best))
    assert max(found.regrets.values()) < 0.004
    worse = fronts.result_of("known", 3, 0, fronts.Searched(Best))
    assert worse.regrets[0.9] == fronts.top("known", 0.9)  # no trial reaches the sparsity 0.9
    steps = 0.2 * studies.highest("known", 0.7) + 0.1 * studies.highest("known", 0.8)
    assert worse.accuracy == pytest.approx(steps / (0.99 - 0.5), abs=0.003)


def test_the_grid_is_even_in_the_logarithm_of_the_density() -> None:
    ended = studies.ended_trials("known", FRONT, 5, 0, fronts.Grid)
    densities = [1 - one.trial.params[SPARSITY] for one in ended]
    assert densities == pytest.approx([0.5, 0.5**0.75 * 0.01**0.25, (0.5 * 0.01) ** 0.5, 0.5**0.25 * 0.01**0.75, 0.01])
