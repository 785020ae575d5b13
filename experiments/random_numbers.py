"""Save, seed and restore the global random generators of Python, NumPy and torch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch


@contextmanager
def same_random_numbers(seed: int | None = None) -> Iterator[None]:
    """Return a context manager. After its block, it restores the states of Python's, NumPy's and torch's global
    generators on the CPU.

    Args:
        seed: the seed of all three generators at the beginning of the block. If None, the generators are not seeded.
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


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch, on the CPU and on GPUs."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Return the states of the global generators of Python, NumPy and torch, for a checkpoint."""
    kind, keys, *rest = cast("tuple[Any, ...]", np.random.get_state())
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": gpu,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Set the global generators to states from `random_state`."""
    kind, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
