"""Wait until a condition is true, and simulate a clock so that tests need not wait."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any


def until(condition: Any, process: subprocess.Popen[str] | None = None, seconds: float = 60) -> None:
    """Wait until the condition is true. Meanwhile the process, if one is given, must not end."""
    end = time.monotonic() + seconds
    while not condition():
        if process is not None:
            assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)


class Clock:
    """Replaces the module `time`. Its time advances only by the calls of `sleep`, which return at once.

    Attributes:
        now: the simulated seconds since the clock was made.
        meanwhile: a function that is called after every `sleep`. With it, a test can simulate events that happen during
        the sleep.
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
