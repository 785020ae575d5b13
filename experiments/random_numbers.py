"""The global random numbers of a process, kept for others."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def same_random_numbers(seed: int | None = None) -> Iterator[None]:
    """Keep Python's, NumPy's and torch's global generators as they are for what comes after.

    Args:
        seed: where they begin; None: where they are.
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed)
                torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
