"""Waiting for something to become true, and a clock that waits for nobody."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


class Clock:
    """Stands in for the module `time`: it passes only while somebody sleeps.

    Attributes:
        now: seconds since it was made.
        meanwhile: called after every sleep, for what others do in that time.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.meanwhile: Callable[[], object] = lambda: None

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()
