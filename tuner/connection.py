"""A study's connection to Ray, from before it is needed until it is no longer.

A private Ray takes seconds to start. It does so in a thread beside whatever else the command has to do.
"""

from __future__ import annotations

import _thread
import signal
import threading
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol, Self

from tuner.config import StudyConfig
from tuner.fork_server import fork_server

_LOOK_EVERY = 1.0  # seconds
_CHECKED_LATER = ("space", "warm_start", "gpus_per_trial")


class _Unwanted(Exception):
    """Ray is not needed after all."""


class Connection(Protocol):
    """Has ended when its block is left.

    Attributes:
        lost: whether Ray died; the main thread is then interrupted, as by a request to terminate.
    """

    lost: bool

    def begin(self) -> None:
        """Ray will be needed soon. May be called again."""

    def give_way(self) -> None:
        """Until Ray's processes have been started, if they are being: they then load on other processors, while
        whatever this thread did meanwhile would only keep the other one from starting them."""

    def wait(self) -> None:
        """Until Ray is there.

        Raises:
            UsageError: if no cluster answers at the address, or if the study cannot run on its nodes.
        """

    def end(self) -> None:
        """Ray is not needed any more."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def connection(config: StudyConfig, *, ahead: bool = False) -> Connection:
    """To the cluster at --address, or to a Ray of our own.

    Args:
        ahead: begin at once where little can be wrong with what is not checked yet, and no code of a user's is to be
            loaded. Else Ray would be started for nothing whenever a mistake is told.
    """
    if config.address is not None:
        return RunningCluster(config)
    ray = PrivateRay(config)
    sure = all(getattr(config, name) == StudyConfig.model_fields[name].default for name in _CHECKED_LATER)
    if ahead and sure and ":" not in config.experiment:
        ray.begin()
    return ray


class RunningCluster:
    """The cluster at --address, whose nodes have to run what we run and to share the storage."""

    def __init__(self, config: StudyConfig) -> None:
        self._config, self._stack, self.lost = config, ExitStack(), False

    def begin(self) -> None:
        pass

    def give_way(self) -> None:
        pass

    def wait(self) -> None:
        from tuner.cluster import connected
        from tuner.nodes import check_nodes

        self._stack.enter_context(connected(self._config))
        check_nodes(self._config.storage)

    def end(self) -> None:
        pass  # others use it too

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class PrivateRay:
    """A Ray on this machine for one study alone. Its thread lives as long as it does: the kernel ends Ray's processes
    with the thread that started them."""

    def __init__(self, config: StudyConfig) -> None:
        self._config = config
        self._launched, self._wanted = threading.Event(), threading.Event()
        self._up, self._unwanted = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self.lost = False
        self._thread = threading.Thread(target=self._live, name="ray", daemon=True)

    def _live(self) -> None:
        try:
            with fork_server() as forking:
                from tuner.cluster import connected  # Ray is heavy, and this is the time to load it

                with connected(self._config, self._hold, forking):
                    self._up.set()
                    self._watch()
        except _Unwanted:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._launched.set()
            self._up.set()

    def _hold(self) -> None:
        """Ray has been launched. To connect before its workers are there would keep all of this process waiting for
        them, whose main thread has as much to load as they."""
        self._launched.set()
        self._wanted.wait()
        if self._unwanted.is_set():
            raise _Unwanted  # the kernel ends what was launched with this thread

    def _watch(self) -> None:
        """Until Ray is not needed any more. If one of its processes dies, as for want of memory, nothing that waits for
        Ray would ever hear of it, and Ray itself would end this process without a word on how to go on."""
        from ray._private.worker import _global_node

        while not self._unwanted.wait(_LOOK_EVERY):
            if _global_node is not None and _global_node.dead_processes():
                self.lost = True
                _thread.interrupt_main(signal.SIGTERM)
                return

    def begin(self) -> None:
        if self._thread.ident is None:
            self._thread.start()

    def give_way(self) -> None:
        if self._thread.ident is not None:
            self._launched.wait()

    def wait(self) -> None:
        self.begin()
        self._wanted.set()
        self._up.wait()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        self._unwanted.set()
        self._wanted.set()
        if self._thread.ident is not None:
            self._thread.join()  # whoever lets go of something of Ray's meanwhile would be ended by it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
