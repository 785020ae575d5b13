"""What Ctrl-C and a request to terminate do while a study runs."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Connection(Protocol):
    """What is asked of the connection to Ray: whether Ray died, and that the main thread has heard of it."""

    @property
    def lost(self) -> bool: ...

    def heard(self) -> None: ...


_depth, _waiting = 0, False  # of blocks that are done whole, and whether an interrupt waits for their end


@contextmanager
def interruptible(stop: Any, ray: Connection) -> Iterator[None]:
    """Ctrl-C or a request to terminate ends the search cleanly; a second one at once, and so does the first where Ray
    is lost, and with it the running trials."""

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
    """Let Ctrl-C and a request to terminate end the command at once, where the search does not run."""

    def ask(signum: int, frame: Any) -> None:
        ray.heard()
        _interrupt()

    with handled(ask, signal.SIGINT, signal.SIGTERM):
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


@contextmanager
def undisturbed() -> Iterator[None]:
    """Finish the work within: an interrupt that comes meanwhile is raised at its end. For what others' code leaves
    neither done nor undone, as the lock of Optuna's file."""
    global _depth, _waiting
    if threading.current_thread() is not threading.main_thread():  # no other is interrupted
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
