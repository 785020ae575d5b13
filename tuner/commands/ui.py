"""Runs `tune-sparsity ui`, which shows a study in MLflow's UI. Only this machine can open the UI."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from tune_sparsity.tuner.errors import UsageError

HOST = "127.0.0.1"
PORT = 5000
_PATIENCE = 180.0  # seconds to wait for the server: MLflow's imports take long on a busy machine


def ui(arguments: list[str]) -> int:
    """Run the subcommand `ui` until the user interrupts it. Return the exit code."""
    from tune_sparsity.tuner.commands.arguments import Parser
    from tune_sparsity.tuner.config.tracking_uri import resolve_tracking_uri
    from tune_sparsity.tuner.results.finished_study import read_ended

    parser = Parser("tune-sparsity ui", description="Opens a study in MLflow's UI, for this machine only.")
    parser.add_argument(
        "study", metavar="STUDY", nargs="?", help="the study's name, or its folder (default: all studies)"
    )
    parser.add_storage()
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow's store (default: the study's store; without STUDY, sqlite:///mlflow.db)",
    )
    parser.add_argument(
        "--port", metavar="N", help=f"the server's port (default: {PORT}, or any free port if {PORT} is in use)"
    )
    options = parser.parse_args(arguments)
    uri, page = options.tracking_uri, ""
    if options.study:
        study = read_ended(options.study, options.storage)
        uri = uri or study.config.tracking_uri
        ids: dict[str, Any] = study.result.get("mlflow") or {}
        if ids.get("run_id"):
            page = f"/#/experiments/{ids['experiment_id']}/runs/{ids['run_id']}"
    uri = resolve_tracking_uri(uri)
    check_store(uri)
    if re.match(r"https?://", uri):
        print(f"{uri.rstrip('/')}{page}  (open this page of your MLflow server; no other server is started)")
        return 0
    port = free_port(options.port)
    print("MLflow's server starts. This may take half a minute.", file=sys.stderr)
    with _server(uri, port) as server:
        print(f"http://{HOST}:{port}{page}\nCtrl-C ends the server.", flush=True)
        try:
            server.wait()
        except KeyboardInterrupt:
            return 0
    raise UsageError(f"MLflow's server ended unexpectedly, with exit code {server.returncode}")


def check_store(uri: str) -> None:
    """Raise UsageError if the URI is not valid, or if it names an SQLite file that does not exist. MLflow would create
    a missing file, and show an empty UI."""
    from tune_sparsity.tuner.config.tracking_uri import check_tracking_uri, sqlite_file

    try:
        check_tracking_uri(uri)
    except ValueError as error:
        raise UsageError(f"--tracking-uri: {error}") from None
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise UsageError(f"there is no MLflow store at {file}: give a STUDY, or --tracking-uri")


def free_port(wanted: str | None) -> int:
    """Return the wanted port. If no port is wanted, return port 5000, or any free port if 5000 is in use. Raise
    UsageError if the wanted port is not valid or cannot be used."""
    if wanted is not None and not (wanted.isascii() and wanted.isdecimal() and 0 < int(wanted) < 65536):
        raise UsageError(f"--port {wanted!r}: give a number from 1 to 65535")
    for port in (int(wanted or PORT), *(() if wanted else (0,))):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
                return int(probe.getsockname()[1])
            except OSError:
                continue
    raise UsageError(f"--port {wanted}: this port is in use or needs more rights: give another port")


@contextmanager
def _server(uri: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Return a context manager. Before its block, it starts MLflow's server and waits until the server answers. After
    the block, it ends the server and all workers of the server.

    Raises:
        UsageError: if the server ends or does not answer in time. If the server has ended, the message contains the
            last line of the server's output.
    """
    place = ["--host", HOST, "--port", str(port), "--workers", "1"]
    # These variables are left out, because they would make MLflow use another store.
    environment = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI")}
    # No study uses the server's jobs, which would start a dozen more processes.
    environment.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    with tempfile.TemporaryFile("w+") as said:  # not a pipe, because nobody would read it
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, *place],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,  # so that the server can be ended with all its workers
        )
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that SIGTERM ends the server too
        try:
            _wait_until_it_answers(server, port, said)
            yield server
        finally:
            signal.signal(signal.SIGTERM, before)
            _end(server)


def _wait_until_it_answers(server: subprocess.Popen[bytes], port: int, said: IO[str]) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if server.poll() is not None:
            said.seek(0)
            lines = said.read().strip().splitlines()
            raise UsageError(f"MLflow's server did not start: {(lines or ['it printed nothing'])[-1]}")
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.2)
    raise UsageError(f"MLflow's server did not answer within {_PATIENCE:g} seconds")


def _end(server: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, sign)
        except ProcessLookupError:
            return
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            continue
        if sign == signal.SIGTERM:
            time.sleep(0.2)  # until the server's workers have ended too
