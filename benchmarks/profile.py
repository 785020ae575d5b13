"""Where the time of one training goes: data, forward and backward, optimizer, topology, validation.

python -m benchmarks.profile --experiment fashion-mnist --data-dir DIR --epochs 2
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tune_sparsity.experiments import Training, find

LPSS = {"p_early": 1.4, "p": 1.7, "early_layers": 1}


def profile(
    experiment: str, data_dir: Path, epochs: int, target: float, params: dict[str, Any] | None = None
) -> dict[str, float]:
    """Train one network in this process, on one thread, and return the seconds of each part."""
    torch.set_num_threads(1)
    found = find(experiment)
    data = found.load(data_dir)
    given = {**LPSS, "final_sparsity": target, **(params or {})}
    training = Training(found, data.train, data.val, "lpss", given, epochs=epochs, seed=0)
    seconds: dict[str, float] = defaultdict(float)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[part] += time.perf_counter() - start

        return wrapper

    sparse = training.sparse
    sparse._move_masks = timed("topology", sparse._move_masks)  # type: ignore[method-assign]
    sparse.step = timed("step", sparse.step)  # type: ignore[method-assign]
    training._train = timed("training", training._train)  # type: ignore[method-assign]
    model = training.model
    forward = model.forward
    in_training, in_validation = timed("forward", forward), timed("validating", forward)
    model.forward = lambda x: (in_training if model.training else in_validation)(x)  # type: ignore[method-assign]
    backward = torch.Tensor.backward
    torch.Tensor.backward = timed("backward", backward)  # type: ignore[method-assign]
    start = time.perf_counter()
    try:
        while not training.finished:
            training.epoch()
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]
    total = time.perf_counter() - start
    forward_backward = seconds["forward"] + seconds["backward"]
    return {
        "data": seconds["training"] - forward_backward - seconds["step"],
        "forward and backward": forward_backward,
        "optimizer": seconds["step"] - seconds["topology"],
        "topology": seconds["topology"],
        "validation": total - seconds["training"],
    }


def shares(seconds: dict[str, float]) -> dict[str, float]:
    """The parts' shares of the whole."""
    total = sum(seconds.values())
    return {part: one / total for part, one in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--experiment", default="digits")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--target", type=float, default=0.9)
    options = parser.parse_args()
    seconds = profile(options.experiment, options.data_dir, options.epochs, options.target)
    print("| part | seconds | share |\n| --- | --- | --- |")
    for part, share in shares(seconds).items():
        print(f"| {part} | {seconds[part]:.2f} | {100 * share:.0f} % |")


if __name__ == "__main__":
    main()
