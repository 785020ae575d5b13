"""Compare fronts of real trainings on test images: the command's own search, and grids of the default recipe.

    python -m benchmarks.curves.real_fronts [--experiment digits] [--data-dir DIR] [--trials 10 40] [--seeds 10]
        [--out FOLDER]

The studies run without Ray, two trials at a time. For each completed trial, the loss and the correctness on all images
that no trial trained on are kept: 540 of digits, 180 of them for validation. 200 times, as many validation images are
drawn from all these images, and the networks of the front are chosen by them. The accuracies of these networks on the
other images give the mean accuracy over the sparsities from .5 to .99, as in benchmarks.front. So a study cannot look
better by luck on its validation images. Early stopping and the choice of configurations to repeat used the study's own
validation images. A study in the folder is not run again.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.curves.choosing import SPLITS, Measured, Task, kept, percent
from benchmarks.curves.fronts import mean_accuracy
from benchmarks.front import FRONT, even_in_log
from tune_sparsity.experiments import find
from tune_sparsity.tuner.worker.trainable import trial_seed


def grid(task: Task, count: int, seed: int) -> Measured:
    """Train the default recipe at sparsities that are even in the logarithm of the density."""
    return task.default(even_in_log(FRONT, count).tolist(), [trial_seed(seed, number) for number in range(count)])


def redrawn(measured: Measured) -> float:
    """Return the mean accuracy over the front. It is averaged over random splits into validation and test images."""
    rng, images, found = np.random.default_rng(0), measured.correct.shape[1], []
    for _ in range(SPLITS):
        trials = measured.trials(rng.permutation(images))
        found.append(mean_accuracy(list(zip(trials.sparsity, trials.accuracy, trials.test, strict=True))))
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="digits")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 40])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/real_fronts"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as the search's workers do
    experiment = find(options.experiment)
    task = Task(experiment, experiment.load(options.data_dir), experiment.recipe.epochs)
    options.out.mkdir(parents=True, exist_ok=True)
    print("| trials | search | test accuracy over the front % | minus the grid | completed trials |\n|" + " --- |" * 5)
    for trials in options.trials:
        rows: dict[str, list[Measured]] = {"grid": [], "--front": []}
        for seed in range(options.seeds):
            for name, make in (("grid", partial(grid, task)), ("--front", partial(task.searched, FRONT))):
                rows[name].append(kept(options.out / f"{name}-{trials}-{seed}.npz", partial(make, trials, seed)))
        alone = [redrawn(one) for one in rows["grid"]]
        for name, row in rows.items():
            found = [redrawn(one) for one in row]
            more = [one - other for one, other in zip(found, alone, strict=True)]
            whole = np.mean([len(one.sparsity) for one in row])
            print(f"| {trials} | {name} | {percent(found)} | {percent(more, '+')} | {whole:.1f} |", flush=True)


if __name__ == "__main__":
    main()
