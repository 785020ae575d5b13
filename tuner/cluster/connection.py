"""Connect a study to Ray, and end the connection when the study no longer needs it.

Without --address, a study starts a private Ray: Ray's processes on this machine, for this study only. They take seconds
to start. Another process starts them while the command does other work.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol, Self

from tune_sparsity.tuner.cluster.fork_server import ForkServer
from tune_sparsity.tuner.cluster.private_ray import NodeProcess, settle_environment
from tune_sparsity.tuner.cluster.ray_patches import in_waiting_processes, why_not
from tune_sparsity.tuner.config.study_config import StudyConfig

_ANSWER_WITHIN = 15.0  # seconds for the main thread to react after Ray has died
_CHECKED_LATER = ("space", "warm_start", "gpus_per_trial", "workers_per_trial", "max_latency")


class Connection(Protocol):
    """A connection to Ray. Use it as a context manager: the connection ends with the block.

    Attributes:
        lost: whether Ray has died. In this case, the main thread gets SIGTERM.
        plain: the reason why a private Ray was started through Ray's public API, which takes longer; "" if the quick
            start succeeded (see PrivateRay).
    """

    lost: bool
    plain: str

    def begin(self) -> None:
        """Begin to start a private Ray, because the study will need Ray soon. Do nothing if the start has already
        begun."""

    def share(self, alone: Callable[[], bool]) -> None:
        """Load the libraries that Ray's workers need, and fork this process. The forked process keeps the libraries in
        memory, and Ray's workers are forked from it.

        Only the first call forks this process. The first call must come before a user's code runs.

        Args:
            alone: a function that returns whether this process has no other threads. The function may wait until other
                threads have ended. A fork copies only one thread. If there are other threads, this process is
                therefore not forked, and Ray is started through its public API.
        """

    def wait(self) -> None:
        """Wait until Ray is ready.

        Raises:
            UsageError: if no cluster answers at the address, or if the study cannot run on the cluster's nodes.
        """

    def heard(self) -> None:
        """Tell this connection that the main thread knows of Ray's death and will end the study."""

    def end(self) -> None:
        """Begin to end a private Ray, because the study no longer needs it. Return at once: Ray's processes end while
        the command does other work."""

    def ended(self) -> None:
        """Wait until Ray's processes have ended."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def is_sound(config: StudyConfig) -> bool:
    """Return whether parts of the study may start before all options are checked. They may start if the experiment is a
    built-in one, and if all options that are checked late, such as --space, have their defaults."""
    sure = all(getattr(config, name) == StudyConfig.model_fields[name].default for name in _CHECKED_LATER)
    return sure and ":" not in config.experiment  # a colon means a user's own code


def connection(
    config: StudyConfig,
    *,
    ahead: bool = False,
    died: Callable[[], object] = lambda: None,
    say: Callable[[str], object] = lambda line: None,
) -> Connection:
    """Return a connection to the cluster at --address, or to a private Ray.

    Args:
        config: the study's settings.
        ahead: whether to begin to start a private Ray at once. In this case, the caller must call the connection's
            method `share` later, because Ray's workers wait for this call.
        died: a function that is called if a private Ray has died and the main thread does not react, because it waits
            for Ray. The function is called in another thread. It must report the death and end the process.
        say: a function that is called with a line for the user if the fast start of a private Ray (see PrivateRay) has
            failed.
    """
    if config.address is not None:
        return RunningCluster(config)
    settle_environment(own=True)  # before torch is imported, which reads its number of threads
    ray = PrivateRay(config, died, say)
    if ahead:
        ray.begin_shared()
    return ray


class RunningCluster:
    """The connection to the cluster at --address. All nodes must have the package versions of this process, and access
    to the study's storage."""

    def __init__(self, config: StudyConfig) -> None:
        self._config, self._stack, self.lost, self.plain = config, ExitStack(), False, ""

    def begin(self) -> None:
        pass

    def share(self, alone: Callable[[], bool]) -> None:
        pass

    def wait(self) -> None:
        from tune_sparsity.tuner.cluster.join import connected
        from tune_sparsity.tuner.cluster.nodes import check_nodes

        self._stack.enter_context(connected(self._config))
        check_nodes(self._config.storage)

    def heard(self) -> None:
        pass

    def end(self) -> None:
        pass  # others use the cluster, too

    def ended(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class PrivateRay:
    """The connection to a private Ray: Ray's processes on this machine, for one study.

    There are two ways to start these processes. The fast way uses internal names of Ray's code, and forks Ray's workers
    from a copy of this process. If the fast way fails, the processes that it started are ended, and Ray is started
    through its public API.
    """

    def __init__(
        self,
        config: StudyConfig,
        died: Callable[[], object] = lambda: None,
        say: Callable[[str], object] = lambda line: None,
    ) -> None:
        self._config, self._died, self._say = config, died, say
        self._connected, self._processes = ExitStack(), ExitStack()
        self._forking: ForkServer | None = None
        self._node: NodeProcess | None = None
        self._ending: threading.Thread | None = None
        self._needed, self._heard = True, threading.Event()
        self.lost, self.plain = False, ""
        self._others = ""  # why trials cannot run in the processes that Ray starts in advance

    def begin(self) -> None:
        if self._node is None:
            variables = self._forking.variables if self._forking else {}
            ahead = not self._others
            node = NodeProcess(self._config, variables, plain=self.plain, ahead=ahead, say=self._say)
            self._node = self._processes.enter_context(node)

    def begin_shared(self) -> None:
        """Begin to start Ray before `share` is called. Ray's workers wait until `share` has made the process from which
        they are forked."""
        self._forking = self._processes.enter_context(ForkServer())
        self.begin()

    def share(self, alone: Callable[[], bool]) -> None:
        if self._node is None and self._forking is None:
            self._forking = self._processes.enter_context(ForkServer())
        if self._forking is not None:
            self._forking.fork(alone)
            self._check(self._forking.refused)

    def _check(self, wrong: str = "") -> None:
        """If the fast start is impossible, end the processes that it started, and use Ray's public API.

        Args:
            wrong: a reason why the fast start is impossible, or "" if no reason is known.
        """
        # Without this patch, Ray starts new processes for the trials. These processes would wait forever for Ray's
        # agents, which the fast start leaves out.
        self._others = why_not(in_waiting_processes)
        wrong = wrong or self._others
        if wrong and not self.plain:
            self.plain, begun = wrong, self._node is not None
            self._processes.close()
            self._forking = self._node = None
            if begun:
                self.begin()

    def wait(self) -> None:
        from tune_sparsity.tuner.cluster.join import connected  # imports Ray; `share` cannot fork after that

        self._check()
        self.begin()
        assert self._node is not None
        self._connected.enter_context(connected(self._config, self._node))
        self.plain = self._node.plain
        if self.plain and self._forking is not None:
            self._forking.end()
        threading.Thread(target=self._watch, args=(self._node,), name="ray", daemon=True).start()

    def _watch(self, node: NodeProcess) -> None:
        """Wait until Ray's processes have ended. If the study needs Ray at this time, interrupt the main thread.
        Without the interrupt, the main thread might wait for Ray forever, or Ray might end this process without a
        message."""
        node.wait()
        if not self._needed:
            return
        self.lost = True
        # Unlike `_thread.interrupt_main`, a signal also wakes a sleeping thread. Without a handler it would kill
        # this process.
        if callable(signal.getsignal(signal.SIGTERM)):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        if not self._heard.wait(_ANSWER_WITHIN):
            self._died()

    def heard(self) -> None:
        self._heard.set()

    def end(self) -> None:
        self._needed = False
        self.heard()
        self._connected.close()  # in this thread: if another thread releases Ray's objects, Ray ends this process
        self._ending = threading.Thread(target=self._processes.close, name="ray's end")
        self._ending.start()

    def ended(self) -> None:
        if self._ending is not None:
            self._ending.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ending is None:
            self.end()
        self.ended()
