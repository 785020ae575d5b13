"""Test a private Ray: which processes it starts, when it starts, and that no process is left afterwards."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import pytest

from tune_sparsity.tuner.cluster.connection import PrivateRay, RunningCluster, connection, is_sound
from tune_sparsity.tuner.config.study_config import make_config

SCRIPT = """
import json, os, sys, time, psutil
from tune_sparsity.tuner.config.study_config import make_config
from tune_sparsity.tuner.cluster.connection import connection

def trees():
    return [p.cmdline() for p in psutil.Process().children(recursive=True)]

ahead = sys.argv[1] == "ahead"
with connection(make_config({"target": 0.9, "concurrency": 2}).resolved(), ahead=ahead) as connected:
    before = trees()
    connected.share(lambda: True)
    connected.wait()
    import ray

    class Actor:
        def __init__(self):
            self.had = "tune_sparsity.tuner.worker.trainable" in sys.modules  # before anybody asked for it
        def facts(self):
            return self.had, os.getpid(), os.environ["OMP_NUM_THREADS"], os.getppid()

    def idle_workers():
        return [line for line in trees() if line and line[0].startswith("ray::IDLE")]

    end = time.monotonic() + 120
    while len(idle_workers()) < 2:
        assert time.monotonic() < end, trees()
        time.sleep(0.1)
    idle = {p.pid for p in psutil.Process().children(recursive=True)}
    actors = [ray.remote(num_cpus=1)(Actor).remote() for _ in range(2)]
    facts = ray.get([actor.facts.remote() for actor in actors])
    os.kill(facts[0][1], 9)
    another = ray.get(ray.remote(num_cpus=1)(Actor).remote().facts.remote())
    started = trees()
    everyone = [psutil.Process(), *psutil.Process().children(recursive=True)]
    def connections(process):
        try:
            return process.net_connections("tcp")
        except psutil.NoSuchProcess:  # it has ended since
            return []
    open_to = [c.laddr.ip for p in everyone for c in connections(p) if c.status == psutil.CONN_LISTEN]
    connected.end()
    connected.ended()
print(json.dumps({
    "before": before, "facts": facts, "idle": sorted(idle), "started": started, "after": trees(),
    "another": another, "listening": [ip.removeprefix("::ffff:") for ip in open_to],
    "set": sorted(name for name in os.environ if "preload" in name or "prestart" in name or "FORK_" in name),
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("begun", ["ahead", pytest.param("late", marks=pytest.mark.long)])
def test_a_private_ray_has_few_processes_and_its_workers_share_loaded_modules(begun: str) -> None:
    command = [sys.executable, "-c", SCRIPT, begun]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert bool(found["before"]) is (begun == "ahead")  # without `ahead`, Ray starts only in wait()
    # Both actors run in workers that existed before and were idle.
    assert {pid for _, pid, _, _ in found["facts"]} <= set(found["idle"])
    assert len({pid for _, pid, _, _ in found["facts"]}) == 2
    assert len({parent for _, _, _, parent in found["facts"]}) == 1  # both are forks of one process
    assert [(had, threads) for had, _, threads, _ in found["facts"]] == [(True, "1")] * 2
    had, pid, _, parent = found["another"]
    assert (had, parent) == (True, found["facts"][0][3])  # also a fork: torch and Ray are not loaded again
    assert pid not in found["idle"]
    servers = [command for command in found["started"] if command and command[0].endswith(("/gcs_server", "/raylet"))]
    assert len(servers) == 2
    others = [" ".join(command) for command in found["started"] if command not in servers]
    assert not [one for one in others if "dashboard.py" in one or "monitor.py" in one or "gent" in one]
    assert len(found["listening"]) >= 4
    assert set(found["listening"]) == {"127.0.0.1"}
    assert found["after"] == []
    assert found["set"] == []


ABANDONED = """
import psutil, subprocess, time
from tune_sparsity.tuner.config.study_config import make_config
from tune_sparsity.tuner.cluster.connection import connection

class Kept(subprocess.Popen):
    made = []

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.made.append(self)

subprocess.Popen = Kept
with connection(make_config({"target": 0.9, "concurrency": 2}).resolved(), ahead=True):
    end = time.monotonic() + 60
    while not {"gcs_server", "raylet"} <= {p.name() for p in psutil.Process().children(recursive=True)}:
        assert time.monotonic() < end
        time.sleep(0.05)
    started = psutil.Process().children(recursive=True)
(node,) = [one for one in Kept.made if "private_ray_main" in " ".join(map(str, one.args))]
left = [p for p in started if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
end = time.monotonic() + 60
while left and time.monotonic() < end:
    time.sleep(0.1)
    left = [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
assert not left, left
print(node.returncode)
"""


@pytest.mark.slow
def test_a_ray_that_was_started_early_and_is_not_needed_is_killed_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", ABANDONED], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    # A process that starts Ray reads a request to end only when Ray has started, so it is killed instead.
    assert int(done.stdout) == -signal.SIGKILL


def test_wait_raises_an_error_if_ray_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/proc/nowhere")
    with PrivateRay(make_config({"target": 0.9}).resolved()) as ray:
        ray.begin()
        for _ in range(2):
            with pytest.raises(RuntimeError, match="did not start"):
                ray.wait()


LOST = """
import os, signal, sys, time, psutil
from tune_sparsity.tuner.config.study_config import make_config
from tune_sparsity.tuner.cluster.connection import connection

with connection(make_config({"target": 0.9, "concurrency": 1}).resolved()) as connected:
    connected.share(lambda: True)
    connected.wait()
    told = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    processes = psutil.Process().children(recursive=True)
    next(p for p in processes if p.name() == sys.argv[1]).kill()
    end = time.monotonic() + 60
    while not told and time.monotonic() < end:
        time.sleep(0.05)
    print(connected.lost, told == [signal.SIGTERM], flush=True)
    os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("which", [pytest.param("gcs_server", marks=pytest.mark.long), "raylet"])
def test_a_ray_that_dies_interrupts_the_driver(which: str) -> None:
    done = subprocess.run([sys.executable, "-c", LOST, which], capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout.split() == ["True", "True"], done.stderr


WAITING = """
import contextlib, os, sys, threading, time, psutil
from tune_sparsity.tuner.cluster import connection
from tune_sparsity.tuner.config.study_config import make_config
from tune_sparsity.tuner.system.signals import terminable

def died():
    print("died", flush=True)
    os._exit(7)

connection._ANSWER_WITHIN = 1.0 if sys.argv[1] == "deaf" else 60.0
with connection.connection(make_config({"target": 0.9, "concurrency": 1}).resolved(), died=died) as connected:
    connected.share(lambda: True)
    connected.wait()
    from ray.experimental import internal_kv

    next(p for p in psutil.Process().children(recursive=True) if p.name() == "gcs_server").kill()
    with contextlib.suppress(KeyboardInterrupt), terminable(connected):
        if sys.argv[1] == "deaf":
            internal_kv._internal_kv_get(b"x")  # an interrupt has no effect in it
        time.sleep(200)
    for watching in [thread for thread in threading.enumerate() if thread.name == "ray"]:
        watching.join()  # it has been answered, or it says that the driver died
    print("ended", flush=True)
    os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code", "said"), [("deaf", 7, "died"), ("listening", 0, "ended")])
def test_a_driver_that_is_blocked_by_a_dead_ray_is_ended(how: str, code: int, said: str) -> None:
    command = [sys.executable, "-c", WAITING, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stdout.split()) == (code, [said]), done.stderr


LEAVING = """
import os, signal, sys
import ray
from tune_sparsity.tuner.cluster.connection import connection
from tune_sparsity.tuner.config.study_config import make_config
from tune_sparsity.tuner.system.signals import terminable

def interrupted(*arguments, **options):
    os.kill(os.getpid(), signal.SIGINT)
    disconnect(*arguments, **options)

with connection(make_config({"target": 0.9, "concurrency": 1}).resolved()) as connected:
    connected.share(lambda: True)
    connected.wait()
    kept, disconnect = ray.put(bytes(1 << 20)), ray._private.worker.disconnect
    ray._private.worker.disconnect = interrupted
    try:
        with terminable(connected):
            connected.end()
    except KeyboardInterrupt:
        print("interrupted", ray.is_initialized(), flush=True)
print("ended", flush=True)
os._exit(0)
"""


@pytest.mark.slow
def test_an_interrupt_is_raised_only_after_ray_is_disconnected() -> None:
    done = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["interrupted", "False", "ended"]), done.stderr


@pytest.mark.parametrize(
    ("more", "ahead"),
    [
        ({}, True),
        ({"trials": 5, "seed": 3, "target": "0.8,0.9"}, True),
        ({"experiment": "fashion-mnist", "method": "rigl", "sampler": "gp"}, True),
        ({"experiment": "mine.py:mine"}, False),
        ({"experiment": "mine:mine"}, False),
        ({"space": "lpss"}, False),
        ({"warm_start": ["s"]}, False),
        ({"gpus_per_trial": 1}, False),
    ],
)
def test_ray_may_start_early_only_if_no_later_check_can_refuse_the_options(more: dict[str, Any], ahead: bool) -> None:
    assert is_sound(make_config({"target": 0.9, **more}).resolved()) is ahead


def test_an_address_gives_a_connection_to_a_running_cluster() -> None:
    assert isinstance(
        connection(make_config({"target": 0.9, "address": "auto"}).resolved(), ahead=True), RunningCluster
    )
