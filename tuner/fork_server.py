"""The process of which the workers of a private Ray are copies.

A worker needs torch, Ray and our trials' code: seconds of a processor, and most of a gigabyte. The fork server loads
them once for all workers; each is forked from it in a moment, and shares the memory of what was loaded. It has no
threads that a copy would lack, and runs no code of a user's. The raylet starts tuner/forked_worker.py in place of Ray's
own script for workers, which asks here.
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
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from tuner.forked_worker import FORKED, OOM_SCORE, SERVER
from tuner.own_process import own_process
from tuner.replaced import replaced

_BACKLOG = 1024  # workers that may wait for it to have loaded
_MISUNDERSTOOD = (OSError, ValueError, TypeError, LookupError)  # from a client that has left, or is none of ours
_RAY, _NO_JOB = "RAY_", {"RAY_JOB_ID": "ffffffff"}


@contextmanager
def fork_server() -> Iterator[dict[str, str]]:
    """A fork server that ends with the block, or with this process.

    Yields:
        the variables by which tuner/forked_worker.py finds it; none where processes are not safely copied.
    """
    if sys.platform != "linux":
        yield {}
        return
    folder = tempfile.mkdtemp(prefix="tune-sparsity-")  # only this user's, and so is what is asked for there
    path = Path(folder, "workers")
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(_BACKLOG)
            process = _start(listener, path)
        try:
            yield {SERVER: str(path)}
        finally:
            process.kill()  # perhaps while it loads
            process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(listener: socket.socket, path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        own_process(__name__, str(listener.fileno()), str(path)),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,  # ends with this process
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[listener.fileno()],
        process_group=0,  # an interrupt from the keyboard is for the driver alone
    )


def main(listener: str, path: str) -> None:
    """The process: serves the listening socket of that file descriptor until its standard input ends, with the driver
    that has not ended it. The folder of the socket's path is then nobody's."""
    gc.disable()  # until a worker is forked: to look for garbage while libraries load takes a quarter of that
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here waits for workers: they leave no zombies
    with socket.socket(fileno=int(listener)) as asked:
        _load_libraries()
        server = Server(asked)
        while True:
            ready, _, _ = select.select([asked, sys.stdin], [], [])
            if asked in ready:
                with suppress(*_MISUNDERSTOOD), asked.accept()[0] as client:
                    server.answer(client)
            elif ready:
                shutil.rmtree(Path(path).parent, ignore_errors=True)
                return


def _load_libraries() -> None:
    """What takes longest of all that workers need, and reads nothing of Ray's variables."""
    import pandas  # noqa: F401
    import torch  # noqa: F401

    import experiments  # noqa: F401
    import sparsity  # noqa: F401


def _load_ray(variables: dict[str, str]) -> None:
    """The rest. Ray's library reads its variables when it is loaded, once for all."""
    for name in [name for name in os.environ if name.startswith(_RAY)]:
        del os.environ[name]
    os.environ.update(variables)
    import ray

    with replaced(ray.actor, "ActorClassID", _ActorClassID):
        import ray._private.workers.default_worker

        import tuner.trial  # noqa: F401

    gc.freeze()  # what a copy's collector never looks at stays shared


class _ActorClassID:
    """Ray's, but that its generator is not begun: all workers would go on with it, and give out the same names. Ray's
    modules name their actors when they are loaded."""

    @staticmethod
    def from_random() -> Any:
        from ray._raylet import ActorClassID

        return ActorClassID(os.urandom(ActorClassID.size()))


def _differ() -> bool:
    """Whether copies of this process give out names of their own."""
    return _name_of_a_copy() != _name_of_a_copy()


def _name_of_a_copy() -> bytes:
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            from ray import ObjectRef

            os.write(write, ObjectRef.from_random().binary())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as name:
        return name.read()


class Server:
    """Forks workers.

    Args:
        listener: the socket that is asked at, which no worker keeps.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener, self._variables = listener, dict[str, str]()
        self._sound = False

    def answer(self, client: socket.socket) -> None:
        """Forks the worker that is asked for, unless it is to see other variables of Ray's than the first, another
        version of Ray does not bear to be copied, or the raylet has given up waiting for the worker meanwhile.

        Raises:
            one of _MISUNDERSTOOD: if the client did not ask.
        """
        first, streams, _, _ = socket.recv_fds(client, 1, 3)
        try:
            asked = json.loads(first + b"".join(iter(lambda: client.recv(1 << 16), b"")))
            variables = _of_ray(asked["environment"])
            if not self._variables:
                _load_ray(variables)
                self._variables, self._sound = variables, _differ()
            if variables != self._variables or not self._sound or _has_left(client):
                return
            if os.fork() == 0:
                self._listener.close()
                client.close()
                _become(asked, streams)
            client.sendall(FORKED)
        finally:
            for stream in streams:
                os.close(stream)


def _has_left(client: socket.socket) -> bool:
    """Whether the other end is closed altogether, and not only for writing."""
    poll = select.poll()
    poll.register(client, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def _of_ray(environment: dict[str, str]) -> dict[str, str]:
    """Ray's variables as a worker sees them that is started before there is work for it: it may then do any job's. One
    that is started for work is told whose, and there is one job only."""
    return {name: value for name, value in environment.items() if name.startswith(_RAY)} | _NO_JOB


def _become(asked: dict[str, Any], streams: list[int]) -> NoReturn:
    """Ray's worker, as if it had been started as the raylet wanted."""
    code = 1
    try:
        gc.enable()
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
        _own_randomness()
        sys.argv = asked["arguments"]
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(OSError):
            sys.stderr.flush()
        os._exit(code)


def _own_randomness() -> None:
    """Copies would all draw the same numbers, where a user's code gives no seed. Python's own generator knows."""
    import numpy as np

    np.random.seed()
