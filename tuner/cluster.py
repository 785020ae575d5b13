"""The connection to Ray: a private one on this machine, a running cluster, or one behind Ray Client.

Whatever the cluster's nodes have installed, the code that they run is this process's: the four packages go there as
Ray's runtime environment, from wherever they are imported here (a wheel, an editable checkout). A user's experiment
travels with the trials (tuner.travel), and the data through Ray's object store, once to each node.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import ray
from ray._private import node, parameter, ray_constants, services
from ray._private.accelerators import NvidiaGPUAcceleratorManager

from tuner import forked_worker
from tuner.config import JOB, StudyConfig, UsageError
from tuner.node_probe import OURS
from tuner.nodes import Node
from tuner.replaced import replaced

_CLIENT = "ray://"
_NO_VARIABLES: Mapping[str, str] = {}
# Our own records are the truth, and the driver writes them: Ray's loggers, its snapshots and its reporter only cost.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "PL_DISABLE_FORK": "1",  # which Tune sets for its actors
    # One thread per trial process: two under contention make a one-second trial take 35 seconds.
    "OMP_NUM_THREADS": "1",
}


@contextlib.contextmanager
def connected(
    config: StudyConfig, launched: Callable[[], object] = bool, forking: Mapping[str, str] = _NO_VARIABLES
) -> Iterator[None]:
    """A connection to the cluster at the study's address, or to a private Ray on this machine, that ends with it.

    Args:
        launched: called when the processes of a private Ray have been started, though they are not up yet.
        forking: variables of the fork server (tuner.fork_server) of which a private Ray's workers are copies.

    Raises:
        UsageError: if no cluster answers at the address, or refuses this process.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("ray.tune", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a failed trial's reason is in our own table, in one line
    if config.address is None:
        _start_private(config, launched, forking)
    else:
        _join(config.address)
    try:
        yield
    finally:
        ray.shutdown()


def _start_private(
    config: StudyConfig, launched: Callable[[], object] = bool, forking: Mapping[str, str] = _NO_VARIABLES
) -> None:
    """A Ray of our own. Ray gives its processes half a minute to start, which on a busy machine takes a second try. The
    later tries are with Ray's agents: another version of Ray may not do without."""
    cpus = _cpus_in_use(config)
    for lean, last in ((True, False), (False, False), (False, True)):
        try:
            with (
                _on_loopback(),
                _without_onlookers(),
                _raylet(launched, agents=not lean),
                _loading_ahead(config),
                _forked(forking),
            ):
                ray.init(
                    "local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
                )
            return
        except Exception as error:
            if last or "timed out during startup" not in str(error):
                raise
            ray.shutdown()


def _cpus_in_use(config: StudyConfig) -> int:
    """CPUs of the trials that run at once: Ray starts a process for each."""
    # As Ray itself will count them; torch, which knows too, is being loaded meanwhile.
    devices = NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
    here = Node("", "", max(len(os.sched_getaffinity(0)), config.cpus_per_trial), devices)
    gpus = config.gpus_per_trial if config.gpus_per_trial != "auto" else float(here.gpus > 0)
    at_once = max(1, here.room(config.cpus_per_trial, gpus))
    return math.ceil(min(at_once, config.trials, config.concurrency or at_once) * config.cpus_per_trial)


@contextlib.contextmanager
def _loading_ahead(config: StudyConfig) -> Iterator[None]:
    """Ray's processes start, and load what trials need, seconds before there is a trial to run, and are kept until
    there is; not where only one of several processes would ever have one. They start with the raylet: with the driver's
    connection, as Ray has it, the driver would wait for them, and it has as much to load."""
    settings = {"RAY_prestart_worker_first_driver": "0"}
    if config.cpus_per_trial <= 1:
        settings |= {
            "RAY_enable_worker_prestart": "1",
            "RAY_preload_python_modules": "tuner.trial",
            "RAY_idle_worker_killing_time_threshold_ms": "60000",
        }
    with _variables({name: value for name, value in settings.items() if name not in os.environ}):
        yield


@contextlib.contextmanager
def _forked(forking: Mapping[str, str]) -> Iterator[None]:
    """Ray's workers are started by tuner/forked_worker.py, where there is a fork server for it to ask."""
    if not forking:
        yield
        return
    options: dict[str, Any] = {"setup_worker_path": forked_worker.__file__}
    with replaced(parameter, "RayParams", functools.partial(parameter.RayParams, **options)), _variables(forking):
        yield


@contextlib.contextmanager
def _variables(new: Mapping[str, str]) -> Iterator[None]:
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Ray listens on all interfaces unless its node's address is 127.0.0.1; given that one, it takes the machine's own
    instead. It takes 127.0.0.1 by itself only where it knows that there can be no cluster."""
    with replaced(ray_constants, "ENABLE_RAY_CLUSTER", False):
        yield


@contextlib.contextmanager
def _without_onlookers() -> Iterator[None]:
    """Ray without what nobody looks at here: its dashboard's server, its autoscaler and what collects workers' logs.
    Each is a Python process of its own, and together they take as long to start as all the rest of Ray. `ray.init` has
    no options for them."""
    options: dict[str, Any] = {"no_monitor": True, "include_log_monitor": False}
    lean = functools.partial(parameter.RayParams, **options)
    with (
        replaced(parameter, "RayParams", lean),
        replaced(node.Node, "start_api_server", lambda self, **options: None),
    ):
        yield


@contextlib.contextmanager
def _raylet(launched: Callable[[], object], *, agents: bool) -> Iterator[None]:
    """Tells when the raylet has been launched, and launches it without its two agents unless they are wanted."""
    start = services.start_ray_process

    def started(command: list[str], kind: str, *args: Any, **options: Any) -> Any:
        if kind != ray_constants.PROCESS_TYPE_RAYLET:
            return start(command, kind, *args, **options)
        process = start(command if agents else _without_agents(command), kind, *args, **options)
        launched()
        return process

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


def _join(address: str) -> None:
    if address.startswith(_CLIENT) and importlib.util.find_spec("grpc") is None:
        raise UsageError(f"--address {address!r}: Ray Client needs grpcio: pip install 'tune-sparsity[client]'")
    with _standard_error_aside() as said:
        try:
            ray.init(address, runtime_env=runtime_environment(), log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray's own, gRPC's and Python's, as the way of connecting has it
            said.seek(0)
            raise UsageError(f"--address {address!r}: {refusal(str(error), said.read())}") from error


def refusal(message: str, said: str) -> str:
    """Why a cluster could not be joined, in one line.

    Args:
        message: of the exception that Ray raised.
        said: what its libraries wrote to standard error meanwhile.
    """
    both = f"{message} {said}"
    if "InvalidAuthToken" in both or "uthentication" in both:
        return (
            "the cluster asks for a token, and did not get its own: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH "
            "to a file that holds the cluster's token"
        )
    reason = " ".join(message.split())
    if "ersion mismatch" in reason:
        return f"the cluster runs other versions: {reason[:240]}"
    return f"no Ray cluster answers there ({reason[:160]})"


def runtime_environment() -> dict[str, Any]:
    """The four packages as modules that Ray brings to every node; nothing where a job already brings modules, which Ray
    does not let us add to."""
    job = json.loads(os.environ.get(JOB) or "{}").get("runtime_env") or {}
    if "py_modules" in job:
        return {}
    return {"py_modules": [str(_folder(package)) for package in OURS], "excludes": ["__pycache__", "*.pyc"]}


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@contextlib.contextmanager
def _standard_error_aside() -> Iterator[IO[str]]:
    """What is written to standard error meanwhile, by Ray's libraries too, goes into a file: a cluster that refuses us
    does so in twenty lines."""
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield file
        finally:
            os.dup2(before, 2)
            os.close(before)
