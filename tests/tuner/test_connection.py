"""A Ray of our own: what it starts, when, and that it is gone afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tuner.config import UsageError, make_config
from tuner.connection import PrivateRay, RunningCluster, connection

SCRIPT = """
import json, os, sys, time, psutil
from tuner.config import make_config
from tuner.connection import connection

def trees():
    return [p.cmdline() for p in psutil.Process().children(recursive=True)]

config = make_config({"target": 0.9, "concurrency": 2, "experiment": "x.py:x"}).resolved()
with connection(config) as connected:
    before = trees()
    connected.wait()
    import ray

    class Actor:
        def __init__(self):
            self.had = "tuner.trial" in sys.modules  # before anybody asked for it
        def facts(self):
            return self.had, os.getpid(), os.environ["OMP_NUM_THREADS"], os.getppid()

    time.sleep(6)
    idle = {p.pid for p in psutil.Process().children(recursive=True)}
    actors = [ray.remote(num_cpus=1)(Actor).remote() for _ in range(2)]
    facts = ray.get([actor.facts.remote() for actor in actors])
    os.kill(facts[0][1], 9)
    began = time.monotonic()
    another = ray.get(ray.remote(num_cpus=1)(Actor).remote().facts.remote())
    took = time.monotonic() - began
    started = trees()
    connected.end()
print(json.dumps({
    "before": before, "facts": facts, "idle": sorted(idle), "started": started, "after": trees(),
    "another": another, "took": took,
    "set": sorted(name for name in os.environ if "preload" in name or "prestart" in name or "FORK_" in name),
}))
"""


@pytest.mark.slow
def test_its_processes_are_few_and_have_loaded_what_trials_need() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["before"] == []  # nothing is started before somebody waits
    assert {pid for _, pid, _, _ in found["facts"]} <= set(found["idle"])  # in the processes that were there
    assert len({pid for _, pid, _, _ in found["facts"]}) == 2
    assert len({parent for _, _, _, parent in found["facts"]}) == 1  # copies of one
    assert [(had, threads) for had, _, threads, _ in found["facts"]] == [(True, "1")] * 2
    had, pid, _, parent = found["another"]
    assert (had, parent) == (True, found["facts"][0][3])
    assert pid not in found["idle"]
    assert found["took"] < 2, found["took"]  # where torch and Ray would take longer to load
    commands = [" ".join(command) for command in found["started"]]
    assert any("gcs_server" in command for command in commands)
    assert not [one for one in commands if "dashboard.py" in one or "monitor.py" in one]
    assert found["after"] == []
    assert found["set"] == []


ABANDONED = """
import psutil, time
from tuner.config import make_config
from tuner.connection import connection

began = time.monotonic()
with connection(make_config({"target": 0.9, "concurrency": 2}).resolved(), ahead=True) as connected:
    connected.give_way()
    all_started = psutil.Process().children(recursive=True)
    started = {p.name() for p in all_started}
    launched = time.monotonic()
assert {"gcs_server", "raylet"} <= started, started
took = time.monotonic() - launched
left = [p for p in all_started if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
while left and time.monotonic() < launched + 10:
    time.sleep(0.1)
    left = [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
assert not left, left
print(took)
"""


@pytest.mark.slow
def test_what_turns_out_not_to_be_needed_ends_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", ABANDONED], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2  # where a worker alone would need longer to load


def test_what_goes_wrong_in_its_thread_is_raised_to_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: Any, launched: Any, forking: Any) -> Any:
        raise UsageError("no")

    monkeypatch.setattr("tuner.cluster.connected", refuse)
    with PrivateRay(make_config({"target": 0.9}).resolved()) as ray:
        ray.give_way()  # to nobody: it has not begun
        ray.begin()
        ray.give_way()  # does not wait for what will never be
        for _ in range(2):
            with pytest.raises(UsageError, match="no"):
                ray.wait()


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
def test_it_begins_ahead_where_little_can_be_wrong_any_more(
    more: dict[str, Any], ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[PrivateRay] = []
    monkeypatch.setattr(PrivateRay, "begin", lambda self: begun.append(self))
    config = make_config({"target": 0.9, **more}).resolved()
    connection(config, ahead=True)
    assert bool(begun) is ahead
    connection(config)
    assert len(begun) == ahead


def test_a_cluster_is_joined_by_who_waits() -> None:
    assert isinstance(
        connection(make_config({"target": 0.9, "address": "auto"}).resolved(), ahead=True), RunningCluster
    )
