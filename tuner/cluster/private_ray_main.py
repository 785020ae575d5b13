"""The process that a private Ray on this machine belongs to: starts it, watches it, and ends it.

It is not the driver: workers are copies of the driver (tuner.cluster.fork_server), and a process that has talked to Ray
has threads that a copy would lack. The driver has it started (tuner.cluster.private_ray), reads Ray's address from it,
and ends it by closing its standard input. The kernel does the same for a driver that is killed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import resource
import select
import sys
from typing import TYPE_CHECKING, Any

from tune_sparsity.tuner.cluster import fork_client
from tune_sparsity.tuner.cluster.node import Node
from tune_sparsity.tuner.cluster.ray_patches import ask_for_token, count_gpus, start_node
from tune_sparsity.tuner.system.patching import variables

if TYPE_CHECKING:
    from tune_sparsity.tuner.cluster.ray_patches import RayNode

_LOOK_EVERY = 0.2  # seconds
_FILES = 65536  # that Ray's processes may have open, as Ray has it, where the system lets them


def main(sizes: str) -> None:
    """The process.

    Args:
        sizes: the arguments of `cpus_in_use` as JSON.
    """
    gc.set_threshold(100_000, 50, 100)
    try:
        wanted = json.loads(sizes)
        ours = start(cpus_in_use(**wanted), ahead=wanted["cpus_per_trial"] <= 1)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        return
    print(json.dumps({"address": ours.gcs_address}), flush=True)
    while not select.select([sys.stdin], [], [], _LOOK_EVERY)[0]:
        if ours.dead_processes():  # as for want of memory: nothing that waits for Ray would ever hear of it
            break
    os.close(sys.stdout.fileno())  # which says that it has ended
    sys.stdin.read()  # the driver would wait a minute for what it has just asked of a process that is ended
    ours.kill_all_processes(check_alive=False, allow_graceful=True)
    os._exit(0)


def cpus_in_use(cpus_per_trial: float, gpus_per_trial: float | str, trials: int, concurrency: int | None) -> int:
    """CPUs of the trials that run at once: Ray starts a process for each."""
    here = Node("", "", max(len(os.sched_getaffinity(0)), cpus_per_trial), count_gpus())
    gpus = gpus_per_trial if not isinstance(gpus_per_trial, str) else float(here.gpus > 0)
    at_once = max(1, here.room(cpus_per_trial, gpus))
    return math.ceil(min(at_once, trials, concurrency or at_once) * cpus_per_trial)


def start(cpus: int, *, ahead: bool) -> RayNode:
    """A Ray of our own. Ray gives its processes half a minute to start, which on a busy machine takes a second try. The
    later tries are with Ray's agents: another version of Ray may not do without.

    Args:
        ahead: workers load what trials need, and are kept until there is a trial.
    """
    ask_for_token(make=True)
    _allow_files()
    for lean, last in ((True, False), (False, False), (False, True)):
        try:
            with _loading_ahead(ahead):
                return start_node(cpus, agents=not lean, **_params())
        except Exception as error:
            if last or "timed out during startup" not in str(error):
                raise
    raise AssertionError  # the last try returns or raises


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _FILES)), hard))


def _params() -> dict[str, Any]:
    """Ray without what nobody looks at here: its dashboard's server, its autoscaler and what collects workers' logs.
    Each is a Python process of its own, and together they take as long to start as all the rest of Ray. Workers are
    started by tuner/cluster/fork_client.py, where there is a fork server for it to ask."""
    options: dict[str, Any] = {"include_dashboard": False, "no_monitor": True, "include_log_monitor": False}
    if fork_client.SERVER in os.environ:
        options["setup_worker_path"] = fork_client.__file__
    return options


def _loading_ahead(ahead: bool) -> contextlib.AbstractContextManager[None]:
    """Ray's processes start, and load what trials need, seconds before there is a trial to run, and are kept until
    there is; not where only one of several processes would ever have one. They start with the raylet: with the driver's
    connection, as Ray has it, the driver would wait for them, and it has as much to load."""
    # A worker is there when the driver has loaded all: a raylet that gave up before would not take the driver either.
    settings = {"RAY_prestart_worker_first_driver": "0", "RAY_worker_register_timeout_seconds": "600"}
    if ahead:
        settings |= {
            "RAY_enable_worker_prestart": "1",
            "RAY_preload_python_modules": "tune_sparsity.tuner.worker.trainable",
            "RAY_idle_worker_killing_time_threshold_ms": "60000",
        }
    return variables({name: value for name, value in settings.items() if name not in os.environ})
