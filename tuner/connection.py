"""A study's connection to Ray, from before it is needed until it is no longer.

A private Ray takes seconds to start. It does so, and ends, in a thread beside whatever else the command has to do.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol, Self

from tuner.config import StudyConfig


class Connection(Protocol):
    """Begins with its block, and has ended when the block is left."""

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


def connection(config: StudyConfig) -> Connection:
    """To the cluster at --address, or to a Ray of our own."""
    return PrivateRay(config) if config.address is None else RunningCluster(config)


class RunningCluster:
    """The cluster at --address, whose nodes have to run what we run and to share the storage."""

    def __init__(self, config: StudyConfig) -> None:
        self._config, self._stack = config, ExitStack()

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

    def wait(self) -> None:
        self._up.wait()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        self._unwanted.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        self._thread.join()
