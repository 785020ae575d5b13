"""A node of a cluster, and how many trials fit on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """Describe a machine of the cluster that can run trials."""

    id: str
    address: str
    cpus: float
    gpus: float

    def room(self, cpus: float, gpus: float) -> int:
        """Return how many trials' workers fit, when each takes so many CPUs and GPUs of one node."""
        fit = int(self.cpus / cpus + 1e-9)
        # A trial that shares a GPU has its share of one: what is left of two is no room for it.
        whole = int(self.gpus) * int(1 / gpus + 1e-9) if 0 < gpus < 1 else int(self.gpus / gpus + 1e-9) if gpus else fit
        return min(fit, whole)


def trials_at_once(nodes: Iterable[Node], cpus: float, gpus: float, workers: int) -> int:
    """Return how many trials fit, when each has so many workers, which may lie on several nodes.

    Args:
        cpus, gpus: of each worker.
    """
    return sum(node.room(cpus, gpus) for node in nodes) // workers
