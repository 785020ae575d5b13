"""Simulate two machines: two connected network namespaces, a Ray node in each, and a folder that only one node sees."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests import ROOT
from tests.helpers.s3_servers import credentials

HEAD, WORKER = "10.201.7.1", "10.201.7.2"
ADDRESS, CLIENT = f"{HEAD}:6379", f"ray://{HEAD}:10001"
S3_PORT = 5000  # the port of an S3 server that a test starts on the head node; both nodes use this server
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
_NODE = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--log-color=false"]


@dataclass
class TwoNodes:
    """A Ray cluster of two nodes with one CPU each.

    Attributes:
        folder: a folder that both nodes see. Only its subfolder `hidden` differs: there, the worker node sees an empty
            folder of its own.
        environment: the environment variables of the nodes. One of them names the file of the cluster's token.
    """

    folder: Path
    environment: dict[str, str]
    name: str = field(default_factory=lambda: f"ts{os.getpid() % 100000}")

    @property
    def hidden(self) -> Path:
        return self.folder / "hidden"

    def inside(self, side: str, command: Sequence[str | Path]) -> list[str]:
        """Return the command line that runs a command in the namespace of the "head" or the "worker"."""
        return ["ip", "netns", "exec", f"{self.name}{side}", *map(str, command)]

    def start_head(self) -> None:
        # Sockets have names of 107 characters at most: Ray's folder needs a short path.
        where = ["--head", f"--node-ip-address={HEAD}", "--port=6379", "--include-dashboard=false"]
        where += ["--ray-client-server-port=10001"] * (find_spec("grpc") is not None)
        self._start(self.inside("head", [*RAY, "start", *where, f"--temp-dir={self.folder}/ray", *_NODE]))

    def start_worker(self) -> None:
        """Start the worker node with a stale package `tune_sparsity`, whose import fails: trials must use the
        driver's code."""
        stale = self.folder / "stale" / "tune_sparsity"
        stale.mkdir(parents=True, exist_ok=True)
        (stale / "__init__.py").write_text("raise ImportError('this is what the node has, and not the driver')\n")
        start = [*RAY, "start", f"--address={ADDRESS}", f"--node-ip-address={WORKER}", *_NODE]
        script = f'mount -t tmpfs none "{self.hidden}" && exec "$@"'
        self._start(self.inside("worker", ["sh", "-c", script, "sh", *start]), PYTHONPATH=str(stale.parent))

    def _start(self, command: list[str], **more: str) -> None:
        done = subprocess.run(
            command,
            env={**self.environment, **more},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def processes(self, side: str) -> list[int]:
        listed = subprocess.run(["ip", "netns", "pids", f"{self.name}{side}"], capture_output=True, text=True)
        return [int(pid) for pid in listed.stdout.split()]

    def kill(self, side: str) -> None:
        """Kill all processes of a node at once, as if its power failed."""
        for _ in range(50):
            if not (pids := self.processes(side)):
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        raise AssertionError(f"processes of the {side} do not end")

    def command(self, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        """Start `tune-sparsity` in the namespace of the head node."""
        return subprocess.Popen(
            self.inside("head", [sys.executable, "-m", "tune_sparsity", *arguments]),
            cwd=self.folder,
            env={**self.environment, "PYTHONPATH": str(ROOT / "src"), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@contextlib.contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    """Start two nodes, and remove them at the end. If network namespaces cannot be made, skip the test."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("two nodes in network namespaces: run as root, and apt-get install iproute2")
    folder = Path(tempfile.mkdtemp(prefix="ts-", dir="/tmp"))
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_", "PYTHONPATH"))}
    ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    quick = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "3000"}  # to notice a dead node
    quick["RAY_worker_niceness"] = "0"  # workers load torch: at Ray's low priority that takes minutes on a busy machine
    store = credentials(f"http://{HEAD}:{S3_PORT}")
    nodes = TwoNodes(folder, {**ours, **ray, **quick, **store, "OMP_NUM_THREADS": "1"})
    nodes.hidden.mkdir()
    try:
        _cable(nodes.name)
        nodes.start_head()
        nodes.start_worker()
        yield nodes
    finally:
        for side in ("worker", "head"):
            nodes.kill(side)
            subprocess.run(["ip", "netns", "del", f"{nodes.name}{side}"], capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def _cable(name: str) -> None:
    """Make two network namespaces, and connect them with a pair of network devices."""
    head, worker = f"{name}head", f"{name}worker"
    for namespace in (head, worker):
        made = subprocess.run(["ip", "netns", "add", namespace], capture_output=True, text=True)
        if made.returncode != 0:
            pytest.skip(f"network namespaces cannot be made here: {made.stderr.strip()}")
    ip = ["ip", "link", "add", "cable", "netns", head, "type", "veth", "peer", "name", "cable", "netns", worker]
    subprocess.run(ip, check=True)
    for namespace, address in ((head, HEAD), (worker, WORKER)):
        for command in (f"addr add {address}/24 dev cable", "link set cable up", "link set lo up"):
            subprocess.run(["ip", "-n", namespace, *command.split()], check=True)
