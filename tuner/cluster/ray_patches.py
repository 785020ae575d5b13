"""Every use of a private name of Ray, each with its reason.

Ray is loaded inside the functions, and by each only the part that it needs: the process of a private Ray does without
Ray Tune, and the fork server has to load Ray in a way of its own.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_sparsity.tuner.system.patching import replaced

if TYPE_CHECKING:
    from ray._private.node import Node as RayNode
    from ray.tune import ResultGrid
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial


def without_mlflow() -> AbstractContextManager[None]:
    """Tune, which counts the callbacks of every kind for Ray's statistics, would load MLflow to know its own for it."""
    from ray.air._internal import usage

    return replaced(usage, "tag_callbacks", lambda callbacks: False)


def lost_while_waiting() -> AbstractContextManager[None]:
    """A trial that waits for a process which is gone, because the trial before it, or all of the node, took it along,
    gets another one, as a trial that runs does. Tune would take it for failed, and count the one loss twice."""
    import ray
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

    process_failure = TuneController._process_trial_failure

    def process(tune: TuneController, trial: Trial, exception: Any) -> None:
        tune._resetting_trials.discard(trial)  # else it would wait for the lost process for good
        if trial.status == Trial.PENDING and isinstance(exception, ray.exceptions.RayActorError):
            if trial not in tune._trial_to_actor:
                return  # it has been told of the loss, and waits for a process already
            if trial in tune._staged_trials:
                tune._unstage_trial_with_resources(trial)
            tune._set_trial_status(trial, Trial.RUNNING)  # of which Tune tries again what is lost
        process_failure(tune, trial, exception)

    return replaced(TuneController, "_process_trial_failure", process)


def in_waiting_processes() -> AbstractContextManager[None]:
    """On a Ray of our own, trials run in the processes that are there and have loaded their libraries. Tune would have
    Ray start others, since it gives its actors an environment; in a Ray of our own all have it anyway."""
    import ray
    from ray.tune.execution.class_cache import _ActorClassCache

    return replaced(_ActorClassCache, "get", lambda cache, cls: cache._cache.setdefault(cls, ray.remote(cls)))


def tuner_here(scratch: Path) -> Callable[..., Any]:
    """Ray Tune's controller in this process. Under Ray Client it would run on the cluster, where our threads, files and
    MLflow are not; and here there is no node of Ray's whose folder it could use."""
    import ray
    from ray import tune
    from ray.train._internal import storage
    from ray.tune.impl.tuner_internal import TunerInternal

    if not ray.util.client.ray.is_connected():
        return tune.Tuner
    storage._get_ray_train_session_dir = lambda: str(scratch / "client")
    return partial(TunerInternal, _tuner_kwargs={"_remote": False})


def ended_trials(results: ResultGrid) -> Sequence[Trial]:
    """Return Ray Tune's own trials, whose states its results do not show."""
    return list(results._experiment_analysis.trials)


@contextmanager
def on_loopback() -> Iterator[None]:
    """Ray listens on all interfaces unless its node's address is 127.0.0.1; given that one, it takes the machine's own
    instead. It takes 127.0.0.1 by itself only where it knows that there can be no cluster."""
    from ray._private import ray_constants

    with replaced(ray_constants, "ENABLE_RAY_CLUSTER", False):
        yield


def without_dashboard() -> AbstractContextManager[None]:
    """Ray has no option for it that spares the process."""
    from ray._private import node

    return replaced(node.Node, "start_api_server", lambda self, **options: None)


@contextmanager
def raylet(*, agents: bool) -> Iterator[None]:
    """The raylet is launched without its two agents, unless they are wanted."""
    from ray._private import ray_constants, services

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


def start_node(cpus: int, *, agents: bool, **options: Any) -> RayNode:
    """Start Ray's processes on this machine. `ray.init` would start them as children of a process that talks to Ray.

    Args:
        cpus: that Ray is to have.
        agents: whether the raylet has its two agents.
        options: more of Ray's parameters.
    """
    from ray._private import node, parameter

    with on_loopback(), without_dashboard(), raylet(agents=agents):
        params = parameter.RayParams(num_cpus=cpus, **options)
        return node.Node(params, head=True, shutdown_at_exit=False, ray_init_cluster=True)


def count_gpus() -> int:
    """Return the number of GPUs as Ray counts them. torch, which knows it too, would take seconds to load."""
    from ray._private.accelerators import NvidiaGPUAcceleratorManager

    return int(NvidiaGPUAcceleratorManager.get_current_node_num_accelerators())


def ask_for_token(*, make: bool) -> None:
    """Make a private Ray ask for a token, unless the user has said otherwise.

    Args:
        make: whether to make a token where there is none.
    """
    from ray._private.authentication import authentication_token_setup as tokens

    logging.getLogger(tokens.__name__).setLevel(logging.ERROR)
    tokens.enable_token_auth_by_default()
    if make:
        tokens.ensure_token_if_auth_enabled(create_token_if_missing=True)


def asks_for_token() -> bool:
    """Return whether the connected Ray asks for a token."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return bool(is_token_auth_enabled())


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
        from ray._raylet import ActorClassID

        return ActorClassID(os.urandom(ActorClassID.size()))


def settle_ray() -> None:
    """Ray's settings follow its variables, of which the driver had others when it loaded Ray, as for its token."""
    from ray import _raylet

    _raylet.Config.initialize("")  # type: ignore[attr-defined]
