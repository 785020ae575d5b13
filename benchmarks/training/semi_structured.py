"""Measure the time of linear layers with 1024 and 4096 neurons on a GPU, in two forms: dense, and in torch's
semi-structured format, in which at most 2 of 4 neighbouring weights are nonzero.

    python -m benchmarks.training.semi_structured

The two forms are measured in turn. The times are medians with quartiles.
"""

from __future__ import annotations

import copy
import sys
from functools import partial

import torch
from torch import nn

from tune_sparsity.sparsity.patterns import NofM
from tune_sparsity.tuner.results.forms import Weights, measure

SIZES = (1024, 4096)
BATCHES = (1, 256, 4096)


def main() -> int:
    if not torch.cuda.is_available():
        print("no GPU: this benchmark measures products on NVIDIA's sparse tensor cores", file=sys.stderr)
        return 2
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bfloat16, milliseconds")
    for size in SIZES:
        torch.manual_seed(0)
        layer, pattern = nn.Linear(size, size), NofM(2, 4)
        with torch.no_grad():
            layer.weight.mul_(pattern.ranked(layer.weight.abs().log2()) > -1e4)
        weights = Weights(partial(copy.deepcopy, layer), {"weight"}, torch.randn(max(BATCHES), size))
        for one in measure(weights, ["2:4"], BATCHES, [torch.get_num_threads()], torch.bfloat16, "cuda"):
            time = one.note if one.ms is None else f"{one.ms:.4f} ({one.low:.4f} to {one.high:.4f})"
            print(f"Linear {size}, batch {one.batch}, {one.form}: {time}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
