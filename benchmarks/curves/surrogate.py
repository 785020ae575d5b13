"""A surrogate: a model that predicts the learning curve of any configuration. It is fitted to collected trainings.

    python -m benchmarks.curves.surrogate --experiment digits --method lpss

prints its error on configurations that it was not fitted to. Beside it stands the standard deviation between trainings
of the same configuration under different seeds: no surrogate can have a smaller error.

The surrogate predicts the logarithm of the error (1 minus the accuracy). So errors of 2 % and 4 % are as far apart as
errors of 20 % and 40 %. Its prediction for all epochs is the mean of two models: extremely randomised trees (Geurts et
al., 2006) and a Gaussian process with a Matérn kernel and a length scale for each parameter (Rasmussen and Williams,
2006, section 5.1). A simulated training is the prediction plus noise. The noise is the deviation of a collected
training from the mean over the seeds of its configuration.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.model_selection import GroupKFold
from threadpoolctl import ThreadpoolController

from benchmarks.curves.points import INFILL, LEAST, MOST, SPARSITY, applying, point, space_of
from benchmarks.curves.table import Row, Table
from tune_sparsity.search_spaces import load_space
from tune_sparsity.search_spaces.priors import to_unit

TREES, LEAF, FOLDS = 400, 2, 10
_LEAST_ERROR = 0.002  # added to each error, because log(0) is not finite
_LEARNT_FROM = 600  # the length scales are fitted to n trainings; the time of the fit grows with n^3
_NEAREST = 40  # a simulated curve gets the noise of one training, drawn from this many with the most similar errors
_BLAS = ThreadpoolController()  # limited to one thread: on a busy machine, two threads wait for each other
Array = np.ndarray[Any, np.dtype[np.float64]]


def features(method: str, params: dict[str, Any]) -> list[float]:
    """Return a configuration as numbers. A numeric parameter becomes its place in its range, in [0, 1], or -1 if it
    does not apply. A categorical parameter becomes a number for each choice: 1 for the chosen one, otherwise 0. The
    final sparsity becomes the place of the density on a logarithmic scale.

    Raises:
        KeyError: if a parameter that applies is missing.
    """
    found, space = list[float](), space_of(method)
    params = applying(space, params)
    for name, distribution in space.distributions.items():
        if name == SPARSITY:
            found.append(float(np.log((1 - params[name]) / (1 - MOST)) / np.log((1 - LEAST) / (1 - MOST))))
        elif isinstance(distribution, CategoricalDistribution):
            found += [float(params.get(name) == choice) for choice in distribution.choices]
        else:
            found.append(to_unit(distribution, params[name]) if name in params else -1.0)  # type: ignore[arg-type]
    return found


def log_errors(rows: Sequence[Row], epochs: int, chance: float = 0.1) -> Array:
    """Return the logarithms of the errors after each epoch, shape (rows, epochs). After a divergence the accuracy is
    that of chance."""
    curves = [[*row.at_target, *[chance] * (epochs - len(row.at_target))] for row in rows]
    return np.log(1 - np.array(curves) + _LEAST_ERROR)


def accuracies(errors: Array) -> Array:
    """Return the accuracies that have these logarithms of errors (the inverse of `log_errors`)."""
    return 1 + _LEAST_ERROR - np.exp(errors)


@dataclass(frozen=True)
class HeldOut:
    """The error on held-out configurations, at the last epoch.

    Attributes:
        infill: whether these are the trainings of `benchmarks.curves.infill`, or those of the Sobol sequence.
        rows: the number of trainings.
        rmse: the root mean square error of the accuracy, over the more accurate half of the trainings.
        seeds: the standard deviation of the accuracy between seeds of one configuration, over the configurations whose
            mean accuracy is in this half.
        rank: Spearman's correlation of predicted and measured accuracies, over all trainings.
    """

    infill: bool
    rows: int
    rmse: float
    seeds: float
    rank: float


class Surrogate:
    """Learns from the trainings of one method.

    Args:
        method: the method.
        rows: its trainings.
    """

    def __init__(self, method: str, rows: Sequence[Row]) -> None:
        self.method, self.epochs = method, max(len(row.at_target) for row in rows)
        self._x = np.array([features(method, row.params) for row in rows])
        self._y = log_errors(rows, self.epochs)
        self._groups = np.array([row.index for row in rows])
        self._model = _Model().fit(self._x, self._y)
        self.epoch_seconds = float(np.median([row.seconds for row in rows])) / self.epochs
        self._deviations, self._levels = _deviations(self._y, self._groups)

    def means(self, params: Sequence[dict[str, Any]]) -> Array:
        """Return the expected accuracies after each epoch, shape (configurations, epochs)."""
        return accuracies(self.expected_errors(params))

    def curve(self, errors: Array, rng: np.random.Generator) -> list[float]:
        """Return the accuracies of one simulated training after each epoch.

        Args:
            errors: the configuration's row of `expected_errors`, shape (epochs,).
            rng: draws the noise.
        """
        near = np.argsort(np.abs(self._levels - errors[-1]), kind="stable")[:_NEAREST]
        return list(accuracies(errors + self._deviations[rng.choice(near)]).clip(0, 1))

    def expected_errors(self, params: Sequence[dict[str, Any]]) -> Array:
        """Return the expected logarithms of the errors after each epoch, shape (configurations, epochs)."""
        x = np.array([features(self.method, one) for one in params])
        return self._model.predict(x)

    def best(self, target: float, *, tried: int = 1 << 12, refined: int = 6, seed: int = 0) -> dict[str, Any]:
        """Return the configuration with the highest expected accuracy at the target's sparsity.

        Sobol points and the centre of the priors are tried first. Then configurations are mixed from pairs of the best
        hundredth of those that were tried last.

        Args:
            target: the sparsity.
            tried: the number of Sobol points, and of the mixed configurations in each repetition.
            refined: the number of repetitions, with the first one.
            seed: it decides which pairs are mixed, and how.
        """
        rng, space = np.random.default_rng(seed), load_space(self.method, target)
        centre = applying(space, {**space.centre(), SPARSITY: target})
        configurations = [{**point(self.method, index), SPARSITY: target} for index in range(tried)]
        configurations += [centre]
        best: tuple[float, dict[str, Any]] = 0.0, {}
        for _ in range(refined):
            values = self.means(configurations)[:, -1]
            leading = [configurations[place] for place in np.argsort(-values)[: max(2, tried // 100)]]
            best = max(best, (float(values.max()), leading[0]), key=lambda one: one[0])
            parents = rng.integers(len(leading), size=(tried, 2))
            configurations = [_mixed(leading[one], leading[other], rng) for one, other in parents]
        return best[1]

    def held_out(self) -> list[HeldOut]:
        """Fit FOLDS models, each without a part of the configurations. Return the errors on the parts left out: of the
        trainings of the Sobol sequence and, if there are any, of those of `benchmarks.curves.infill`."""
        predicted = np.empty_like(self._y)
        for fit, held in GroupKFold(FOLDS).split(self._x, groups=self._groups):
            predicted[held] = _Model().fit(self._x[fit], self._y[fit]).predict(self._x[held])
        true, found = accuracies(self._y[:, -1]), accuracies(predicted[:, -1])
        infill = self._groups >= INFILL
        return [
            _held_out(bool(kind), self._groups[infill == kind], true[infill == kind], found[infill == kind])
            for kind in np.unique(infill)
        ]


def _held_out(infill: bool, groups: Any, true: Array, found: Array) -> HeldOut:
    better = true >= np.median(true)
    several = [true[groups == group] for group in np.unique(groups)]
    spreads = [one.var(ddof=1) for one in several if len(one) > 1 and one.mean() >= np.median(true)]
    rank = np.corrcoef(true.argsort().argsort(), found.argsort().argsort())[0, 1]
    rmse = float(np.sqrt(np.mean((true - found)[better] ** 2)))
    return HeldOut(infill, len(true), rmse, float(np.sqrt(np.mean(spreads))), float(rank))


def _mixed(one: dict[str, Any], other: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Return the first configuration, in which about half of the parameters that both have get the second one's values.
    The parameters that decide which others apply keep their values."""
    deciding = ("drop", "feedback")
    return {
        name: other[name] if name in other and name not in deciding and rng.random() < 0.5 else value
        for name, value in one.items()
    }


class _Model:
    """The mean of the predictions of extremely randomised trees and of a Gaussian process."""

    @_BLAS.wrap(limits=1)
    def fit(self, x: Array, y: Array) -> _Model:
        """Learn from configurations, shape (rows, features), and their `log_errors`, shape (rows, epochs)."""
        some = np.random.default_rng(0).permutation(len(x))[:_LEARNT_FROM]
        kernel = ConstantKernel(1.0) * Matern(np.full(x.shape[1], 1.5), (0.05, 1e3), nu=2.5) + WhiteKernel(0.05)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning says that features without effect get the longest length scale
            kernel = GaussianProcessRegressor(kernel, normalize_y=True).fit(x[some], y[some, -1]).kernel_
        trees = ExtraTreesRegressor(TREES, min_samples_leaf=LEAF, max_features=0.5, random_state=0)
        process = GaussianProcessRegressor(kernel, optimizer=None, normalize_y=True)
        self._models = trees.fit(x, y), process.fit(x, y)
        return self

    @_BLAS.wrap(limits=1)
    def predict(self, x: Array) -> Array:
        """Return the expected `log_errors`, shape (configurations, epochs)."""
        forest, process = self._models
        single = x.astype(np.float32)  # as trees expect it
        # For one configuration, the forest's own `predict` takes several times as long as its trees.
        grown = sum(one.tree_.predict(single) for one in forest.estimators_) / len(forest.estimators_)
        return np.mean([np.asarray(one).reshape(len(x), -1) for one in (grown, process.predict(x))], axis=0)


def _deviations(errors: Array, groups: Any) -> tuple[Array, Array]:
    """Return each training's deviation from the mean over the seeds of its configuration, and this mean at the last
    epoch. Configurations with one seed are left out. The deviations are scaled up, because a training that belongs to
    the mean itself is nearer to it than a new training."""
    deviations, levels = list[Array](), list[float]()
    for group in np.unique(groups):
        some = errors[groups == group]
        if len(some) > 1:
            deviations += list((some - some.mean(0)) * np.sqrt(len(some) / (len(some) - 1)))
            levels += [float(some[:, -1].mean())] * len(some)
    return np.array(deviations), np.array(levels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--method", nargs="+", default=["lpss"])
    options = parser.parse_args()
    print("| method | configurations | trainings | error when held out | between seeds | rank correlation |")
    print("|" + " --- |" * 6)
    for method in options.method:
        for held in Surrogate(method, Table(options.experiment, method).rows()).held_out():
            figures = f"{held.rows:,} | {100 * held.rmse:.2f} | {100 * held.seeds:.2f} | {held.rank:.3f}"
            print(f"| {method} | {'infill' if held.infill else 'Sobol sequence'} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
