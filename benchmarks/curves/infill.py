"""Add trainings to a table where searches look: near the priors, and where the surrogate expects the best accuracies.

    python -m benchmarks.curves.infill --experiment digits [--method lpss] [--upto 600] [--data-dir DIR] [--workers 2]

A Sobol sequence (`benchmarks.curves.collect`) puts few points near the best configurations, so the surrogate's highest
expected accuracy can be an error of the surrogate. This command works in rounds. In each round it fits the surrogate
and chooses TARGETS sparsities, evenly spaced in the logarithm of the density with a random shift. For each of them it
trains the configuration with the highest expected accuracy and a configuration drawn from the priors. If it is stopped
and started again, it loses at most one round.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np

from benchmarks.curves.collect import EPOCHS, add, seeds_of
from benchmarks.curves.points import INFILL, LEAST, SPARSITY, applying
from benchmarks.curves.surrogate import Surrogate
from benchmarks.curves.table import Row, Table
from tune_sparsity.search_spaces import load_space
from tune_sparsity.search_spaces.priors import draw, from_log, log_sparsity

TARGETS, HIGHEST = 30, 0.99


def proposed(method: str, rows: Sequence[Row], first: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the configurations of a round with their numbers. `first` is the first number."""
    surrogate, rng = Surrogate(method, rows), np.random.default_rng(first)
    low, high = log_sparsity(LEAST), log_sparsity(HIGHEST)
    for place, shift in enumerate(rng.permutation(TARGETS) + rng.random()):
        target = from_log(low + (high - low) * shift / TARGETS)
        space = load_space(method, target)
        best = surrogate.best(target, tried=1 << 10, refined=4, seed=first + place)
        values = {name: draw(one, space.priors.get(name), rng) for name, one in space.distributions.items()}
        yield first + 2 * place, best
        yield first + 2 * place + 1, {**applying(space, values), SPARSITY: target}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", choices=EPOCHS, required=True)
    parser.add_argument("--method", default="lpss")
    parser.add_argument("--upto", type=int, default=600, help="the number of configurations that are added")
    parser.add_argument("--data-dir", default="../shared/data")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    table = Table(options.experiment, options.method)
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        while (first := max([INFILL, *(row.index + 1 for row in table.rows())])) < INFILL + options.upto:
            tasks = [
                (options.experiment, options.method, options.data_dir, index, seed, params)
                for index, params in proposed(options.method, table.rows(), first)
                for seed in seeds_of(index)
            ]
            add(table, pool, tasks)


if __name__ == "__main__":
    main()
