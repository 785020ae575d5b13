"""Waiting for something to become true."""

from __future__ import annotations

import time
from typing import Any


def until(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
