"""Check whether a study can run on all nodes of the connected cluster: compare versions, list GPUs, test storage."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tune_sparsity.tuner.cluster import node_probe
from tune_sparsity.tuner.cluster.node import Node
from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.storage.places import Place
from tune_sparsity.tuner.storage.study_storage import StudyStorage

_ANSWER_WITHIN = 120.0  # seconds; a node may have to fetch the code and start a process first

EACH_NODE = "every node needs network access to the object store, and its own credentials"
_ALIKE = ("python", "ray", "torch", "numpy", "tune-sparsity")  # the versions of other packages may differ


@dataclass(frozen=True)
class Answer:
    """The answer of a node to `node_probe.probe`, or the reason why there is no answer.

    `storage` and `silent` are ends of sentences. In the error message for the user, the node's address stands before
    them.

    Attributes:
        node: the node.
        versions, gpus, storage: the results of `node_probe.probe`.
        silent: the reason why there is no answer, such as "did not answer within 120 seconds". "" if there is an
            answer.
    """

    node: Node
    versions: dict[str, str]
    gpus: list[dict[str, Any]]
    storage: str = ""
    silent: str = ""


def nodes() -> list[Node]:
    """Return the cluster's live nodes that have CPUs, in the order of their addresses."""
    found = [
        Node(
            node["NodeID"], node["NodeManagerAddress"], node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0)
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted((node for node in found if node.cpus > 0), key=lambda node: (node.address, node.id))


def ask(asked: Sequence[Node], storage: StudyStorage | None) -> list[Answer]:
    """Run `node_probe.probe` on all nodes at the same time, and return the answers.

    Args:
        asked: the nodes.
        storage: the folder that all nodes must share, or the object store that all nodes must reach. The test writes
            files there and removes them. If None, no storage is tested.

    Raises:
        OSError: if this machine cannot write to the storage.
    """
    token = secrets.token_hex(16)
    with _left_behind(storage, token) as place:
        remote = ray.remote(num_cpus=0, max_retries=1)(node_probe.probe)
        waiting = {
            node: remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
                place, token, node.id
            )
            for node in asked
        }
        end = time.monotonic() + _ANSWER_WITHIN
        answers = [_answer(node, reference, end) for node, reference in waiting.items()]
        return [_read_back(answer, place) for answer in answers]


def _answer(node: Node, reference: Any, end: float) -> Answer:
    try:
        said = ray.get(reference, timeout=max(1.0, end - time.monotonic()))
    except ray.exceptions.GetTimeoutError:
        return Answer(node, {}, [], silent=f"did not answer within {_ANSWER_WITHIN:.0f} seconds")
    except ray.exceptions.RayError as error:
        return Answer(node, {}, [], silent=f"cannot run our code ({' '.join(str(error).split())[-200:]})")
    return Answer(node, **said)


def _read_back(answer: Answer, place: Place | None) -> Answer:
    """Return the answer of a node. Add a problem to the answer if the node's file does not appear in `place`."""
    if place is None or answer.silent or answer.storage:
        return answer
    end = time.monotonic() + node_probe.PATIENCE
    while answer.node.id not in place.names():
        if time.monotonic() > end:
            return Answer(answer.node, answer.versions, answer.gpus, "writes files there that the driver does not see")
        time.sleep(0.2)
    return answer


@contextlib.contextmanager
def _left_behind(storage: StudyStorage | None, token: str) -> Iterator[Place | None]:
    """Return a context manager. It yields a temporary place in the storage, with a file "driver" that contains the
    token. After the block, the place is removed. If `storage` is None, it yields None."""
    if storage is None:
        yield None
        return
    with storage.probe(f".tune-sparsity-probe-{token[:8]}") as place:
        place.write("driver", token.encode())
        yield place


def differences(answers: Sequence[Answer]) -> list[str]:
    """Compare the versions of the nodes with those of this process. Return a line for each version that the study does
    not allow on a node, and for each missing package. A line names all nodes that have this version, or that lack this
    package."""
    here = node_probe.versions()
    found: dict[str, list[str]] = {}
    for answer in answers:
        for package, version in answer.versions.items():
            other = package in _ALIKE and compared(package, version) != compared(package, here[package])
            if other or not version:
                what = f"{package} {version or 'is not installed'}, and this process has {here[package]}"
                found.setdefault(what, []).append(answer.node.address)
    return [f"{', '.join(dict.fromkeys(addresses))}: {what}" for what, addresses in found.items()]


def compared(package: str, version: str) -> str:
    """Return the part of a version that must be equal on all nodes. For torch it is the version without the build
    (2.9.0+cpu, 2.9.0+cu126), for Python the version without the patch number, and for NumPy the major number, which
    decides the format of pickles."""
    release = version.partition("+")[0]
    parts = {"python": 2, "numpy": 1}.get(package)
    return release if parts is None else ".".join(release.split(".")[:parts])


def check_nodes(storage: StudyStorage) -> None:
    """Check before a study that every node has the versions of this process, and can use the study's storage.

    Raises:
        UsageError: if a node fails. The message states the first problem and its node.
    """
    answers = ask(nodes(), storage)
    for answer in answers:
        if answer.silent:
            raise UsageError(f"node {answer.node.address} {answer.silent}. For details, run: tune-sparsity doctor")
    if different := differences(answers):
        raise UsageError(
            f"node {different[0]}: install the same versions of Python and its packages on all machines. For all "
            "differences, run: tune-sparsity doctor"
        )
    for answer in answers:
        if answer.storage:
            shared = f"give a folder that all {len(answers)} nodes and this machine share"
            remedy = EACH_NODE if storage.synced else shared
            raise UsageError(f"--storage {storage}: node {answer.node.address} {answer.storage}; {remedy}")
