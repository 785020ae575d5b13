"""Train configurations that the table of trainings does not have yet.

    python -m benchmarks.curves.collect --experiment digits --method lpss --upto 800 [--data-dir DIR] [--workers 2]

Configuration i is point i of a Sobol sequence over the method's whole space (`points`). Every tenth is trained under
three seeds, the others under one. After every PART trainings, the command adds them to the table, which is a file in
benchmarks/curves/trainings/. If it is stopped and started again, it loses at most the last PART trainings.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks.curves.points import point, whole
from benchmarks.curves.table import Row, Table
from benchmarks.methods import _loaded
from tune_sparsity.experiments import Data, Experiment
from tune_sparsity.experiments.base import evaluate, outputs_of
from tune_sparsity.experiments.training import NotFinite, Training

EPOCHS = {"digits": 24, "fashion-mnist": 8, "mnist": 8}
SEVERAL, SEEDS = 10, 3
PART = 40  # the number of trainings that are added to the table at once


def trained(experiment: str, method: str, data_dir: str, index: int, seed: int, params: dict[str, Any]) -> Row:
    """Train one configuration in this process. `index` is its number, and `params` are its searched parameters."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as the search's workers do
    start = time.perf_counter()
    found, data = _loaded(experiment, data_dir)
    curve, val_loss, test = list[float](), None, None
    try:
        training = Training(
            found, data.train, data.val, method, whole(method, params), epochs=EPOCHS[experiment], seed=seed
        )
        while not training.finished:
            curve.append(round(training.epoch()["val_accuracy_at_target"], 6))
        val_loss, test = round(_loss(found, training, data), 6), round(evaluate(found, training.model, data.test), 6)
    except NotFinite:
        pass
    return Row(index, seed, params, curve, val_loss, test, round(time.perf_counter() - start, 2))


@torch.no_grad()
def _loss(experiment: Experiment, training: Training, data: Data) -> float:
    parts = [
        (float(experiment.loss(out, y)) * len(y), len(y)) for out, y in outputs_of(experiment, training.model, data.val)
    ]
    return sum(loss for loss, _ in parts) / sum(count for _, count in parts)


def wanted(table: Table, upto: int) -> Iterator[tuple[int, int]]:
    """Yield the pairs of a configuration below `upto` and a seed that the table does not have yet."""
    done = {(row.index, row.seed) for row in table.rows()}
    pairs = ((index, seed) for index in range(upto) for seed in seeds_of(index))
    return (one for one in pairs if one not in done)


def seeds_of(index: int) -> range:
    """Return the seeds of a configuration."""
    return range(1 if index % SEVERAL else SEEDS)


def add(table: Table, pool: Executor, tasks: Iterable[tuple[Any, ...]]) -> None:
    """Train configurations in the processes of `pool` and add the trainings to the table. A task has the arguments of
    `trained`."""
    table.append(list(pool.map(trained, *zip(*tasks, strict=True))))
    print(f"{len(table.rows())} trainings in {table.path}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", choices=EPOCHS, required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--upto", type=int, required=True, help="the number of configurations")
    parser.add_argument("--data-dir", default="../shared/data")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    table = Table(options.experiment, options.method)
    common = options.experiment, options.method, options.data_dir
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        while part := list(islice(wanted(table, options.upto), PART)):
            tasks = [(*common, index, seed, point(options.method, index)) for index, seed in part]
            add(table, pool, tasks)


if __name__ == "__main__":
    main()
