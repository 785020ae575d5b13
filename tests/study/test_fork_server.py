"""Test Ray workers that are forks of one process: what they share, and when Ray starts them without a fork."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tune_sparsity.tuner.cluster import fork_client
from tune_sparsity.tuner.cluster import fork_server as fork_server_module
from tune_sparsity.tuner.cluster.fork_client import FORKED, SERVER

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux alone")

PROBE = """
import json, os, random, signal, sys
import numpy as np
had = {name: name in sys.modules for name in ("torch", "ray", "tune_sparsity.tuner.worker.trainable")}
import ray, threading
names = [ray.ObjectRef.from_random().hex() for _ in range(3)]
thread = threading.Thread(target=lambda: names.append(ray.ObjectRef.from_random().hex()))
thread.start()
thread.join()
json.dump({
    "had": had, "parent": os.getppid(), "leads": os.getpgid(0) == os.getpid(), "arguments": sys.argv,
    "folder": os.getcwd(), "nice": os.nice(0), "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "drawn": [random.random(), np.random.random(), *names], "variables": dict(os.environ),
    "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")),
}, sys.stdout)
sys.stdout.flush()
sys.exit(3)
"""


def workers(script: Path, server: dict[str, str], count: int = 1, **variables: str) -> list[dict[str, Any]]:
    """Start workers with fork_client.py, as Ray does. Return what each worker prints."""
    command = [sys.executable, fork_client.__file__, "--language=PYTHON", str(script), "--node-id=7"]
    environment = {**os.environ, "RAY_JOB_ID": "ffffffff", **server, **variables}
    started = [
        subprocess.Popen(command, env=environment, cwd=script.parent, stdout=subprocess.PIPE, preexec_fn=_as_ray_does)
        for _ in range(count)
    ]
    return [json.loads(one.communicate(timeout=120)[0]) for one in started]


def _as_ray_does() -> None:
    import signal

    os.nice(7)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


SERVING = """
import sys
from tune_sparsity.tuner.cluster.fork_server import ForkServer
with ForkServer() as server:
    print(*server.variables.values(), flush=True)
    server.fork(lambda: True)
    print("forked", flush=True)
    sys.stdin.read()
"""


REFUSING = """
import os

def begin():
    from ray import ObjectRef
    ObjectRef.from_random()
    return True

def refuse():
    raise BlockingIOError(11, "no more processes")
"""


def serving(code: str = SERVING) -> subprocess.Popen[str]:
    """Start a process that forks workers. The test process cannot do so if Ray is already loaded in it."""
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def server() -> Any:
    with serving() as process:
        assert process.stdout is not None
        yield {SERVER: process.stdout.readline().strip()}
        process.communicate("")
    assert process.returncode == 0


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "setup_worker.py").write_text("print('\"as Ray does\"')")
    path = tmp_path / "worker.py"
    path.write_text(PROBE)
    return path


@pytest.mark.slow
def test_a_forked_worker_has_the_loaded_modules_and_its_own_process_state(server: dict[str, str], script: Path) -> None:
    first, second = workers(script, server, 2, MINE="é")
    assert first["had"] == {"torch": True, "ray": True, "tune_sparsity.tuner.worker.trainable": True}
    assert first["parent"] == second["parent"]
    assert first["leads"] is second["leads"] is True
    assert first["arguments"] == [str(script), "--node-id=7"]
    assert first["folder"] == str(script.parent)
    assert first["nice"] == os.getpriority(os.PRIO_PROCESS, 0) + 7
    assert first["blocked"] == [2]
    assert first["variables"]["MINE"] == "é"
    assert set(first["descriptors"]) <= {0, 1, 2, 3}  # os.listdir opens 3 to list the descriptors
    assert not set(first["drawn"]) & set(second["drawn"])


@pytest.mark.slow
def test_a_worker_that_ray_starts_for_one_job_is_forked_without_a_job_id(server: dict[str, str], script: Path) -> None:
    (worker,) = workers(script, server, RAY_JOB_ID="01000000")
    assert worker["had"]["ray"]
    assert worker["variables"]["RAY_JOB_ID"] == "ffffffff"


@pytest.mark.slow
def test_workers_with_other_ray_variables_are_started_by_ray_and_not_forked(
    server: dict[str, str], script: Path
) -> None:
    assert workers(script, server)[0]["nice"] == os.getpriority(os.PRIO_PROCESS, 0) + 7
    assert workers(script, server, RAY_SOMETHING="1") == ["as Ray does"]


@pytest.mark.parametrize("option", ["--language=JAVA", '--serialized-runtime-env-context={"env_vars": {"A": "1"}}'])
def test_workers_of_other_languages_or_runtime_environments_are_not_forked(
    option: str, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[list[str]] = []
    monkeypatch.setattr(fork_client, "ask", lambda *args: pytest.fail("asked"))
    monkeypatch.setattr(os, "execv", lambda path, arguments: became.append(arguments))
    monkeypatch.setenv(SERVER, "/nowhere")
    fork_client.main([option, str(script), "--node-id=7"])
    assert became == [[sys.executable, str(script.parent / "setup_worker.py"), option, str(script), "--node-id=7"]]


def test_ray_starts_the_workers_if_there_is_no_fork_server(script: Path) -> None:
    assert workers(script, {}) == ["as Ray does"]
    assert workers(script, {SERVER: str(script.parent / "nobody")}) == ["as Ray does"]


def test_ray_starts_the_worker_if_the_fork_server_dies_during_a_request(script: Path) -> None:
    path = script.parent / "dying"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def die() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=die)
        thread.start()
        assert workers(script, {SERVER: str(path)}) == ["as Ray does"]
        thread.join()


@pytest.mark.slow
def test_the_fork_server_survives_clients_that_send_no_valid_request(server: dict[str, str], script: Path) -> None:
    for message in (b"", b" ", b" no json", b"[]"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(server[SERVER])
            client.sendall(message)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) != FORKED
    assert workers(script, server)[0]["had"]["torch"]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_the_fork_server_ends_with_its_parent_and_removes_its_folder(killed: bool) -> None:
    with serving() as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip()).parent
        assert folder.stat().st_mode & 0o077 == 0
        assert process.stdout.readline().strip() == "forked"
        (copy,) = psutil.Process(process.pid).children()
        assert copy.is_running()
        if killed:
            process.kill()
        else:
            process.communicate("")
    end = time.monotonic() + 60
    while (folder.exists() or copy.is_running()) and time.monotonic() < end:
        time.sleep(0.05)
    assert not folder.exists()
    assert not copy.is_running()


def test_a_process_that_has_loaded_ray_starts_no_fork_server(tmp_path: Path) -> None:
    code = "import ray; from tune_sparsity.tuner.cluster.fork_server import ForkServer\n"
    code += "with ForkServer() as s: s.fork(bool); print(s.variables)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "{}", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fork", "why"),
    [
        ("import ray; server.fork(lambda: True)", "Ray was loaded before"),
        ("server.fork(lambda: False)", "the command has threads, and a fork would lack them"),
        ("server.fork(begin)", "two forks of the command would create objects with the same ids"),
        ("os.fork = refuse; server.fork(lambda: True)", "BlockingIOError: [Errno 11] no more processes"),
    ],
)
def test_ray_starts_the_workers_if_a_fork_is_refused_and_the_reason_is_kept(fork: str, why: str, script: Path) -> None:
    code = REFUSING + SERVING.replace("server.fork(lambda: True)", fork).replace('"forked"', "server.refused")
    assert fork in code
    with serving(code) as process:
        assert process.stdout is not None
        assert workers(script, {SERVER: process.stdout.readline().strip()}) == ["as Ray does"]
        assert process.stdout.readline().strip() == why
        process.communicate("")


@pytest.mark.parametrize("leaves", [False, True])
def test_the_fork_server_forks_only_for_clients_that_still_wait(leaves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    forked: list[int] = []
    monkeypatch.setattr(os, "fork", lambda: forked.append(1) or 1)
    with socket.socket(socket.AF_UNIX) as listener:
        server = fork_server_module.Server(listener)
        for _ in range(2):
            ours, theirs = socket.socketpair()
            with ours, theirs:
                socket.send_fds(theirs, [b" "], [0, 1, 2])
                theirs.sendall(json.dumps({"environment": {"RAY_A": "1", "B": "2"}}).encode())
                theirs.shutdown(socket.SHUT_WR)
                if leaves:
                    theirs.close()
                server.answer(ours)
                ours.close()
                assert leaves or theirs.recv(1) == FORKED
    assert len(forked) == 2 * (not leaves)
