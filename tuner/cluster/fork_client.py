"""Start a worker of a private Ray as a fork of the fork server (tuner.cluster.fork_server). If the fork server does not
fork a worker, start the worker as Ray does.

The raylet (Ray's process that starts workers) runs this file as a script, in place of Ray's own setup_worker.py. The
raylet passes the same arguments as to setup_worker.py. These arguments are the path of the worker's script, the options
for the worker's script, and the options for setup_worker.py itself. To start quickly, this file imports only the
modules that a request to the fork server needs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time

SERVER = "TUNE_SPARSITY_FORK_SERVER"  # the environment variable with the path of the server's socket
FORKED = b"\1"  # the server's answer
OOM_SCORE = "/proc/self/oom_score_adj"
_ENDS_WITHIN = 0.2  # seconds to wait for the raylet's end
_CONTEXT = "--serialized-runtime-env-context="
_LANGUAGE = "--language="


def main(arguments: list[str]) -> None:
    """Ask the fork server for a worker. If the server does not fork one, turn this process into the worker, except if
    the raylet has ended.

    Args:
        arguments: the arguments of setup_worker.py.
    """
    try:
        forked = _plain(arguments) and ask(os.environ[SERVER], arguments)
    except (OSError, KeyError):
        forked = False
    if not (forked or _alone()):
        script = next(argument for argument in arguments if not argument.startswith("-"))
        own = os.path.join(os.path.dirname(script), "setup_worker.py")
        os.execv(sys.executable, [sys.executable, own, *arguments])


def _alone() -> bool:
    """Return whether the raylet has ended, for example because the driver has reported a user's mistake. The worker
    must not start in this case, because it would search for its raylet for a minute."""
    time.sleep(_ENDS_WITHIN)
    return os.environ.get("RAY_RAYLET_PID", str(os.getppid())) != str(os.getppid())


def _plain(arguments: list[str]) -> bool:
    """Return whether the requested worker runs Python code without a Ray runtime environment."""
    options = [argument for argument in arguments if argument.startswith((_CONTEXT, _LANGUAGE))]
    return set(options) <= {_CONTEXT + "{}", _LANGUAGE + "PYTHON"}


def ask(server: str, arguments: list[str]) -> bool:
    """Ask the fork server to fork a worker that replaces this process. Return whether the server has done so.

    Args:
        server: the path of the server's socket.
        arguments: the arguments of setup_worker.py.

    Raises:
        OSError: if no server answers.
    """
    with open(OOM_SCORE) as file:
        oom_score = file.read()
    wanted = {
        "arguments": [argument for argument in arguments if not argument.startswith((_CONTEXT, _LANGUAGE))],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "nice": os.nice(0),
        "oom_score": oom_score,
    }
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(server)
        socket.send_fds(client, [b" "], [0, 1, 2])
        client.sendall(json.dumps(wanted).encode())
        client.shutdown(socket.SHUT_WR)
        return client.recv(1) == FORKED


if __name__ == "__main__":
    main(sys.argv[1:])
