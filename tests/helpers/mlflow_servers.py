"""Start real servers for tests: MLflow's server, a proxy that protects it with a password, and PostgreSQL."""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

PASSWORD = "not a secret"  # it contains blanks, because a password may contain them


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Server:
    """`mlflow server` on loopback, with all its files in one folder. A test can kill and restart it.

    MLflow's job workers are disabled, because no test needs them. They would start after the server says that it is
    ready, and take half a minute of processor time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--workers", "1"]
        artifacts = ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
            self._process = subprocess.Popen(
                [*command, *store, *artifacts],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**kept, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,
            )
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            time.sleep(0.3)
        raise RuntimeError(f"no server: {(self.folder / 'server.log').read_text()[-2000:]}")

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)  # the server and its workers are one process group
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def door(server: Server, user: str, password: str) -> Iterator[str]:
    """Start a proxy in front of the server, and yield its URI. It refuses requests without this user and password."""
    expected = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, kind, answer = 401, "text/plain", b"who are you?"
            if self.headers.get("Authorization") == expected:
                inner = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
                headers = {"Content-Type": self.headers.get("Content-Type") or "application/json"}
                inner.request(self.command, self.path, body, headers)
                got = inner.getresponse()
                status, kind, answer = got.status, got.headers.get("Content-Type") or "", got.read()
                inner.close()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on

        def log_message(self, *arguments: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        listening.server_close()


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """Start a PostgreSQL server on loopback that requires a password. Yield the URI of an empty database on it."""
    bins = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not bins:
        pytest.skip("no PostgreSQL: apt-get install postgresql (as .ci/run does where it may)")
    user = None
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("no user postgres, as whom root runs PostgreSQL: apt-get install postgresql")
    as_user = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    folder = Path(tempfile.mkdtemp(prefix="tune-sparsity-postgresql-"))
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
    (folder / "password").write_text("secret\n")
    (folder / "password").chmod(0o644)
    data, port, home = folder / "data", free_port(), bins[-1].parent
    make = [
        "-D",
        data,
        "-U",
        "ada",
        "--auth=scram-sha-256",
        f"--pwfile={folder / 'password'}",
        "--no-sync",
        "-E",
        "UTF8",
    ]
    server = None
    try:
        subprocess.run([home / "initdb", *make], check=True, cwd=folder, capture_output=True, **as_user)  # type: ignore[call-overload]
        options = ["-c", f"unix_socket_directories={folder}", "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        server = subprocess.Popen(
            [home / "postgres", "-D", data, "-p", str(port), *options],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **as_user,  # type: ignore[call-overload]
        )
        deadline = time.monotonic() + 120
        ready = [home / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
        while subprocess.run(ready, capture_output=True).returncode and time.monotonic() < deadline:
            time.sleep(0.2)
        yield f"postgresql://ada:secret@127.0.0.1:{port}/postgres"
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # a fast shutdown
            server.wait(60)
        shutil.rmtree(folder, ignore_errors=True)
