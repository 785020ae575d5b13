"""Start, watch and end a private Ray on this machine, in a process of its own.

The driver cannot start Ray itself. Workers are forks of a copy of the driver (tuner.cluster.fork_server). A driver that
had connected to Ray would have threads, and a fork copies only one thread. The driver therefore starts this process
(tuner.cluster.private_ray), and reads Ray's address from the process's standard output. To end this process, the driver
closes the process's standard input. If the driver is killed, the kernel closes the standard input.

The fast start uses private names of Ray's code. If the fast start fails, this process ends Ray's processes, and
executes its program again (os.execv). The new program starts Ray through Ray's public API.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import psutil

from tune_sparsity.tuner.cluster import fork_client
from tune_sparsity.tuner.cluster.node import Node, trials_at_once
from tune_sparsity.tuner.cluster.ray_patches import count_gpus, start_node
from tune_sparsity.tuner.errors import one_line
from tune_sparsity.tuner.system.patching import variables
from tune_sparsity.tuner.system.processes import own_process

_LOOK_EVERY = 0.2  # seconds
_ENDS_WITHIN = 10.0  # seconds, for a process that was killed
_FILES = 65536  # Ray's own limit of open files for its processes, if the system allows it
_LATE = "timed out during startup"  # Ray's message if its processes need more than half a minute
_SERVERS = ("gcs_server", "raylet")  # Ray needs both


@dataclass(frozen=True)
class Started:
    """A running private Ray.

    Attributes:
        address: Ray's address.
        end: a function that ends Ray's processes.
    """

    address: str
    end: Callable[[], object]


def main(wanted: str, plain: str = "", tried: str = "") -> None:
    """Start Ray, and tell the driver Ray's address. Wait until the driver closes standard input, or until one of Ray's
    servers has died. Then end Ray and this process.

    Args:
        wanted: JSON with two entries: `sizes`, the arguments of `cpus_in_use`; and `ahead`, whether workers start,
            and load the libraries of trials, before the first trial.
        plain: the reason, in one line, to start Ray through its public API, or "" for the fast start.
        tried: the error, in one line, of a first attempt to start Ray through its public API, if Ray's processes took
            too long to start. This call is then the second and last attempt. Without a first attempt, `tried` is "".
    """
    gc.set_threshold(100_000, 50, 100)
    if plain:
        _tell(again=tried) if tried else _tell(plain=plain)
    try:
        _allow_files()
        asked = json.loads(wanted)
        start = start_plainly if plain else start_quickly
        with _loading_ahead(asked["ahead"] and asked["sizes"]["cpus_per_trial"] <= 1):
            ray = start(cpus_in_use(**asked["sizes"]))
    except Exception as error:
        end_all(psutil.Process().children(recursive=True))
        if not plain:
            _again(wanted, one_line(error))
        if _LATE in str(error) and not tried:
            _again(wanted, plain, one_line(error))
        _tell(error=f"{type(error).__name__}: {error}")
        return
    _tell(address=ray.address)
    _watch(ray)


def _again(*arguments: str) -> NoReturn:
    """Replace this process by a new one that calls `main` with these arguments. The new process has no changes of the
    fast start in Ray's code."""
    command = own_process("tune_sparsity.tuner.cluster.private_ray_main", *arguments)
    os.execv(command[0], command)


def _tell(**message: str) -> None:
    """Send a message to the driver, as a line of JSON on standard output."""
    print(json.dumps(message), flush=True)


def _watch(ray: Started) -> None:
    """Wait until the driver closes standard input, or until one of Ray's servers has died, for example for lack of
    memory. Then tell the driver, and end Ray and this process."""
    servers = [child for child in psutil.Process().children() if child.name() in _SERVERS]
    alive = True
    while alive and not select.select([sys.stdin], [], [], _LOOK_EVERY)[0]:
        alive = all(map(_runs, servers))
    os.close(sys.stdout.fileno())  # tells the driver that Ray is ending
    # Wait until the driver has disconnected. Otherwise the driver's last calls would wait a minute for the ended Ray.
    sys.stdin.read()
    if alive:  # if a server has died, a graceful end would wait for it
        with contextlib.suppress(Exception):
            ray.end()
    end_all(psutil.Process().children(recursive=True))
    os._exit(0)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def end_all(processes: list[psutil.Process]) -> None:
    """Kill the given processes, and wait until they have ended."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, _ENDS_WITHIN)


def cpus_in_use(
    cpus_per_trial: float, gpus_per_trial: float | str, workers_per_trial: int, trials: int, concurrency: int | None
) -> int:
    """Return the number of CPUs that a private Ray gets: enough for the trials that run at the same time, and at most
    the CPUs of this machine. The arguments have the names of the options of `tune-sparsity`.

    Args:
        cpus_per_trial: the number of CPUs of each worker.
        gpus_per_trial: the number of GPUs of each worker. The text "auto" stands for 1 if this machine has a GPU,
            otherwise for 0.
        workers_per_trial: the number of workers of each trial.
        trials: the number of trials of the study.
        concurrency: the largest number of trials that run at the same time; None for as many as fit.
    """
    here = Node("", "", max(len(os.sched_getaffinity(0)), cpus_per_trial), count_gpus())
    gpus = gpus_per_trial if not isinstance(gpus_per_trial, str) else float(here.gpus > 0)
    at_once = max(1, trials_at_once([here], cpus_per_trial, gpus, workers_per_trial))
    workers = min(at_once, trials, concurrency or at_once) * workers_per_trial
    return math.ceil(min(workers * cpus_per_trial, here.cpus))


def start_quickly(cpus: int) -> Started:
    """Start Ray without the processes that a private Ray does not need: the dashboard, two agents, the autoscaler and
    the log monitor. They are Python processes, and together they take as long to start as the rest of Ray. If there is
    a fork server, tuner/cluster/fork_client.py starts the workers."""
    options: dict[str, Any] = {"include_dashboard": False, "no_monitor": True, "include_log_monitor": False}
    if fork_client.SERVER in os.environ:
        options["setup_worker_path"] = fork_client.__file__
    node = start_node(cpus, **options)
    return Started(node.gcs_address, lambda: node.kill_all_processes(check_alive=False, allow_graceful=True))


def start_plainly(cpus: int) -> Started:
    """Start Ray through its public API."""
    with _standard_output_aside():
        import ray

        ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    return Started(ray.get_runtime_context().gcs_address, ray.shutdown)


@contextlib.contextmanager
def _standard_output_aside() -> Iterator[None]:
    """Return a context manager. In its block, standard output is redirected to standard error, so that Ray's libraries
    cannot disturb the messages to the driver."""
    before = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _FILES)), hard))


def _loading_ahead(ahead: bool) -> contextlib.AbstractContextManager[None]:
    """Return a context manager. In its block, Ray's environment variables for the start of workers are set.

    By default, Ray starts workers when the driver connects. The driver would then wait for them, while it has to load
    libraries itself.

    Args:
        ahead: whether the workers start together with the raylet, load the libraries that trials need, and wait for a
            trial. Otherwise no worker starts before a trial needs it.
    """
    # Workers are forks of a copy of the driver. This copy is made after the driver has loaded all libraries, so workers
    # register late, and the raylet must wait for them.
    settings = {"RAY_prestart_worker_first_driver": "0", "RAY_worker_register_timeout_seconds": "600"}
    if ahead:
        settings |= {
            "RAY_enable_worker_prestart": "1",
            "RAY_preload_python_modules": "tune_sparsity.tuner.worker.trainable",
            "RAY_idle_worker_killing_time_threshold_ms": "60000",
        }
    return variables({name: value for name, value in settings.items() if name not in os.environ})
