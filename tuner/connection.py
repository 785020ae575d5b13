"""A study's connection to Ray, from before it is needed until it is no longer.

A private Ray takes seconds to start. It does so, and ends, in a thread beside whatever else the command has to do.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol, Self

from tuner.config import DEFAULT_EXPERIMENT, StudyConfig


class Connection(Protocol):
    """Has ended when its block is left."""

    def begin(self) -> None:
        """Ray will be needed soon. May be called again."""

    def wait(self) -> None:
        """Until Ray is there.

        Raises:
            UsageError: if no cluster answers at the address, or if the study cannot run on its nodes.
        """

    def end(self) -> None:
        """Ray is not needed any more; the caller goes on meanwhile."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def connection(config: StudyConfig, *, ahead: bool = False) -> Connection:
    """To the cluster at --address, or to a Ray of our own.

    Args:
        ahead: begin at once where nothing can be wrong with what is not checked yet: with the default experiment. For
            others Ray would have to end again, in seconds, before a mistake is told.
    """
    if config.address is not None:
        return RunningCluster(config)
    ray = PrivateRay(config)
    if ahead and config.experiment == DEFAULT_EXPERIMENT and config.space is None and not config.warm_start:
        ray.begin()
    return ray


class RunningCluster:
    """The cluster at --address, whose nodes have to run what we run and to share the storage."""

    def __init__(self, config: StudyConfig) -> None:
        self._config, self._stack = config, ExitStack()

    def begin(self) -> None:
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
        self._up, self._unwanted = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._live, name="ray", daemon=True)

    def _live(self) -> None:
        try:
            from tuner.cluster import connected  # Ray is heavy, and this is the time to load it

            with connected(self._config):
                self._up.set()
                self._unwanted.wait()
        except BaseException as error:
            self._error = error
        finally:
            self._up.set()

    def begin(self) -> None:
        if self._thread.ident is None:
            self._thread.start()

    def wait(self) -> None:
        self.begin()
        self._up.wait()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        self._unwanted.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        if self._thread.ident is not None:
            self._thread.join()
