"""A real S3 server on loopback for the tests: what it is asked over HTTP, and nothing of ours inside it."""

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
    """What a process needs in its environment to use a server."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        "AWS_REGION": "us-east-1",
    }


class S3Server:
    """moto's server, which keeps all in memory; stopped for a while it keeps it, killed it forgets.

    Args:
        folder: for its log.
        host: the address that it listens at.
        before: put before the command, to run it elsewhere; the caller makes the bucket.
        port: that it listens at; any that is free by default.
        guarded: refuse credentials that nobody made.
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
        """It answers nothing any more, as a machine that hangs."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
