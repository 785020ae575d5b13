"""The process that a private Ray on this machine belongs to: starts it, watches it, and ends it.

It is not the driver, since workers are copies of that (tuner.fork_server), and who has talked to Ray has threads that
a copy would lack. The driver has it started (tuner.node_process), reads Ray's address from it, and ends it by closing
its standard input, as the kernel does for a driver that is killed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import math
import os
import resource
import select
import shutil
import sys
from collections.abc import Iterator
from typing import Any

from ray._private import node, parameter, ray_constants, services
from ray._private.accelerators import NvidiaGPUAcceleratorManager
from ray._private.authentication import authentication_token_setup as tokens

from tune_sparsity.tuner import forked_worker
from tune_sparsity.tuner.nodes import Node
from tune_sparsity.tuner.system.patching import replaced, variables

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
    # As Ray itself will count them; torch, which knows too, would have to be loaded for it.
    devices = NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
    here = Node("", "", max(len(os.sched_getaffinity(0)), cpus_per_trial), devices)
    gpus = gpus_per_trial if not isinstance(gpus_per_trial, str) else float(here.gpus > 0)
    at_once = max(1, here.room(cpus_per_trial, gpus))
    return math.ceil(min(at_once, trials, concurrency or at_once) * cpus_per_trial)


def start(cpus: int, *, ahead: bool) -> node.Node:
    """A Ray of our own. Ray gives its processes half a minute to start, which on a busy machine takes a second try. The
    later tries are with Ray's agents: another version of Ray may not do without.

    Args:
        ahead: workers load what trials need, and are kept until there is a trial.
    """
    logging.getLogger(tokens.__name__).setLevel(logging.ERROR)
    tokens.enable_token_auth_by_default()
    tokens.ensure_token_if_auth_enabled(create_token_if_missing=True)
    _allow_files()
    for lean, last in ((True, False), (False, False), (False, True)):
        try:
            with on_loopback(), _without_dashboard(), _raylet(agents=not lean), _loading_ahead(ahead):
                return node.Node(_params(cpus), head=True, shutdown_at_exit=False, ray_init_cluster=True)
        except Exception as error:
            if last or "timed out during startup" not in str(error):
                raise
    raise AssertionError  # the last try returns or raises


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _FILES)), hard))


def _params(cpus: int) -> parameter.RayParams:
    """Ray without what nobody looks at here: its dashboard's server, its autoscaler and what collects workers' logs.
    Each is a Python process of its own, and together they take as long to start as all the rest of Ray. Workers are
    started by tuner/forked_worker.py, where there is a fork server for it to ask."""
    options: dict[str, Any] = {"include_dashboard": False, "no_monitor": True, "include_log_monitor": False}
    if forked_worker.SERVER in os.environ:
        options["setup_worker_path"] = forked_worker.__file__
    return parameter.RayParams(num_cpus=cpus, **options)


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Ray listens on all interfaces unless its node's address is 127.0.0.1; given that one, it takes the machine's own
    instead. It takes 127.0.0.1 by itself only where it knows that there can be no cluster."""
    with replaced(ray_constants, "ENABLE_RAY_CLUSTER", False):
        yield


def _without_dashboard() -> contextlib.AbstractContextManager[None]:
    """Ray has no option for it that spares the process."""
    return replaced(node.Node, "start_api_server", lambda self, **options: None)


@contextlib.contextmanager
def _raylet(*, agents: bool) -> Iterator[None]:
    """The raylet is launched without its two agents, unless they are wanted."""
    launch = services.start_ray_process

    def started(command: list[str], kind: str, *args: Any, **options: Any) -> Any:
        lean = kind == ray_constants.PROCESS_TYPE_RAYLET and not agents
        return launch(_without_agents(command) if lean else command, kind, *args, **options)

    with replaced(services, "start_ray_process", started):
        yield


def _without_agents(command: list[str]) -> list[str]:
    """The raylet's command without its agents for the dashboard and for runtime environments: Python processes that
    load for seconds, for which it waits before it lets workers start. It insists on having them, and ends if they do;
    so they are a process that waits for the end of its input, the raylet's own, at ports that nobody asks for."""
    waits, nowhere = shutil.which("cat"), "-1"  # the port of an agent that serves nothing
    if waits is None:
        return command
    flags = {"--dashboard_agent_command": waits, "--runtime_env_agent_command": waits}
    flags |= dict.fromkeys(("--metrics-agent-port", "--metrics_export_port", "--runtime_env_agent_port"), nowhere)
    names = [argument.partition("=")[0] for argument in command]
    changed = [f"{name}={flags[name]}" if name in flags else given for name, given in zip(names, command, strict=True)]
    return [*changed, f"--dashboard_agent_listen_port={nowhere}"]


def _loading_ahead(ahead: bool) -> contextlib.AbstractContextManager[None]:
    """Ray's processes start, and load what trials need, seconds before there is a trial to run, and are kept until
    there is; not where only one of several processes would ever have one. They start with the raylet: with the driver's
    connection, as Ray has it, the driver would wait for them, and it has as much to load."""
    # A worker is there when the driver has loaded all: a raylet that gave up before would not take the driver either.
    settings = {"RAY_prestart_worker_first_driver": "0", "RAY_worker_register_timeout_seconds": "600"}
    if ahead:
        settings |= {
            "RAY_enable_worker_prestart": "1",
            "RAY_preload_python_modules": "tune_sparsity.tuner.trial",
            "RAY_idle_worker_killing_time_threshold_ms": "60000",
        }
    return variables({name: value for name, value in settings.items() if name not in os.environ})
