"""Train the first points of lpss's search space, and the configuration that the surrogate expects to be the best.

    python -m benchmarks.curves.first_points --experiment digits [--targets 0.9 0.95 0.98 0.99] [--seeds 12]
        [--data-dir DIR] [--change threshold.end=0.65 threshold.end=0.65,threshold.begin=0 ...]

All configurations are trained without a search, under the same seeds. The command prints a table: the accuracy that the
surrogate expects, and the mean accuracies on validation and on test data with their standard errors. The surrogate
(`benchmarks.curves.surrogate`) needs trainings of the experiment from `benchmarks.curves.collect`; without them only
the first points are trained. With `--change`, the command trains none of these configurations. It trains the
configuration in which each parameter has the centre of its prior, without a change and with each of the changes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.curves.choosing import percent
from benchmarks.curves.collect import EPOCHS
from benchmarks.curves.points import SPARSITY, whole
from benchmarks.curves.studies import METHOD, best_configuration, surrogate_of
from benchmarks.curves.table import Table
from benchmarks.methods import _loaded
from tune_sparsity.experiments.base import evaluate
from tune_sparsity.experiments.training import Training
from tune_sparsity.search_spaces import load_space

FIRST_SEED = 500


def configurations(experiment: str, target: float, *, known: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the parameters of each configuration for a target: its first points and, if a surrogate is
    `known`, the best configuration of the surrogate."""
    for number, params in enumerate(load_space(METHOD, target).first_for(target), 1):
        yield f"first point {number}", {**params, SPARSITY: target}
    if known:
        yield "best of the surrogate", best_configuration(experiment, target)


def changed(target: float, changes: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the centre of the priors with `drop: ramp`, and then this configuration with each of the changes."""
    space = load_space(METHOD, target)
    values = {**space.centre(), "drop": "ramp", SPARSITY: target}
    centre = {name: value for name, value in values.items() if space.applies(name, values)}
    yield "centre of the priors", centre
    for change in changes:
        pairs = (pair.split("=") for pair in change.split(","))
        yield change, {**centre, **{name: float(value) for name, value in pairs}}


def trained(experiment: str, data_dir: str, params: dict[str, Any], seed: int) -> tuple[float, float]:
    """Return the validation and the test accuracy of one training."""
    found, data = _loaded(experiment, data_dir)
    training = Training(
        found, data.train, data.val, METHOD, whole(METHOD, params), epochs=EPOCHS[experiment], seed=FIRST_SEED + seed
    )
    while not training.finished:
        measured = training.epoch()
    return measured["val_accuracy_at_target"], evaluate(found, training.model, data.test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", choices=EPOCHS, required=True)
    parser.add_argument("--targets", type=float, nargs="+", default=[0.9, 0.95, 0.98, 0.99])
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--data-dir", default="../shared/data")
    parser.add_argument("--change", nargs="+", default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as the search's workers do
    print("| target | configuration | expected % | validation % | test % | parameters |\n|" + " --- |" * 6)
    known = bool(Table(options.experiment, METHOD).rows())
    for target in options.targets:
        if options.change:
            asked = changed(target, options.change)
        else:
            asked = configurations(options.experiment, target, known=known)
        for name, params in asked:
            runs = [trained(options.experiment, options.data_dir, params, seed) for seed in range(options.seeds)]
            expected = f"{100 * surrogate_of(options.experiment).means([params])[0, -1]:.2f}" if known else ""
            shown = ", ".join(f"{key} {value:.3g}" for key, value in params.items() if isinstance(value, float))
            row = [f"{target:g}", name, expected, *map(percent, zip(*runs, strict=True)), shown]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
