"""Fork the workers of a private Ray from a process that has already loaded their libraries.

A worker needs torch, Ray and our code for trials. Loading them takes seconds of processor time and most of a gigabyte
of memory. The driver, which also needs them, loads them once for all workers. The driver then forks itself, before any
user code runs and before the driver connects to Ray. This fork of the driver is the fork server. Forking a worker from
the fork server takes a moment, and the worker shares the fork server's memory. The fork server has a single thread,
because a fork copies only one thread. The fork server runs no user code.

The raylet starts tuner/cluster/fork_client.py instead of Ray's own script for workers. fork_client.py asks the fork
server for a worker.
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

_BACKLOG = 1024  # workers that may wait while the fork server loads libraries
_MISUNDERSTOOD = (OSError, ValueError, TypeError, LookupError)  # errors with a client that has left or is not ours
_RAY, _LIBRARY = "RAY_", "ray"
_NO_JOB = {"RAY_JOB_ID": "ffffffff"}


class ForkServer:
    """A fork server. It runs from the call of `fork` until the `with` block or this process ends. If requests for
    workers arrive before the call of `fork`, they wait for this call.

    Attributes:
        variables: the environment variables that tell tuner/cluster/fork_client.py how to reach the server. They are
            empty if this system cannot fork safely, or if Ray has already been imported.
        refused: the reason, in one line, why `fork` did not fork this process; "" before `fork`, or if it succeeded.
    """

    def __init__(self) -> None:
        self.variables: Mapping[str, str] = {}
        self.refused = ""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if (
            sys.platform == "linux" and _LIBRARY not in sys.modules
        ):  # a process that has imported Ray must not be forked
            folder = tempfile.mkdtemp(prefix="tune-sparsity-")  # only this user has access
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
        """Load the libraries of workers and fork this process. Only the first call has an effect.

        Args:
            alone: a function that returns whether this process has no other threads. If there are other threads, this
                process is not forked, and `refused` says so.
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
    """Load the libraries of workers. Return the reason, in one line, why this process must not be forked, or "" if it
    may be forked."""
    if _LIBRARY in sys.modules:
        return "Ray was loaded before"
    try:
        _load()
    except MISSING as error:
        return one_line(error)
    if not alone():
        return "the command has threads, and a fork would lack them"
    return "" if _differ() else "two forks of the command would create objects with the same ids"


def _load() -> None:
    """Import our code for trials and Ray. Prepare Ray so that a fork of this process can become a worker."""
    with _as_in_a_worker():
        import ray  # noqa: F401

    with loading_a_worker():
        import tune_sparsity.tuner.worker.trainable  # noqa: F401

    gc.freeze()  # the collector of a copy skips frozen objects, so that their memory stays shared


def _as_in_a_worker() -> AbstractContextManager[None]:
    """Return a context manager. In its block, two environment variables are set that Ray reads if it is imported in a
    worker. RAY_JOB_ID gets the value for "no job yet". RAY_RAYLET_PID must be the id of a process that ends together
    with the raylet. This process ends together with the raylet."""
    return variables({**_NO_JOB, "RAY_RAYLET_PID": str(os.getpid())})


def _serve(asked: socket.socket, path: Path, ended: int) -> None:
    """Serve requests at the listening socket until the driver has died. Then remove the folder of the socket.

    Args:
        asked: the listening socket.
        path: the path of the socket.
        ended: the end of a pipe for reading. The pipe closes if the driver dies.
    """
    os.setpgid(0, 0)  # Ctrl-C is only for the driver
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # avoids zombies, because this process does not wait for workers
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
    """Close this fork's copies of the driver's pipes. The driver's other processes wait for the pipes to close when the
    driver ends. Closing all pipes is safe, because the loaded libraries use none."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # listdir's own descriptor is already closed
            if int(name) > 2 and os.readlink(f"/proc/self/fd/{name}").startswith("pipe:"):
                os.close(int(name))


def _end_with(last: Callable[[], object]) -> NoReturn:
    """Call a function in a forked process, and then end the process. Without this end, the process would continue the
    program of its parent."""
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
    """Return whether two forks of this process create different random ids for Ray's objects. Equal ids would confuse
    the objects of two workers."""
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
    """Forks workers on request.

    Args:
        listener: the socket for requests. Each forked worker closes its copy of the socket.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener, self._variables = listener, dict[str, str]()

    def answer(self, client: socket.socket) -> None:
        """Fork the requested worker. Refuse the request in two cases: if an environment variable of Ray (RAY_...) has
        another value than in the first request, or if the client has closed the connection.

        Args:
            client: the connection to a process that runs tuner/cluster/fork_client.py.

        Raises:
            OSError, ValueError, TypeError, LookupError: if the request cannot be read.
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
    """Return whether the other end has closed the connection completely, and not only for writing."""
    poll = select.poll()
    poll.register(client, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def _of_ray(environment: dict[str, str]) -> dict[str, str]:
    """Return Ray's environment variables, with the value "no job yet" for RAY_JOB_ID. Ray gives this value to workers
    that it starts in advance, and the id of the job to other workers. A private Ray has only one job, so the difference
    does not matter."""
    return {name: value for name, value in environment.items() if name.startswith(_RAY)} | _NO_JOB


def _become(asked: dict[str, Any], streams: list[int]) -> None:
    """Turn this forked process into Ray's worker, as if the raylet had started it.

    Args:
        asked: the request of tuner/cluster/fork_client.py.
        streams: the file descriptors for standard input, output and error.
    """
    # The raylet ends a worker's whole process group. This group must not contain the fork server or other workers.
    os.setpgid(0, 0)
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
    """Seed NumPy's global generator. Without this seed, all forked workers would draw the same random numbers in user
    code that sets no seed. Python seeds its own generator after a fork."""
    import numpy as np

    np.random.seed()
