"""What Ctrl-C and a request to terminate do while a study runs."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tuner.connection import Connection


@contextmanager
def interruptible(stop: Any, ray: Connection) -> Iterator[None]:
    """Ctrl-C or a request to terminate ends the search cleanly; a second one at once, and so does the first where Ray
    is lost, and with it the running trials."""

    def ask(signum: int, frame: Any) -> None:
        if stop.asked or ray.lost:
            ray.heard()
            raise KeyboardInterrupt
        stop.asked = True
        print("Interrupted: ending the running trials. Again to end at once.", file=sys.stderr, flush=True)

    with handled(ask, signal.SIGINT, signal.SIGTERM):
        yield


@contextmanager
def terminable(ray: Connection) -> Iterator[None]:
    """Where the search does not run, a request to terminate is as Ctrl-C is."""

    def ask(signum: int, frame: Any) -> None:
        ray.heard()
        raise KeyboardInterrupt

    with handled(ask, signal.SIGTERM):
        yield


@contextmanager
def handled(handler: Callable[[int, Any], None], *signals: signal.Signals) -> Iterator[None]:
    """The signals are the handler's, and afterwards whose they were."""
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
