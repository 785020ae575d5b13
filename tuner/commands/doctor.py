"""Runs `tune-sparsity doctor`, which checks the machine, Ray, MLflow and the storage, and prints a line for each
check."""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tune_sparsity.tuner.cluster.node import trials_at_once
from tune_sparsity.tuner.commands.arguments import (
    ADDRESS_HELP,
    CPUS_HELP,
    GPUS_HELP,
    STORAGE_HELP,
    TRACKING_HELP,
    WORKERS_HELP,
    Parser,
)
from tune_sparsity.tuner.config.study_config import StudyConfig
from tune_sparsity.tuner.config.tracking_uri import check_tracking_uri, sqlite_file, stray_environment
from tune_sparsity.tuner.errors import EXIT_DONE, EXIT_FAILED, UsageError, redact
from tune_sparsity.tuner.storage.study_storage import StudyStorage

if TYPE_CHECKING:
    from tune_sparsity.tuner.cluster.node import Node
    from tune_sparsity.tuner.cluster.nodes import Answer

_GPU_CONTEXT = 1024  # the least MiB of a trial on a GPU, for CUDA's context and libraries and a small network


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    topic: str  # the thing that was checked
    found: str  # the result of the check
    remedy: str = ""  # the way to correct a problem; "" if there is no problem

    def __str__(self) -> str:
        what = " ".join(f"{self.topic}: {self.found}".split())
        return f"fix  {what}: {self.remedy}" if self.remedy else f"ok   {what}"


def examine(config: StudyConfig) -> Iterator[Finding]:
    """Yield the results of all checks. The checks that need no cluster come first.

    Args:
        config: a configuration. Only its options for the machine, Ray, MLflow and the storage are used.
    """
    yield _environment()
    yield step()
    yield tracking(config.tracking_uri)
    yield storage_here(config.storage)
    from tune_sparsity.tuner.driver.checks import check_address

    try:
        check_address(config.address)
        yield from _own_ray(config) if config.address is None else _running_cluster(config)
    except UsageError as error:
        yield Finding("cluster", str(error), "correct this, and run doctor again")


def _own_ray(config: StudyConfig) -> Iterator[Finding]:
    from tune_sparsity.tuner.cluster.connection import connection

    # With one trial for each CPU, the number of trials does not limit the CPUs that the private Ray gets.
    with connection(config.model_copy(update={"trials": os.cpu_count()}), ahead=True) as ray:
        ray.share(lambda: threading.active_count() == 1)
        ray.wait()
        yield private_ray(ray.plain)
        yield from _cluster(config)


def _running_cluster(config: StudyConfig) -> Iterator[Finding]:
    from tune_sparsity.tuner.cluster.join import connected

    with connected(config):
        yield from _cluster(config)


def _environment() -> Finding:
    if stray := stray_environment():
        found = f"a study ignores {', '.join(stray)}, because it creates its own MLflow runs"
        return Finding("environment", found, f"unset {' '.join(stray)}")
    return Finding("environment", "no MLFLOW_ variables that a study ignores")


def step() -> Finding:
    """Check whether this installation has the compiled code for the optimizer's step, without importing torch."""
    package = importlib.util.find_spec("tune_sparsity")
    folders = package.submodule_search_locations if package else None
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    if any(
        file.name.endswith(suffixes)
        for folder in folders or ()
        for file in Path(folder).glob("sparsity/optim/_kernel*")
    ):
        return Finding("optimizer's step", "compiled")
    remedy = "install a C compiler, and then install this package again"
    return Finding("optimizer's step", "not compiled, so it takes three times as long", remedy)


def storage_here(storage: StudyStorage) -> Finding:
    """Check whether this machine can write to the storage."""
    try:
        storage.check()
    except UsageError as error:
        return Finding("storage", str(error), "see --storage")
    return Finding("storage", f"this machine can write to {storage}")


def tracking(uri: str) -> Finding:
    """Check whether MLflow's store answers. If the store is an MLflow server, also check whether the server and this
    machine have the same major version of MLflow."""
    shown = redact(uri)
    try:
        check_tracking_uri(uri)
    except ValueError as error:
        return Finding("mlflow", str(error), "see --tracking-uri")
    here = importlib.metadata.version("mlflow")
    if uri.lower().startswith("http"):
        return _server(uri, shown, here)
    if (file := sqlite_file(uri)) is not None:
        new = not file.exists()
        if new and not (file.parent.is_dir() and os.access(file.parent, os.W_OK)):
            return Finding(
                "mlflow", f"{shown} cannot be created", f"create the folder {file.parent}, with write permission"
            )
        if wrong := _without_a_record(here):
            return wrong
        if new:
            return Finding("mlflow", f"{here} can write to SQLite files; the first study will create {shown}")
    if "://" not in uri:
        return Finding("mlflow", f"{here}, {shown}")
    return _database(uri, shown, here)


def _without_a_record(here: str) -> Finding | None:
    """Return a finding if the installed MLflow cannot write a run to an SQLite file. Otherwise return None."""
    from tune_sparsity.tuner.tracking.sqlite_trial import try_sqlite

    try:
        wrong = try_sqlite()
    except OSError as error:
        found = f"no temporary file for a test could be written ({error.strerror or error})"
        return Finding("mlflow", found, "set TMPDIR to a folder with free space")
    if not wrong:
        return None
    return Finding("mlflow", f"version {here} cannot write to SQLite files ({wrong})", "pip install -U mlflow")


def _server(uri: str, shown: str, here: str) -> Finding:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/version", timeout=10) as answer:
            there = answer.read(100).decode(errors="replace").strip()
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            remedy = "give the server's MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        else:
            remedy = "give the URI of an MLflow server"
        return Finding("mlflow", f"{shown} answers with HTTP status {error.code}", remedy)
    except (OSError, ValueError) as error:
        return Finding("mlflow", f"{shown} does not answer ({error})", "start the server, or give another URI")
    if there.partition(".")[0] != here.partition(".")[0]:
        return Finding("mlflow", f"{shown} runs {there}, this machine has {here}", "install the same major version")
    return Finding("mlflow", f"{there} at {shown}, this machine has {here}")


def _database(uri: str, shown: str, here: str) -> Finding:
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(uri, pool_pre_ping=True)
        sqlalchemy.inspect(engine).get_table_names()  # fails for a file that is no database
        engine.dispose()
    except ModuleNotFoundError as error:
        return Finding("mlflow", f"{shown} needs the package {error.name}", f"pip install {error.name}")
    except sqlalchemy.exc.SQLAlchemyError as error:
        reason = redact((str(error).splitlines() or [""])[0])
        return Finding("mlflow", f"{shown} does not answer ({reason[:160]})", "start the database, or give another URI")
    return Finding("mlflow", f"{here}, {shown} answers")


def _cluster(config: StudyConfig) -> Iterator[Finding]:
    """Check the connected cluster, which may be a private Ray: nodes, authentication, storage, versions and GPUs."""
    from tune_sparsity.tuner.cluster import nodes as cluster
    from tune_sparsity.tuner.driver.ray_tune import gpus_per_trial

    there = cluster.nodes()
    gpus = gpus_per_trial(config)
    yield resources(there, config.cpus_per_trial, gpus, config.workers_per_trial)
    yield authentication(config.address)
    try:
        answers = cluster.ask(there, config.storage)
    except OSError as error:
        yield Finding("shared storage", f"{config.storage}: {error.strerror or error}", "see --storage")
        answers = cluster.ask(there, None)
    else:
        yield shared_storage(config.storage, answers)
    yield from versions(answers)
    yield from gpu_memory(answers, gpus)


def resources(there: Sequence[Node], cpus: float, gpus: float, workers: int = 1) -> Finding:
    """Check whether the nodes have enough CPUs and GPUs for a trial.

    Args:
        there: the nodes of the cluster.
        cpus: the number of CPUs of each worker.
        gpus: the number of GPUs of each worker.
        workers: the number of workers of each trial.
    """
    room = trials_at_once(there, cpus, gpus, workers)
    found = ", ".join(f"{node.address} ({node.cpus:g} CPUs, {node.gpus:g} GPUs)" for node in there)
    trials = "trials" if workers == 1 else f"trials of {workers} workers"
    found = f"{len(there)}: {found}: room for {room} {trials} at once" if there else "no node has CPUs"
    if room:
        return Finding("nodes", found)
    first = "" if workers == 1 else "--workers-per-trial, "
    return Finding("nodes", found, f"lower {first}--cpus-per-trial or --gpus-per-trial, or add nodes")


def private_ray(plain: str) -> Finding:
    """Report whether the fast start of a private Ray succeeded (see tuner.cluster.connection.PrivateRay).

    Args:
        plain: the reason why Ray was started through its public API instead; "" if the fast start succeeded.
    """
    topic = "start of a private ray"
    if not plain:
        return Finding(topic, "quick, since workers are forked from a process that has loaded their libraries")
    return Finding(topic, f"through its public API, which takes longer ({plain})")


def authentication(address: str | None) -> Finding:
    """Check whether Ray's token authentication is on. The token needs no check, because this process is connected.

    Args:
        address: the address of the cluster; None for a private Ray.
    """
    from tune_sparsity.tuner.cluster.private_ray import asks_for_token

    topic = "ray's token authentication"
    if asks_for_token():
        return Finding(topic, "on")
    if address is None:
        return Finding(topic, "off", "unset RAY_AUTH_MODE: a private Ray then creates a token")
    return Finding(
        topic,
        "off: anyone who can reach the cluster can run code on it",
        "start all its nodes with RAY_AUTH_MODE=token and with the same token (ray get-auth-token --generate)",
    )


def versions(answers: Sequence[Answer]) -> Iterator[Finding]:
    """Compare the versions of each node with those of this process."""
    from tune_sparsity.tuner.cluster.node_probe import versions as here
    from tune_sparsity.tuner.cluster.nodes import differences

    for answer in answers:
        topic = f"versions on {answer.node.address}"
        if answer.silent:
            yield Finding(topic, f"the node {answer.silent}", "look at its logs, and install tune-sparsity there")
        elif different := differences([answer]):
            said = "; ".join(line.partition(": ")[2] for line in different)
            yield Finding(topic, said, "install the versions that this machine has")
        else:
            yield Finding(
                topic, ", ".join(f"{name} {version}" for name, version in {**here(), **answer.versions}.items())
            )


def shared_storage(storage: StudyStorage, answers: Sequence[Answer]) -> Finding:
    """Check whether the driver and all nodes see each other's files in the storage."""
    from tune_sparsity.tuner.cluster.nodes import EACH_NODE

    wrong = [f"{answer.node.address} {answer.storage}" for answer in answers if answer.storage]
    if wrong:
        remedy = EACH_NODE if storage.synced else "give a --storage that all nodes share"
        return Finding("shared storage", f"{storage}: {', '.join(wrong)}", remedy)
    how = "reached from" if storage.synced else "the same folder on"
    return Finding("shared storage", f"{storage} is {how} all nodes")


def gpu_memory(answers: Sequence[Answer], gpus: float) -> Iterator[Finding]:
    """Check for each GPU whether its free memory is enough for the trials that share it."""
    trials = int(1 / gpus + 1e-9) if 0 < gpus < 1 else 1
    for answer in answers:
        for number, gpu in enumerate(answer.gpus if gpus else []):
            each = gpu["free"] // trials
            topic = f"GPU {number} on {answer.node.address}"
            found = f"{gpu['name']}, {gpu['free']} of {gpu['total']} MiB free, {each} MiB for each of {trials} trials"
            few = max(1, gpu["free"] // _GPU_CONTEXT)
            enough = each >= _GPU_CONTEXT
            remedy = f"give --gpus-per-trial {1 / few:.2g} or more, or end other processes (nvidia-smi lists them)"
            yield Finding(topic, found, "" if enough else remedy)


def doctor(arguments: list[str]) -> int:
    """Run the subcommand `doctor`. Return the exit code."""
    parser = Parser(
        "tune-sparsity doctor",
        description="Checks the machine, Ray, MLflow and the storage, and says how to correct each problem.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--address", metavar="ADDRESS", help=ADDRESS_HELP)
    parser.add_argument("--storage", metavar="DIR", help=STORAGE_HELP)
    parser.add_argument("--tracking-uri", metavar="URI", help=TRACKING_HELP)
    parser.add_argument("--workers-per-trial", metavar="N", help=WORKERS_HELP)
    parser.add_argument("--cpus-per-trial", metavar="N", help=CPUS_HELP)
    parser.add_argument("--gpus-per-trial", metavar="N", help=GPUS_HELP)
    options = vars(parser.parse_args(arguments))
    from tune_sparsity.tuner.config.study_config import make_config

    well = True
    for finding in examine(make_config({"target": 0.9, **options}).resolved()):
        well &= not finding.remedy
        print(finding, flush=True)
    return EXIT_DONE if well else EXIT_FAILED
