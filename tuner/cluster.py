"""The connection to Ray: a private one on this machine, a running cluster, or one behind Ray Client.

Whatever the cluster's nodes have installed, the code that they run is this process's: the four packages go there as
Ray's runtime environment, from wherever they are imported here (a wheel, an editable checkout). A user's experiment
travels with the trials (tuner.travel), and the data through Ray's object store, once to each node.
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

import ray
from ray._private import ray_constants

from tuner.config import JOB, UsageError
from tuner.node_probe import OURS

_CLIENT = "ray://"


@contextlib.contextmanager
def connected(address: str | None, cpus: int) -> Iterator[None]:
    """A connection to the cluster at `address`, or to a private Ray with so many CPUs, that ends with it.

    Raises:
        UsageError: if no cluster answers at the address, or refuses this process.
    """
    if address is None:
        _start_private(cpus)
    else:
        _join(address)
    try:
        yield
    finally:
        ray.shutdown()


def _start_private(cpus: int) -> None:
    """A Ray of our own. Ray gives its processes half a minute to start, which on a busy machine takes a second try."""
    for last in (False, False, True):
        try:
            with _on_loopback():
                ray.init(
                    "local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
                )
            return
        except Exception as error:
            if last or "timed out during startup" not in str(error):
                raise
            ray.shutdown()


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Ray listens on all interfaces unless its node's address is 127.0.0.1; given that one, it takes the machine's own
    instead. It takes 127.0.0.1 by itself only where it knows that there can be no cluster."""
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


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
