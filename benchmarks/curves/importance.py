"""Measure which parameters matter at which target, according to the surrogate, in each branch of the search space.

    python -m benchmarks.curves.importance --experiment digits [--targets 0.7 0.9 0.98] [--draws 4096]

A branch is a value of `drop`. Some parameters apply in one branch only. The surrogate (`benchmarks.curves.surrogate`)
expects a final error for every configuration. Within a branch, the variance of the logarithm of this error is divided
among the parameters (functional analysis of variance); the shares are Sobol indices.
A parameter's "alone" share is its first-order index, and its "total" share contains all its interactions (Sobol, 2001;
the estimators of Saltelli et al., 2010, table 2, b and f). The share of a pair is the variance that the pair explains
beyond its two parameters alone.

The parameters are drawn from their priors, because a search looks there. With `--uniform` they are drawn from their
whole ranges; then networks that learn nothing determine the shares.

"held" is the accuracy that is lost if a parameter is held at the centre of its prior. It is the mean expected accuracy
of the best draws, minus the mean after the parameter was held in all draws, again over the best draws. The best draws
are a fraction HELD_BEST of all. If "held" is below 0, holding the parameter is better.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from benchmarks.curves.points import SPARSITY
from benchmarks.curves.studies import METHOD, surrogate_of
from benchmarks.curves.surrogate import accuracies
from tune_sparsity.search_spaces import Space, load_space
from tune_sparsity.search_spaces.priors import draw

HELD_BEST, PAIRS = 1 / 64, 6
BRANCHES = ("ramp", "threshold")
Array = np.ndarray[Any, np.dtype[np.float64]]
Point = dict[str, Any]


@dataclass(frozen=True)
class Shares:
    """Shares of a function's variance.

    Attributes:
        alone: parameter -> its first-order index.
        total: parameter -> its total index.
        pairs: two parameters -> the share of their interaction.
    """

    alone: dict[str, float]
    total: dict[str, float]
    pairs: dict[tuple[str, str], float]


def shares(function: Callable[[list[Point]], Array], one: list[Point], other: list[Point]) -> Shares:
    """Divide the variance of a function of independent parameters.

    Args:
        function: configurations -> values, shape (configurations,).
        one, other: two independent lists of equally many draws. Every draw has the same parameters.
    """
    names = list(one[0])
    a, b = function(one), function(other)
    both = np.concatenate([a, b])
    variance, middle = both.var(), both.mean()

    def exchanged(*those: str) -> Array:
        """Return the values of `function` for changed draws. Each draw is one of `one`, but the parameters in `those`
        have their values in `other`."""
        mixed = ({**first, **{name: second[name] for name in those}} for first, second in zip(one, other, strict=True))
        return function(list(mixed))

    def index(values: Array) -> float:
        return float(np.mean((b - middle) * (values - a)) / variance)

    single = {name: exchanged(name) for name in names}
    alone = {name: index(values) for name, values in single.items()}
    return Shares(
        alone,
        {name: float(np.mean((values - a) ** 2) / 2 / variance) for name, values in single.items()},
        {pair: index(exchanged(*pair)) - alone[pair[0]] - alone[pair[1]] for pair in combinations(names, 2)},
    )


def drawn(space: Space, branch: Point, count: int, seed: int, *, uniform: bool) -> list[Point]:
    """Draw configurations of a branch: the values of all parameters that apply, except `drop` and the sparsity."""
    rng, found = np.random.default_rng(seed), list[Point]()
    for _ in range(count):
        values = dict(branch)
        for name, distribution in space.distributions.items():
            if name not in branch and name != SPARSITY and space.applies(name, values):
                values[name] = draw(distribution, None if uniform else space.priors.get(name), rng)
        found.append({name: value for name, value in values.items() if name not in branch})
    return found


def expected_errors(experiment: str, fixed: Point, points: Sequence[Point]) -> Array:
    """Return the expected logarithms of the final errors of `points`, each with the parameters `fixed` added."""
    return surrogate_of(experiment).expected_errors([{**one, **fixed} for one in points])[:, -1]


def expected_accuracies(experiment: str, fixed: Point, points: Sequence[Point]) -> Array:
    """Return the expected final accuracies. The arguments are those of `expected_errors`."""
    return accuracies(expected_errors(experiment, fixed, points))


def held(accuracy: Callable[[list[Point]], Array], points: list[Point], name: str, value: Any) -> float:
    """Return the accuracy that is lost if the parameter `name` is held at `value` (see the top of this file)."""
    leading = max(1, int(len(points) * HELD_BEST))
    free, fixed = (np.sort(accuracy(some))[-leading:] for some in (points, [{**one, name: value} for one in points]))
    return float(free.mean() - fixed.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--targets", type=float, nargs="+", default=[0.7, 0.9, 0.98])
    parser.add_argument("--draws", type=int, default=4096)
    parser.add_argument("--uniform", action="store_true", help="draw from the whole ranges")
    options = parser.parse_args()
    for branch in BRANCHES:
        own = {"drop": branch}
        found: dict[float, tuple[Shares, dict[str, float]]] = {}
        for target in options.targets:
            space = load_space(METHOD, target)
            one, other = (drawn(space, own, options.draws, seed, uniform=options.uniform) for seed in (0, 1))
            about, centre = (options.experiment, {**own, SPARSITY: target}), space.centre()
            accuracy = partial(expected_accuracies, *about)
            costs = {name: held(accuracy, one, name, centre[name]) for name in one[0]}
            found[target] = shares(partial(expected_errors, *about), one, other), costs
        head = "".join(f" alone {t:g} | total | held, points |" for t in options.targets)
        print(f"\n| {branch} |{head}\n|" + " --- |" * (1 + 3 * len(options.targets)))
        for name in next(iter(found.values()))[0].alone:
            cells = (
                f" {each.alone[name]:.2f} | {each.total[name]:.2f} | {100 * costs[name]:+.2f} |"
                for each, costs in found.values()
            )
            print(f"| {name} |" + "".join(cells))
        for target, (each, _) in found.items():
            largest = sorted(each.pairs.items(), key=lambda pair: -pair[1])[:PAIRS]
            print(f"\n{target:g}: " + ", ".join(f"{' x '.join(pair)} {share:.2f}" for pair, share in largest))


if __name__ == "__main__":
    main()
