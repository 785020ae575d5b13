"""Handle Ctrl-C and requests to terminate while a study runs."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Connection(Protocol):
    """The connection to Ray, as far as the handling of signals needs it.

    `lost` says whether Ray has died. `heard` is called when the main thread knows of it.
    """

    @property
    def lost(self) -> bool: ...

    def heard(self) -> None: ...


_depth, _waiting = 0, False  # the number of open `undisturbed` blocks, and whether an interrupt waits for their end


@contextmanager
def interruptible(stop: Any, ray: Connection) -> Iterator[None]:
    """Within this block, Ctrl-C or a request to terminate ends the search cleanly. A second one ends it at once. If Ray
    has died, and the running trials with it, the first one ends it at once."""

    def ask(signum: int, frame: Any) -> None:
        if stop.asked or ray.lost:
            ray.heard()
            _interrupt()
            return
        stop.asked = True
        print("Interrupted: ending the running trials. Again to end at once.", file=sys.stderr, flush=True)

    with handled(ask, signal.SIGINT, signal.SIGTERM):
        yield


@contextmanager
def terminable(ray: Connection) -> Iterator[None]:
    """Within this block, Ctrl-C or a request to terminate ends the command at once. Use it while no search runs."""

    def ask(signum: int, frame: Any) -> None:
        ray.heard()
        _interrupt()

    with handled(ask, signal.SIGINT, signal.SIGTERM):
        yield


@contextmanager
def handled(handler: Callable[[int, Any], None], *signals: signal.Signals) -> Iterator[None]:
    """Within this block, the handler receives the signals. Afterwards their former handlers do."""
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Delay an interrupt until the end of this block. It protects operations of other libraries that must not stop
    halfway, such as the lock of Optuna's file."""
    global _depth, _waiting
    if threading.current_thread() is not threading.main_thread():  # only the main thread is interrupted
        yield
        return
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _waiting and _depth == 0:
            _waiting = False
            raise KeyboardInterrupt


def _interrupt() -> None:
    global _waiting
    if _depth == 0:
        raise KeyboardInterrupt
    _waiting = True
