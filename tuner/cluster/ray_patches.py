"""Every use of a private name of Ray. `PRIVATE` says of each why it is used, and how a study runs without it.

Ray is loaded inside the functions, and by each only the part that it needs: the process of a private Ray does without
Ray Tune, and the fork server has to load Ray in a way of its own. A function raises one of `MISSING` where Ray has no
such name; `patched` then does without, and `why_not` tells what is missing.
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
"""What is raised where Ray has no such name."""
PLAIN = "Ray is started with public calls"
"""What happens without most names."""
_ONLY_LOADED_BEFORE = "nothing is lost unless Ray was loaded before the study set Ray's variables"
_ONE_LOSS_TWICE = "Tune counts the loss of a process twice for a trial that waits for it"
_CLIENT = "a study with --address ray://... ends with a message"


class PrivateName(NamedTuple):
    """A private name of Ray.

    Attributes:
        name: in full, from `ray`.
        reason: why it is used.
        gain: what it saves, or makes possible.
        without: what happens where Ray does not have it.
    """

    name: str
    reason: str
    gain: str
    without: str


_CONTROLLER = "ray.tune.execution.tune_controller.TuneController"
PRIVATE = (
    PrivateName(
        "ray._private.node.Node",
        "starts Ray's processes from a process that does not talk to Ray",
        "workers are copies of the command, and four Python processes are spared: with the next four names, start-up "
        "takes 9 s and not 26 s on two cores",
        PLAIN,
    ),
    PrivateName("ray._private.parameter.RayParams", "is the argument of Node", "as of Node", PLAIN),
    PrivateName(
        "ray._private.node.Node.start_api_server",
        "starts the dashboard's process, which no option spares",
        "a Python process less",
        PLAIN,
    ),
    PrivateName(
        "ray._private.services.start_ray_process",
        "launches the raylet, whose two agents are left out",
        "two Python processes less, for which the raylet waits before it starts workers",
        PLAIN,
    ),
    PrivateName(
        "ray._private.workers.default_worker",
        "is the script of Ray's workers, which is loaded before a process is copied",
        "copies share its memory, and do not load it",
        PLAIN,
    ),
    PrivateName(
        "ray.actor.ActorClassID",
        "names actors when Ray's modules are loaded, from a generator that all copies would share",
        "processes can be copied: each worker starts in a moment, and shares most of its memory",
        PLAIN,
    ),
    PrivateName(
        "ray.tune.execution.class_cache._ActorClassCache",
        "gives Tune's actors an environment, for which Ray starts other processes than those that wait",
        "trials run in the processes that have loaded their libraries",
        f"{PLAIN}, and its processes load the libraries when the trials begin",
    ),
    PrivateName(
        "ray._private.accelerators.NvidiaGPUAcceleratorManager",
        "counts the GPUs as Ray does",
        "torch need not be loaded, which takes seconds",
        "torch counts them",
    ),
    PrivateName(
        "ray._private.ray_constants.ENABLE_RAY_CLUSTER",
        "keeps Ray on loopback, though it was loaded before the study began",
        "a program that has loaded Ray itself can run a study",
        _ONLY_LOADED_BEFORE,
    ),
    PrivateName(
        "ray._raylet.Config",
        "reads Ray's variables again, for one that was loaded before they were set",
        "a program that has loaded Ray itself can run a study",
        _ONLY_LOADED_BEFORE,
    ),
    PrivateName(
        "ray.air._internal.usage.tag_callbacks",
        "counts callbacks for Ray's statistics, and loads MLflow to know its own",
        "seconds and memory of the command: another process has MLflow",
        "the command loads MLflow",
    ),
    PrivateName(
        f"{_CONTROLLER}._process_trial_failure",
        "decides about a trial whose process is lost before it begins",
        "the loss counts once",
        _ONE_LOSS_TWICE,
    ),
    *(
        PrivateName(f"{_CONTROLLER}.{name}", "holds the state of a trial that waits", "as above", _ONE_LOSS_TWICE)
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
        "studies with --address ray://...: our threads, files and MLflow are here",
        _CLIENT,
    ),
    PrivateName(
        "ray.train._internal.storage._get_ray_train_session_dir",
        "names a folder of a node of Ray, which there is none of under Ray Client",
        "studies with --address ray://...",
        _CLIENT,
    ),
)


@contextmanager
def patched(*patches: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    """Apply these patches inside the block, but those for which Ray has no such name."""
    with ExitStack() as stack:
        for patch in patches:
            with suppress(*MISSING):
                stack.enter_context(patch())
        yield


def why_not(patch: Callable[[], AbstractContextManager[object]]) -> str:
    """Return one line that names the parts that this patch needs and Ray does not have. The line is empty if Ray has
    all of them."""
    try:
        with patch():
            return ""
    except MISSING as error:
        return one_line(error)


# Where trials run


def without_mlflow() -> AbstractContextManager[None]:
    """Keep Tune from loading MLflow in this process."""
    from ray.air._internal import usage

    return replaced(usage, "tag_callbacks", lambda callbacks: False)


def lost_while_waiting() -> AbstractContextManager[None]:
    """Give a trial another process if the one that it waits for is gone, because the trial before it, or all of the
    node, took it along. A trial that runs gets one, too. Tune would take it for failed, and count the one loss twice.
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
    """Return whether a trial was told of its loss before, and waits for a process. Prepare it for that otherwise."""
    import ray
    from ray.tune.experiment import Trial

    controller._resetting_trials.discard(trial)  # else it would wait for the lost process for good
    if trial.status != Trial.PENDING or not isinstance(exception, ray.exceptions.RayActorError):
        return False
    if trial not in controller._trial_to_actor:
        return True
    if trial in controller._staged_trials:
        controller._unstage_trial_with_resources(trial)
    controller._set_trial_status(trial, Trial.RUNNING)  # of which Tune tries again what is lost
    return False


def in_waiting_processes() -> AbstractContextManager[None]:
    """Run trials in the processes that are there and have loaded their libraries. Tune would have Ray start others,
    since it gives its actors an environment; in a Ray of our own all have it anyway."""
    import ray
    from ray.tune.execution.class_cache import _ActorClassCache

    made = cache(ray.remote)
    return replaced(_ActorClassCache, "get", lambda ours, trainable: made(trainable))


@contextmanager
def tuner_here(scratch: Path) -> Iterator[Callable[..., Any]]:
    """Provide a Tuner of Ray Tune whose controller runs in this process. Under Ray Client it would run on the cluster,
    where our threads, files and MLflow are not; and here there is no node of Ray's whose folder it could use.

    Raises:
        one of MISSING: if Ray has no such Tuner.
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


# A Ray of our own


def on_loopback() -> AbstractContextManager[None]:
    """Let Ray take 127.0.0.1 as the address of this process inside the block. It would take the machine's own where
    it believes that there can be a cluster, and was loaded before its variable said otherwise."""
    from ray._private import ray_constants

    return replaced(ray_constants, "ENABLE_RAY_CLUSTER", False)


def settle_ray() -> None:
    """Let Ray read its variables again. The driver may have had others when it loaded Ray."""
    with suppress(*MISSING):
        from ray import _raylet

        _raylet.Config.initialize("")  # type: ignore[attr-defined]


def without_dashboard() -> AbstractContextManager[None]:
    """Keep Ray from starting the dashboard's process."""
    from ray._private import node

    return replaced(node.Node, "start_api_server", lambda self, **options: None)


def without_agents() -> AbstractContextManager[None]:
    """Launch the raylet without its two agents."""
    from ray._private import services

    launch = services.start_ray_process

    def started(command: list[str], kind: str, *args: Any, **options: Any) -> Any:
        return launch(_without_agents(command) if kind == "raylet" else command, kind, *args, **options)

    return replaced(services, "start_ray_process", started)


def _without_agents(command: list[str]) -> list[str]:
    """Return the raylet's command without its agents for the dashboard and for runtime environments. They are Python
    processes that load for seconds, for which the raylet waits before it lets workers start. It insists on having them,
    and ends if they do. So each is a process that waits for the end of its input, the raylet's own, at ports that
    nobody asks for."""
    waits, nowhere = shutil.which("cat"), "-1"  # the port of an agent that serves nothing
    if waits is None:
        return command
    flags = {"--dashboard_agent_command": waits, "--runtime_env_agent_command": waits}
    flags |= dict.fromkeys(("--metrics-agent-port", "--metrics_export_port", "--runtime_env_agent_port"), nowhere)
    names = [argument.partition("=")[0] for argument in command]
    changed = [f"{name}={flags[name]}" if name in flags else given for name, given in zip(names, command, strict=True)]
    return [*changed, f"--dashboard_agent_listen_port={nowhere}"]


def start_node(cpus: int, **options: Any) -> RayNode:
    """Start Ray's processes on this machine. `ray.init` would start them as children of a process that talks to Ray.

    Args:
        cpus: that Ray is to have.
        options: more of Ray's parameters.
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
    """Load Ray's script for workers, and inside the block the code of trials, so that a copy of this process can become
    a worker."""
    import ray

    with replaced(ray.actor, "ActorClassID", ActorClassID):
        import ray._private.workers.default_worker

        yield


class ActorClassID:
    """Ray's, but that its generator is not begun: all workers would go on with it, and give out the same names. Ray's
    modules name their actors when they are loaded."""

    @staticmethod
    def from_random() -> Any:
        from ray import ActorClassID

        return ActorClassID(os.urandom(ActorClassID.size()))
