"""Define how many cases a test tries, which cases only `make long` tries, and which tests need a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import settings

USUAL = 50
"""Cases of a property that does not say how many; `make long` tries ten times as many of each."""

settings.register_profile("usual", deadline=None, max_examples=USUAL)  # the machine may be busy with something else
settings.register_profile("long", deadline=None, max_examples=10 * USUAL)


def examples(count: int) -> settings:
    """Return Hypothesis settings for a test that draws `count` examples, or ten times as many in `make long`."""
    return settings(max_examples=count * settings.default.max_examples // USUAL)


def thinned(cases: Iterable[tuple[Any, ...]], every: int) -> list[Any]:
    """Return the cases as parameters of a test. `make long` tries all cases, and other runs one case in `every`."""
    return [pytest.param(*case, marks=pytest.mark.long if at % every else ()) for at, case in enumerate(cases)]


def is_long() -> bool:
    """Return whether this is a run of `make long`."""
    return settings.default.max_examples > USUAL


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: a CUDA device, and torch built for it")
