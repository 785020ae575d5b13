"""Connect this process to Ray: to a private Ray on this machine, to a running cluster, or through Ray Client.

The nodes always run the version of the package `tune_sparsity` that this process has imported. Ray sends the package to
the nodes, as a part of a Ray runtime environment. Ray takes the package from the folder from which this process has
imported it. The package may be an installed wheel or an editable checkout. A user's experiment is sent with the trials
(tuner.worker.shipping). The data are sent through Ray's object store, once to each node (tuner.cluster.node_data).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import tune_sparsity
from tune_sparsity.tuner.cluster.private_ray import NodeProcess, settle_environment
from tune_sparsity.tuner.cluster.ray_patches import on_loopback, patched, settle_ray, tuner_here, why_not
from tune_sparsity.tuner.config.study_config import JOB, StudyConfig
from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.system.signals import undisturbed

_CLIENT = "ray://"


@contextlib.contextmanager
def connected(config: StudyConfig, node: NodeProcess | None = None) -> Iterator[None]:
    """Return a context manager. In its block, this process is connected to the cluster at the study's address (option
    --address). If the study has no address, this process is connected to a private Ray.

    Args:
        config: the study's settings.
        node: the private Ray. If None, and if the study has no address, a new private Ray is started.

    Raises:
        UsageError: if no cluster answers at the address, or if the cluster refuses this process.
        RuntimeError: if a private Ray does not start.
    """
    settle_environment(own=config.address is None)
    import ray  # after its environment variables are set

    for name in ("ray.tune", "ray.air"):
        logging.getLogger(name).setLevel(
            logging.CRITICAL
        )  # our own table has the reason of a failed trial, in one line
    with contextlib.ExitStack() as stack:
        if config.address is None and node is None:
            node = stack.enter_context(NodeProcess(config))  # Ray's processes end last, after ray.shutdown
        # No interrupt may stop ray.shutdown halfway: if Ray ended while this process is partly connected, Ray would end
        # this process, too.
        stack.callback(undisturbed()(ray.shutdown))
        if config.address is not None:
            _join(config.address)
        elif node is not None:
            _join_own(node)
        yield


def _join_own(node: NodeProcess) -> None:
    import ray

    address = node.address()
    settle_ray()
    with patched(on_loopback):
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)


def _join(address: str) -> None:
    if address.startswith(_CLIENT) and importlib.util.find_spec("grpc") is None:
        raise UsageError(f"--address {address!r}: Ray Client needs grpcio: pip install 'tune-sparsity[client]'")
    import ray

    with _standard_error_aside() as said:
        try:
            ray.init(address, runtime_env=runtime_environment(), log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # errors of Ray, gRPC or Python, depending on the address
            said.seek(0)
            raise UsageError(f"--address {address!r}: {refusal(str(error), said.read())}") from error
    if missing := why_not(lambda: tuner_here(Path())):
        raise UsageError(
            f"--address {address!r}: studies through Ray Client (ray://) do not work with this version of Ray "
            f"({missing}): run the command on a machine of the cluster, with --address HOST:PORT"
        )


def refusal(message: str, said: str) -> str:
    """Return the reason, in one line, why this process could not join a cluster.

    Args:
        message: the message of Ray's exception.
        said: the text that Ray's libraries wrote to standard error during the attempt.
    """
    both = f"{message} {said}"
    if "InvalidAuthToken" in both or "uthentication" in both:
        return (
            "the cluster requires a token and did not get the right one: set RAY_AUTH_MODE=token, and set "
            "RAY_AUTH_TOKEN_PATH to a file that contains the cluster's token"
        )
    reason = " ".join(message.split())
    if "ersion mismatch" in reason:
        return f"the cluster runs other versions: {reason[:240]}"
    return f"no Ray cluster answers there ({reason[:160]})"


def runtime_environment() -> dict[str, Any]:
    """Return a Ray runtime environment that sends the package `tune_sparsity` to every node. Return an empty dict if
    this process runs in a Ray job that sends Python modules itself: Ray does not allow a process of the job to add
    modules."""
    job = json.loads(os.environ.get(JOB) or "{}").get("runtime_env") or {}
    if "py_modules" in job:
        return {}
    return {"py_modules": [str(Path(str(tune_sparsity.__file__)).parent)], "excludes": ["__pycache__", "*.pyc"]}


@contextlib.contextmanager
def _standard_error_aside() -> Iterator[IO[str]]:
    """Return a context manager. It yields a file, to which standard error is redirected in the block. Ray's libraries
    would otherwise print twenty lines if a cluster refuses this process."""
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield file
        finally:
            os.dup2(before, 2)
            os.close(before)
