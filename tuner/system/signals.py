"""Handle Ctrl-C (SIGINT) and requests to terminate (SIGTERM) while a study runs."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol


class Connection(Protocol):
    """The part of tuner.cluster.connection.Connection that the handling of signals needs.

    The property `lost` says whether Ray has died. The method `heard` tells the connection that the main thread knows
    that Ray has died.
    """

    @property
    def lost(self) -> bool: ...

    def heard(self) -> None: ...


_LATER = 0.05  # seconds after which an interrupt that came in a finalizer is sent again
_depth, _waiting = 0, False  # the number of open `undisturbed` blocks, and whether an interrupt waits for their end


@contextmanager
def interruptible(stop: Any, ray: Connection) -> Iterator[None]:
    """Handle signals within the `with` block. The first SIGINT or SIGTERM sets `stop.asked`. The search then ends its
    running trials and stops. The second signal ends the search at once with KeyboardInterrupt. If Ray has died, the
    first signal does the same.

    Args:
        stop: the object with the attribute `asked`, a tuner.driver.ray_tune.StopWhen.
        ray: the connection to Ray.
    """

    def ask(signum: int, frame: FrameType | None) -> None:
        if stop.asked or ray.lost:
            ray.heard()
            _interrupt(frame)
            return
        stop.asked = True
        print("Interrupted: ending the running trials. Interrupt again to end at once.", file=sys.stderr, flush=True)

    with handled(ask, signal.SIGINT, signal.SIGTERM):
        yield


@contextmanager
def terminable(ray: Connection) -> Iterator[None]:
    """Raise KeyboardInterrupt at the first SIGINT or SIGTERM within the `with` block. Use this function while no search
    runs."""

    def ask(signum: int, frame: FrameType | None) -> None:
        ray.heard()
        _interrupt(frame)

    with handled(ask, signal.SIGINT, signal.SIGTERM):
        yield


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None], *signals: signal.Signals) -> Iterator[None]:
    """Install a handler for the given signals. Restore the earlier handlers at the end of the `with` block."""
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Delay KeyboardInterrupt until the end of the `with` block. Use this function for operations of other libraries
    that an interrupt must not stop halfway, such as locking Optuna's journal."""
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


def _interrupt(frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt now, or at the end of an `undisturbed` block. If the signal has interrupted a finalizer
    (`__del__`), raise it a moment later, because Python ignores exceptions in finalizers.

    Args:
        frame: the frame of Python code that the signal has interrupted.
    """
    global _waiting
    if _depth:
        _waiting = True
    elif _in_finalizer(frame):
        again = threading.Timer(_LATER, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        again.daemon = True
        again.start()
    else:
        raise KeyboardInterrupt


def _in_finalizer(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None
