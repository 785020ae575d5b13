"""Measure how many trials per hour a GPU completes if trials share it.

    python -m benchmarks.sharing --data-dir DIR [--experiment fashion-mnist-wrn] [--trials 16] [--epochs 2] [--out DIR]

The benchmark runs the command as users type it, with 1, 2, 4 and 8 trials at a time on one GPU, and without early
stopping, so that each study trains the same number of epochs. The table shows the number of trials divided by the hours
of the whole command, and divided by the hours in which trials ran. It also shows the validation accuracy of the best
trial, and the largest memory of the GPU that was in use.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.throughput import run


def memory_in_use() -> int:
    """Return how many MiB of the first GPU's memory are in use."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0])


def study(options: argparse.Namespace, sharing: int) -> str:
    """Run one study, and return its row of the table."""
    folder = options.out / f"sharing-{sharing}"
    command = [
        sys.executable,
        "-m",
        "tune_sparsity.tuner.cli",
        "--target",
        "0.9",
        "--experiment",
        options.experiment,
        "--json",
    ]
    command += ["--data-dir", str(options.data_dir), "--trials", str(options.trials), "--epochs", str(options.epochs)]
    command += ["--scheduler", "none", "--gpus-per-trial", str(1 / sharing), "--concurrency", str(sharing)]
    command += ["--storage", str(folder), "--study", "study", "--tracking-uri", f"sqlite:///{folder}/mlflow.db"]
    folder.mkdir(parents=True)
    wall, memory, output = run(command, {}, folder / "log", 1.0, lambda _: memory_in_use())
    document = json.loads(output)
    trials = sum(document["states"].values())
    of_command, of_training = (3600 * trials / seconds for seconds in (wall, document["seconds"]["training"]))
    best = document["best"]["val_accuracy"]
    states = " ".join(f"{count} {state}" for state, count in document["states"].items() if count)
    rates = f"{wall:.1f} | {of_command:.0f} | {of_training:.0f}"
    return f"| {sharing} | {states} | {rates} | {100 * best:.2f} | {max(memory)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--experiment", default="fashion-mnist-wrn")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--sharing", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    options = parser.parse_args()
    options.data_dir, options.out = options.data_dir.absolute(), options.out.absolute()
    print("| trials sharing | trials | s | trials an hour | while training | best validation % | MiB of the GPU |")
    print("| --- " * 7 + "|", flush=True)
    for sharing in options.sharing:
        print(study(options, sharing), flush=True)


if __name__ == "__main__":
    main()
