"""Start a real S3 server for tests, without code of this project. Tests reach this process over HTTP."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.mlflow_servers import free_port

BUCKET = "studies"


def credentials(endpoint: str) -> dict[str, str]:
    """Return the environment variables with which a process can use a server."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        "AWS_REGION": "us-east-1",
    }


class S3Server:
    """moto's S3 server. It keeps all objects in memory: a pause keeps them, but a kill loses them.

    Args:
        folder: the folder for the log.
        host: the address at which the server listens.
        before: words before the command of the server, for example to run it in a network namespace. If there are such
            words, the caller makes the bucket.
        port: the port at which the server listens. If None, this is any free port.
        guarded: whether the server refuses access keys that were not created on it.
    """

    def __init__(
        self,
        folder: Path,
        host: str = "127.0.0.1",
        before: Sequence[str] = (),
        guarded: bool = False,
        port: int | None = None,
    ) -> None:
        self.port = port or free_port()
        self.endpoint = f"http://{host}:{self.port}"
        self.environment = credentials(self.endpoint)
        env = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "1"} if guarded else dict(os.environ)
        with (folder / "s3.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*before, sys.executable, "-m", "moto.server", "-H", host, "-p", str(self.port)],
                stdout=log,
                stderr=log,
                env=env,
                start_new_session=True,
            )
        if before:
            return  # the server may run in a network namespace that this process cannot reach
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection((host, self.port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        self.make_bucket(BUCKET)

    def make_bucket(self, name: str) -> None:
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()

    def pause(self) -> None:
        """Stop the process of the server until `go_on`, so that it does not answer, like a machine that hangs."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
