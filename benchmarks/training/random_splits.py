"""Define the experiments dna0, dna1, ..., dna4: uci-dna with random splits, because the published split is not known.

All 3,186 examples are divided at random, stratified by class, into parts of the same sizes as in uci-dna.
`python -m benchmarks.studies --only "random uci-dna at 0.9"` runs studies of these experiments. Some DNA sequences
occur more than once, so equal sequences may be in different parts. In uci-dna, too, 82 test examples also occur among
the other examples.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from tune_sparsity.experiments import Data, Split, find
from tune_sparsity.experiments.builtin.uci import load_dna
from tune_sparsity.experiments.data.splits import hold_out


def load(seed: int, data_dir: Path | None = None) -> Data:
    """Load all examples, and split them at random with this seed."""
    data = load_dna(data_dir)
    parts = data.train, data.val, data.test
    x, y = (torch.cat([getattr(part, name) for part in parts]) for name in ("x", "y"))
    rest, test = hold_out(y, len(data.test.y), seed=seed)
    train, val = hold_out(y[rest], len(data.val.y), seed=seed)
    return replace(
        data,
        train=Split(x[rest][train], y[rest][train]),
        val=Split(x[rest][val], y[rest][val]),
        test=Split(x[test], y[test]),
    )


dna0, dna1, dna2, dna3, dna4 = (
    replace(find("uci-dna"), name=f"dna{seed}", load=partial(load, seed)) for seed in range(5)
)
