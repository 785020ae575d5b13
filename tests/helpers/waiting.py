"""Waiting for something to become true, and a clock that waits for nobody."""

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
