"""A study's connection to Ray, from before it is needed until it is no longer.

A private Ray takes seconds to start. It does so in a process of its own, beside whatever else the command has to do.
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

_ANSWER_WITHIN = 15.0  # seconds that the main thread may wait for Ray, once that has died
_CHECKED_LATER = ("space", "warm_start", "gpus_per_trial", "workers_per_trial")


class Connection(Protocol):
    """Has ended when its block is left.

    Attributes:
        lost: whether Ray died; the main thread is then interrupted, as by a request to terminate.
        plain: why a Ray of our own was started with public calls, which takes longer; else empty.
    """

    lost: bool
    plain: str

    def begin(self) -> None:
        """Ray will be needed soon. May be called again."""

    def share(self, alone: Callable[[], bool]) -> None:
        """Ray's workers have what this process has loaded, and what they need is loaded here. May be called again; the
        first call has to come before a user's code is run.

        Args:
            alone: whether this process has no other threads now, which a copy would lack; may wait until it has none.
                Ray is started with public calls where it has some.
        """

    def wait(self) -> None:
        """Until Ray is there.

        Raises:
            UsageError: if no cluster answers at the address, or if the study cannot run on its nodes.
        """

    def heard(self) -> None:
        """The main thread knows that it is lost, and ends the study."""

    def end(self) -> None:
        """Ray is not needed any more. Its processes end beside what is done next."""

    def ended(self) -> None:
        """Until they have, if they are to."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def is_sound(config: StudyConfig) -> bool:
    """Return whether the unchecked rest is likely to be right, so that the study's parts may be started ahead."""
    sure = all(getattr(config, name) == StudyConfig.model_fields[name].default for name in _CHECKED_LATER)
    return sure and ":" not in config.experiment  # a user's code


def connection(
    config: StudyConfig,
    *,
    ahead: bool = False,
    died: Callable[[], object] = lambda: None,
    say: Callable[[str], object] = lambda line: None,
) -> Connection:
    """To the cluster at --address, or to a Ray of our own.

    Args:
        ahead: begin at once. `share` has to be called then.
        died: called, in a thread, where a Ray of our own has died and the main thread cannot be interrupted since it
            waits for Ray: to say so, and to end the process.
        say: called with a line for the user where a Ray of our own is not started in the quick way.
    """
    if config.address is not None:
        return RunningCluster(config)
    settle_environment(own=True)  # before torch is loaded, which has its threads from there
    ray = PrivateRay(config, died, say)
    if ahead:
        ray.begin_shared()
    return ray


class RunningCluster:
    """The cluster at --address, whose nodes have to run what we run and to share the storage."""

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
        pass  # others use it too

    def ended(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class PrivateRay:
    """A Ray on this machine for one study alone.

    Its workers are copies of this process, and it is started with private names of Ray. Where anything is wrong with
    that, what there is of it is ended, and Ray is started with public calls.
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
        self._others = ""  # why trials run in other processes than those that wait for them

    def begin(self) -> None:
        if self._node is None:
            variables = self._forking.variables if self._forking else {}
            ahead = not self._others
            node = NodeProcess(self._config, variables, plain=self.plain, ahead=ahead, say=self._say)
            self._node = self._processes.enter_context(node)

    def begin_shared(self) -> None:
        """The same, when `share` is going to be called."""
        self._forking = self._processes.enter_context(ForkServer())
        self.begin()

    def share(self, alone: Callable[[], bool]) -> None:
        if self._node is None and self._forking is None:
            self._forking = self._processes.enter_context(ForkServer())
        if self._forking is not None:
            self._forking.fork(alone)
            self._check(self._forking.refused)

    def _check(self, wrong: str = "") -> None:
        """Start Ray with public calls if something is wrong with the quick way. End first what has been started."""
        self._others = why_not(in_waiting_processes)  # a quick Ray has no agents, for which they would wait for good
        wrong = wrong or self._others
        if wrong and not self.plain:
            self.plain, begun = wrong, self._node is not None
            self._processes.close()
            self._forking = self._node = None
            if begun:
                self.begin()

    def wait(self) -> None:
        from tune_sparsity.tuner.cluster.join import connected  # Ray is heavy, and has to be loaded by `share`

        self._check()
        self.begin()
        assert self._node is not None
        self._connected.enter_context(connected(self._config, self._node))
        self.plain = self._node.plain
        if self.plain and self._forking is not None:
            self._forking.end()
        threading.Thread(target=self._watch, args=(self._node,), name="ray", daemon=True).start()

    def _watch(self, node: NodeProcess) -> None:
        """If Ray dies, as for want of memory, nothing that waits for it would ever hear of it, and Ray itself would end
        this process without a word on how to go on."""
        node.wait()
        if not self._needed:
            return
        self.lost = True
        if callable(signal.getsignal(signal.SIGTERM)):  # a real signal: else who sleeps would sleep on
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        if not self._heard.wait(_ANSWER_WITHIN):
            self._died()

    def heard(self) -> None:
        self._heard.set()

    def end(self) -> None:
        self._needed = False
        self.heard()
        self._connected.close()  # here: Ray ends a process one of whose threads drops an object of its meanwhile
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
