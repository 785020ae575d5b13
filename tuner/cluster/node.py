"""Count the trials that fit on a node of a cluster."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """A machine of the cluster that can run trials."""

    id: str
    address: str
    cpus: float
    gpus: float

    def room(self, cpus: float, gpus: float) -> int:
        """Return how many workers of trials fit on this node.

        Args:
            cpus, gpus: the numbers of CPUs and GPUs of each worker.
        """
        fit = int(self.cpus / cpus + 1e-9)
        # A worker's share of a GPU must lie on one GPU. The unused shares of two GPUs cannot be added up.
        whole = int(self.gpus) * int(1 / gpus + 1e-9) if 0 < gpus < 1 else int(self.gpus / gpus + 1e-9) if gpus else fit
        return min(fit, whole)


def trials_at_once(nodes: Iterable[Node], cpus: float, gpus: float, workers: int) -> int:
    """Return how many trials fit on the nodes at once. The workers of a trial may run on several nodes.

    Args:
        cpus, gpus: the numbers of CPUs and GPUs of each worker.
        workers: the number of workers of each trial.
    """
    return sum(node.room(cpus, gpus) for node in nodes) // workers
