"""Contain every use of a private name of Ray. `PRIVATE` explains why each name is used, and how a study runs without
the name.

Each function imports only the part of Ray that the function needs. A process that starts a private Ray does not need
Ray Tune, and tuner.cluster.fork_server must set environment variables before it imports Ray. If Ray does not have a
private name, the function that needs the name raises one of the errors in `MISSING`. `patched` then leaves the patch
out, and `why_not` names the missing part.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tune_sparsity.tuner.errors import one_line
from tune_sparsity.tuner.system.patching import replaced

if TYPE_CHECKING:
    from ray._private.node import Node as RayNode
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

MISSING = (ImportError, AttributeError)
"""The errors that Python raises if Ray does not have a private name."""
PLAIN = "Ray is started through its public API"
"""The effect if Ray does not have one of the names for the fast start."""
_ONLY_LOADED_BEFORE = "only a program that imported Ray before the study set Ray's variables is affected"
_ONE_LOSS_TWICE = "Tune counts the loss of a process twice for a trial that waits for it"
_CLIENT = "a study with --address ray://... ends with a message"


class PrivateName(NamedTuple):
    """A private name of Ray.

    Attributes:
        name: the full name, beginning with `ray`.
        reason: the purpose of the name, as the end of a sentence that begins with the name: "is an argument of Node".
        gain: the advantage for a study.
        without: the effect if Ray does not have the name.
    """

    name: str
    reason: str
    gain: str
    without: str


_CONTROLLER = "ray.tune.execution.tune_controller.TuneController"
PRIVATE = (
    PrivateName(
        "ray._private.node.Node",
        "starts Ray's processes from a process that is not connected to Ray",
        "workers are copies of the command, and four Python processes are not needed: with the next four names, "
        "start-up takes 9 s instead of 26 s on two cores",
        PLAIN,
    ),
    PrivateName("ray._private.parameter.RayParams", "is an argument of Node", "the same as for Node", PLAIN),
    PrivateName(
        "ray._private.node.Node.start_api_server",
        "starts the dashboard's process, which no option turns off",
        "one Python process less",
        PLAIN,
    ),
    PrivateName(
        "ray._private.services.start_ray_process",
        "launches the raylet, whose two agents are left out",
        "two Python processes less, and the raylet does not wait for them before it starts workers",
        PLAIN,
    ),
    PrivateName(
        "ray._private.workers.default_worker",
        "is the script of Ray's workers, which is imported before a process is copied",
        "copies share its memory, and do not import it",
        PLAIN,
    ),
    PrivateName(
        "ray.actor.ActorClassID",
        "creates ids of actor classes, with a random generator whose state all forks would share",
        "processes can be copied: each worker starts in a moment and shares most of its memory",
        PLAIN,
    ),
    PrivateName(
        "ray.tune.execution.class_cache._ActorClassCache",
        "gives Tune's actors an environment, for which Ray starts new processes instead of using waiting ones",
        "trials run in processes that have already loaded their libraries",
        f"{PLAIN}, and its processes load the libraries when the trials begin",
    ),
    PrivateName(
        "ray._private.accelerators.NvidiaGPUAcceleratorManager",
        "counts the GPUs as Ray does",
        "torch is not imported, which would take seconds",
        "torch counts them",
    ),
    PrivateName(
        "ray._private.ray_constants.ENABLE_RAY_CLUSTER",
        "keeps Ray on loopback if it was imported before the study began",
        "a program that has imported Ray itself can run a study",
        _ONLY_LOADED_BEFORE,
    ),
    PrivateName(
        "ray._raylet.Config",
        "reads Ray's variables again if Ray was imported before they were set",
        "a program that has imported Ray itself can run a study",
        _ONLY_LOADED_BEFORE,
    ),
    PrivateName(
        "ray.air._internal.usage.tag_callbacks",
        "counts callbacks for Ray's statistics, and imports MLflow for this",
        "the command saves seconds and memory, because only another process needs MLflow",
        "the command imports MLflow",
    ),
    PrivateName(
        f"{_CONTROLLER}._process_trial_failure",
        "decides what happens to a trial whose process is lost before the trial begins",
        "the loss counts once",
        _ONE_LOSS_TWICE,
    ),
    *(
        PrivateName(
            f"{_CONTROLLER}.{name}", "holds the state of a trial that waits", "the loss counts once", _ONE_LOSS_TWICE
        )
        for name in (
            "_resetting_trials",
            "_trial_to_actor",
            "_staged_trials",
            "_unstage_trial_with_resources",
            "_set_trial_status",
        )
    ),
    PrivateName(
        "ray.tune.impl.tuner_internal.TunerInternal",
        "runs Tune's controller in this process under Ray Client",
        "studies with --address ray://... work, since our threads, files and MLflow are in this process",
        _CLIENT,
    ),
    PrivateName(
        "ray.train._internal.storage._get_ray_train_session_dir",
        "names a folder of a Ray node, and Ray Client has no node on this machine",
        "studies with --address ray://... work",
        _CLIENT,
    ),
)


@contextmanager
def patched(*patches: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    """Return a context manager that applies the given patches in its block. A patch is left out if it needs a name that
    Ray does not have."""
    with ExitStack() as stack:
        for patch in patches:
            with suppress(*MISSING):
                stack.enter_context(patch())
        yield


def why_not(patch: Callable[[], AbstractContextManager[object]]) -> str:
    """Return a line that says why the given patch cannot be applied. The line contains the first name that Ray does not
    have. Return "" if the patch can be applied."""
    try:
        with patch():
            return ""
    except MISSING as error:
        return one_line(error)


# Where trials run


def without_mlflow() -> AbstractContextManager[None]:
    """Return a context manager. In its block, Ray Tune does not import MLflow in this process."""
    from ray.air._internal import usage

    return replaced(usage, "tag_callbacks", lambda callbacks: False)


def lost_while_waiting() -> AbstractContextManager[None]:
    """Return a context manager. In its block, a trial gets a new process if the trial's process is lost before the
    trial begins.

    Ray Tune already does this for a running trial. A trial that has not begun may lose its process because the previous
    trial in the same process crashed, or because the node was lost. Without this patch, Tune would count this loss
    twice, and would mark the waiting trial as failed.
    """
    from ray.tune.execution.tune_controller import TuneController

    process_failure = TuneController._process_trial_failure

    def process(controller: TuneController, trial: Trial, exception: Any) -> None:
        with suppress(AttributeError):
            if _waits_already(controller, trial, exception):
                return
        process_failure(controller, trial, exception)

    return replaced(TuneController, "_process_trial_failure", process)


def _waits_already(controller: TuneController, trial: Trial, exception: Any) -> bool:
    """Return whether Tune has already noticed this loss, so that the trial waits for a new process. If Tune has not,
    prepare the trial so that Tune gives it a new process."""
    import ray
    from ray.tune.experiment import Trial

    controller._resetting_trials.discard(trial)  # otherwise it would wait forever for the lost process
    if trial.status != Trial.PENDING or not isinstance(exception, ray.exceptions.RayActorError):
        return False
    if trial not in controller._trial_to_actor:
        return True
    if trial in controller._staged_trials:
        controller._unstage_trial_with_resources(trial)
    controller._set_trial_status(trial, Trial.RUNNING)  # Tune restarts lost trials only if they are running
    return False


def in_waiting_processes() -> AbstractContextManager[None]:
    """Return a context manager. In its block, trials run in the worker processes that wait with loaded libraries.
    Without this patch, Tune gives its actors a runtime environment, and Ray starts new processes for it. A private Ray,
    which runs for one study on one machine, needs no runtime environment: all its processes have the same environment
    variables."""
    import ray
    from ray.tune.execution.class_cache import _ActorClassCache

    made = cache(ray.remote)
    return replaced(_ActorClassCache, "get", lambda ours, trainable: made(trainable))


@contextmanager
def tuner_here(scratch: Path) -> Iterator[Callable[..., Any]]:
    """Return a context manager. It yields Ray Tune's Tuner. Under Ray Client, it yields a replacement for Tuner whose
    controller runs in this process. The controller of Tuner would run on the cluster, where our threads, files and
    MLflow are missing.

    Args:
        scratch: a temporary folder. Under Ray Client, Ray Tune uses this folder in place of the folder of Ray's
            session, which exists only on nodes.

    Raises:
        ImportError, AttributeError: if Ray does not have the private names for this.
    """
    import ray
    from ray import tune

    if not ray.util.client.ray.is_connected():
        yield tune.Tuner
        return
    from ray.train._internal import storage
    from ray.tune.impl.tuner_internal import TunerInternal

    with replaced(storage, "_get_ray_train_session_dir", lambda: str(scratch / "client")):
        yield partial(TunerInternal, _tuner_kwargs={"_remote": False})


# A private Ray


def on_loopback() -> AbstractContextManager[None]:
    """Return a context manager. In its block, Ray uses 127.0.0.1 as the address of this process. Without this patch,
    Ray would use the machine's address if Ray was imported before the study set Ray's environment variables."""
    from ray._private import ray_constants

    return replaced(ray_constants, "ENABLE_RAY_CLUSTER", False)


def settle_ray() -> None:
    """Make Ray read its environment variables again. They may have had other values when the driver imported Ray."""
    with suppress(*MISSING):
        from ray import _raylet

        _raylet.Config.initialize("")  # type: ignore[attr-defined]


def without_dashboard() -> AbstractContextManager[None]:
    """Return a context manager. In its block, Ray does not start the process of its dashboard."""
    from ray._private import node

    return replaced(node.Node, "start_api_server", lambda self, **options: None)


def without_agents() -> AbstractContextManager[None]:
    """Return a context manager. In its block, Ray starts the raylet without the raylet's two agents."""
    from ray._private import services

    launch = services.start_ray_process

    def started(command: list[str], kind: str, *args: Any, **options: Any) -> Any:
        return launch(_without_agents(command) if kind == "raylet" else command, kind, *args, **options)

    return replaced(services, "start_ray_process", started)


def _without_agents(command: list[str]) -> list[str]:
    """Return the raylet's command without its agents for the dashboard and for runtime environments.

    The agents are Python processes that take seconds to load, and the raylet starts no workers before the agents are
    ready. The raylet ends if an agent is missing or ends. Each agent is therefore replaced by `cat`, which waits until
    its standard input closes. The port numbers say that the agents serve nothing.
    """
    waits, nowhere = shutil.which("cat"), "-1"  # the port of an agent that serves nothing
    if waits is None:
        return command
    flags = {"--dashboard_agent_command": waits, "--runtime_env_agent_command": waits}
    flags |= dict.fromkeys(("--metrics-agent-port", "--metrics_export_port", "--runtime_env_agent_port"), nowhere)
    names = [argument.partition("=")[0] for argument in command]
    changed = [f"{name}={flags[name]}" if name in flags else given for name, given in zip(names, command, strict=True)]
    return [*changed, f"--dashboard_agent_listen_port={nowhere}"]


def start_node(cpus: int, **options: Any) -> RayNode:
    """Start Ray's processes on this machine. `ray.init` would also connect this process to Ray. This function does not.

    Args:
        cpus: the number of CPUs that Ray may use.
        options: further parameters of Ray.
    """
    from ray._private import node, parameter

    with without_dashboard(), without_agents():
        params = parameter.RayParams(num_cpus=cpus, **options)
        return node.Node(params, head=True, shutdown_at_exit=False, ray_init_cluster=True)


def count_gpus() -> int:
    """Return the number of GPUs as Ray counts them."""
    try:
        from ray._private.accelerators import NvidiaGPUAcceleratorManager

        return int(NvidiaGPUAcceleratorManager.get_current_node_num_accelerators())
    except MISSING:
        import torch

        return torch.cuda.device_count()


@contextmanager
def loading_a_worker() -> Iterator[None]:
    """Return a context manager that imports Ray's script for workers. In its block, the caller must import the code of
    trials. A fork of this process can then become a worker."""
    import ray

    with replaced(ray.actor, "ActorClassID", ActorClassID):
        import ray._private.workers.default_worker

        yield


class ActorClassID:
    """Replaces Ray's class ActorClassID, which creates random ids of actor classes. Ray's class uses a random generator
    whose state all forked workers would inherit. They would therefore give equal ids to different classes. This class
    gets its random numbers from the operating system."""

    @staticmethod
    def from_random() -> Any:
        from ray import ActorClassID

        return ActorClassID(os.urandom(ActorClassID.size()))
