"""Compare the time of a training step on data in memory with the time in an older version, commit 748a2fc. That version
supports neither loaders nor training loops of users.

    git worktree add --detach OLD 748a2fc
    gcc -shared -fPIC -O3 -fopenmp-simd -fno-trapping-math -fno-math-errno -fno-signed-zeros -fassociative-math \\
        $(python3-config --includes) OLD/sparsity/kernel.c -o OLD/sparsity/_kernel.abi3.so
    python -m benchmarks.training.before OLD [--experiment digits] [--epochs 100] [--rounds 5] [--data-dir DIR]

Each round trains the same configuration of lpss with both versions, one after the other, in processes with one thread.
The time of a step is the sum of two 5th percentiles in a round: of the forward and backward pass, and of the update.
Quick steps show the time that the code itself needs. Slow steps were delayed by other work of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

_CHILD = """
import json, sys, time
from pathlib import Path
side, folder, name, epochs, data = sys.argv[1:]
sys.path.insert(0, folder)
if side == "old":
    from experiments.registry import find
    from experiments.training import Training
else:
    from tune_sparsity.experiments import find
    from tune_sparsity.experiments.training import Training
import numpy as np
import torch

torch.set_num_threads(1)
torch.set_flush_denormal(True)
params = {
    "p": 1.7, "p_early": 1.4, "early_layers": 1, "sphere_lr": 0.008, "lr": 0.05, "momentum": 0.9, "weight_decay": 3e-4,
    "drop": "ramp", "threshold.begin": 0.1, "threshold.end": 0.8, "threshold_interval": 40, "initial_sparsity": 0.1,
    "final_sparsity": 0.9,
}
experiment = find(name)
splits = experiment.load(Path(data))
training = Training(experiment, splits.train, splits.val, "lpss", params, epochs=int(epochs), seed=0)
times = {}

def timed(owner, name):
    call, found = getattr(owner, name), times.setdefault(name, [])
    def wrapped(*args, **options):
        start = time.perf_counter()
        result = call(*args, **options)
        found.append(time.perf_counter() - start)
        return result
    setattr(owner, name, wrapped)

timed(training, "_passes")
timed(training.sparse, "step" if side == "old" else "quick_step")
while not training.finished:
    training.train()
print(json.dumps([float(np.percentile(found, 5)) for found in times.values()]))
"""


def seconds(side: str, folder: Path, experiment: str, epochs: int, data_dir: Path) -> float:
    """Return the time of a step of one version in a new process."""
    command = [sys.executable, "-P", "-c", _CHILD, side, str(folder), experiment, str(epochs), str(data_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(sum(json.loads(done.stdout.splitlines()[-1])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("--experiment", default="digits")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"))
    options = parser.parse_args()
    sides = {"old": options.old.resolve(), "new": Path(__file__).resolve().parents[2] / "src"}
    about = options.experiment, options.epochs, options.data_dir.resolve()
    ratios = list[float]()
    for number in range(options.rounds):
        order = sorted(sides, reverse=bool(number % 2))
        took = {side: seconds(side, sides[side], *about) for side in order}
        ratios.append(took["new"] / took["old"])
        print(f"{1000 * took['old']:.4f} ms then, {1000 * took['new']:.4f} ms now: {ratios[-1]:.3f}", flush=True)
    print(f"median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
