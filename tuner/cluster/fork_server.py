"""The process of which the workers of a private Ray are copies.

A worker needs torch, Ray and our trials' code: seconds of a processor, and most of a gigabyte. The fork server has
them once for all workers; each is forked from it in a moment, and shares the memory of what was loaded. It has no
threads that a copy would lack, and runs no code of a user's. The raylet starts tuner/cluster/fork_client.py
in place of Ray's own script for workers. That script asks here.

The fork server is itself a copy of the command, which needs the same libraries, made before any of a user's code is run
and before the command has talked to Ray.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any, NoReturn, Self

from tune_sparsity.tuner.cluster.fork_client import FORKED, OOM_SCORE, SERVER
from tune_sparsity.tuner.cluster.ray_patches import MISSING, loading_a_worker, settle_ray
from tune_sparsity.tuner.errors import one_line
from tune_sparsity.tuner.system.patching import variables

_BACKLOG = 1024  # workers that may wait for it to have loaded
_MISUNDERSTOOD = (OSError, ValueError, TypeError, LookupError)  # from a client that has left, or is none of ours
_RAY, _LIBRARY = "RAY_", "ray"
_NO_JOB = {"RAY_JOB_ID": "ffffffff"}


class ForkServer:
    """A fork server from `fork` until the block ends, or this process does. Whoever asks before waits for it.

    Attributes:
        variables: by which tuner/cluster/fork_client.py finds it; none where processes are not safely copied.
        refused: why there is no copy after `fork`, in one line; empty where there is one.
    """

    def __init__(self) -> None:
        self.variables: Mapping[str, str] = {}
        self.refused = ""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if sys.platform == "linux" and _LIBRARY not in sys.modules:  # which `fork` has to load in its own way
            folder = tempfile.mkdtemp(prefix="tune-sparsity-")  # only this user's, and so is what is asked for there
            self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
            self._path = Path(folder, "workers")
            self._listener = self._stack.enter_context(socket.socket(socket.AF_UNIX))
            self._listener.bind(str(self._path))
            self._listener.listen(_BACKLOG)
            self.variables = {SERVER: str(self._path)}
        return self

    def __exit__(self, *reason: object) -> None:
        self.end()

    def end(self) -> None:
        """Stop the fork server before the `with` block ends."""
        self._stack.close()

    def fork(self, alone: Callable[[], bool]) -> None:
        """Load what workers need, and copy this process; only the first time.

        Args:
            alone: whether it has no other threads now; else those who ask are refused.
        """
        if not self.variables or self._listener.fileno() < 0:
            return
        with self._listener:
            try:
                self.refused = _refusal(alone)
                if not self.refused:
                    self._copy()
            except OSError as error:  # too many processes, or no memory
                self.refused = one_line(error)

    def _copy(self) -> None:
        ended, alive = os.pipe()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        process = os.fork()
        if process == 0:
            _end_with(lambda: _serve(self._listener, self._path, ended))
        os.close(ended)
        self._stack.callback(os.close, alive)
        self._stack.callback(os.waitpid, process, 0)
        self._stack.callback(os.kill, process, signal.SIGKILL)


def _refusal(alone: Callable[[], bool]) -> str:
    """Load what workers need. Return why this process is not to be copied, in one line, or an empty string."""
    if _LIBRARY in sys.modules:
        return "Ray was loaded before"
    try:
        _load()
    except MISSING as error:
        return one_line(error)
    if not alone():
        return "the command has threads, which a copy would lack"
    return "" if _differ() else "copies of the command would give out the same names"


def _load() -> None:
    """Loads Ray so that a copy can become its worker, and our trials' code."""
    with _as_in_a_worker():
        import ray  # noqa: F401

    with loading_a_worker():
        import tune_sparsity.tuner.worker.trainable  # noqa: F401

    gc.freeze()  # what a copy's collector never looks at stays shared


def _as_in_a_worker() -> AbstractContextManager[None]:
    """Ray's library reads two variables when it is loaded, and a driver's needs neither: whose work a worker does, any
    job's, and the process with which it ends, for which this one does, since the raylet ends with it too."""
    return variables({**_NO_JOB, "RAY_RAYLET_PID": str(os.getpid())})


def _serve(asked: socket.socket, path: Path, ended: int) -> None:
    """The process: serves the listening socket until `ended`, a pipe, does, with the driver that has not ended it. The
    folder of the socket's path is then nobody's."""
    os.setpgid(0, 0)  # an interrupt from the keyboard is for the driver alone
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here waits for workers: they leave no zombies
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream, number in ((ended, 0), (nowhere, 1), (nowhere, 2)):
        os.dup2(stream, number)
    os.close(nowhere)
    _close_pipes()
    server = Server(asked)
    while True:
        ready, _, _ = select.select([asked.fileno(), 0], [], [])
        if asked.fileno() in ready:
            with suppress(*_MISUNDERSTOOD), asked.accept()[0] as client:
                server.answer(client)
        elif ready:
            shutil.rmtree(path.parent, ignore_errors=True)
            return


def _close_pipes() -> None:
    """Those of the driver, whose other processes are to see that they end with it. Libraries have none of their own."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the listing's own
            if int(name) > 2 and os.readlink(f"/proc/self/fd/{name}").startswith("pipe:"):
                os.close(int(name))


def _end_with(last: Callable[[], object]) -> NoReturn:
    """A forked process does this, and nothing of what its original would have done next."""
    code = 1
    try:
        last()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(OSError):
            sys.stderr.flush()
        os._exit(code)


def _differ() -> bool:
    """Return whether copies of this process give out names of their own."""
    return _name_of_a_copy() != _name_of_a_copy()


def _name_of_a_copy() -> bytes:
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            from ray import ObjectRef

            os.write(write, ObjectRef.from_random().binary())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as name:
        found = name.read()
    os.waitpid(process, 0)
    return found


class Server:
    """Forks workers.

    Args:
        listener: the socket that is asked at, which no worker keeps.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener, self._variables = listener, dict[str, str]()

    def answer(self, client: socket.socket) -> None:
        """Fork the worker that is asked for, unless it is to see other variables of Ray's than the first, or the raylet
        has given up waiting for it meanwhile.

        Raises:
            one of _MISUNDERSTOOD: if the client did not ask.
        """
        first, streams, _, _ = socket.recv_fds(client, 1, 3)
        try:
            asked = json.loads(first + b"".join(iter(lambda: client.recv(1 << 16), b"")))
            variables = _of_ray(asked["environment"])
            self._variables = self._variables or variables
            if variables != self._variables or _has_left(client):
                return
            if os.fork() == 0:
                self._listener.close()
                client.close()
                _end_with(lambda: _become(asked, streams))
            client.sendall(FORKED)
        finally:
            for stream in streams:
                os.close(stream)


def _has_left(client: socket.socket) -> bool:
    """Return whether the other end is closed altogether, and not only for writing."""
    poll = select.poll()
    poll.register(client, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def _of_ray(environment: dict[str, str]) -> dict[str, str]:
    """Ray's variables as a worker sees them that is started before there is work for it: it may then do any job's. One
    that is started for work is told whose, and there is one job only."""
    return {name: value for name, value in environment.items() if name.startswith(_RAY)} | _NO_JOB


def _become(asked: dict[str, Any], streams: list[int]) -> None:
    """Ray's worker, as if it had been started as the raylet wanted."""
    os.setpgid(0, 0)  # the raylet ends a worker with its group
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, asked["blocked"])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"] | _NO_JOB)
    os.nice(asked["nice"] - os.nice(0))
    with suppress(OSError):
        Path(OOM_SCORE).write_text(asked["oom_score"])
    settle_ray()
    _own_randomness()
    sys.argv = asked["arguments"]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _own_randomness() -> None:
    """Copies would all draw the same numbers, where a user's code gives no seed. Python's own generator knows."""
    import numpy as np

    np.random.seed()
