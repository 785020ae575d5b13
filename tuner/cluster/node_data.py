"""How a study's data reach the processes that train: through Ray's object store, where a node keeps one copy for all.

Data up to a size are sent from the driver, which has loaded them. Larger ones every node of a cluster loads by itself,
from the same path, before the study begins: a node without them, or with others, is found then and not after an hour.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tune_sparsity.experiments import Data, Experiment, OwnLoop
from tune_sparsity.sparsity.torch_internals import tree_leaves
from tune_sparsity.tuner.cluster.node import Node
from tune_sparsity.tuner.cluster.nodes import nodes
from tune_sparsity.tuner.config.study_config import StudyConfig
from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.worker.shipping import Parcel
from tune_sparsity.tuner.worker.trainable import LoadedThere, shared_arrays

Arrays = Mapping[str, Any]
"""Nests of NumPy arrays by name, as shared_arrays makes them."""
LARGE = 1 << 30
"""Bytes of training and validation data above which nodes load them by themselves; TUNE_SPARSITY_LARGE_DATA sets it."""


@dataclass(frozen=True)
class NodeArrays:
    """What each node has loaded, by the node's id."""

    references: dict[str, Any]

    def here(self) -> Arrays:
        """This node's, read in place; a node that joined later takes another's."""
        mine = self.references.get(ray.get_runtime_context().get_node_id())
        found: Arrays = ray.get(mine if mine is not None else next(iter(self.references.values())))
        return found


def for_workers(
    config: StudyConfig, experiment: Experiment, data: Data, checksum: Callable[[], str]
) -> Arrays | NodeArrays | LoadedThere:
    """Return the data for the processes that train. Ray is connected.

    Args:
        checksum: gives the data's, which takes a while.

    Raises:
        UsageError: if the data are large and a node has not the same.
    """
    if isinstance(experiment, OwnLoop):  # it loads its data itself
        return {}
    if not data.in_memory:
        return LoadedThere(config.data_dir, checksum())
    arrays = shared_arrays(data)
    large = int(os.environ.get("TUNE_SPARSITY_LARGE_DATA") or LARGE)
    if config.address is None or sum(array.nbytes for array in tree_leaves(arrays)) <= large:
        # A trial's workers hand on what they are given: references, and not the arrays themselves.
        return arrays if config.workers_per_trial == 1 else NodeArrays({"": ray.put(arrays)})
    return loaded_by(nodes(), experiment, config.experiment, config.data_dir, checksum())


def loaded_by(where: list[Node], experiment: Experiment, source: str, folder: Path | None, checksum: str) -> NodeArrays:
    """Has each node load the data of the experiment.

    Args:
        source: the name that the experiment was found by, from which its code travels.
        folder: --data-dir, on every node.
        checksum: of the driver's data, which all must equal.

    Raises:
        UsageError: if a node has not these data; the line names the first one.
    """
    task: Any = ray.remote(num_cpus=0, num_returns=2)(_load)
    asked = {
        node: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
            Parcel(experiment, source, loads=True), folder, checksum
        )
        for node in where
    }
    for node, (problem, _) in asked.items():
        try:
            wrong = ray.get(problem)
        except ray.exceptions.RayError as error:
            wrong = f"they do not load ({' '.join(str(error).split())[-200:]})"
        if wrong:
            raise UsageError(
                f"node {node.address} has not the data of {experiment.name} that this machine has: {wrong}: large data "
                "must lie at the same --data-dir on all nodes"
            )
    return NodeArrays({node.id: arrays for node, (_, arrays) in asked.items()})


def _load(experiment: Experiment, folder: Path | None, checksum: str) -> tuple[str, dict[str, Any]]:
    """On a node: what is wrong with its data, "" if nothing, and the data."""
    try:
        data = experiment.load(folder)
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", {}
    if (found := data.checksum()) != checksum:
        return f"their checksum is {found[:12]} there and {checksum[:12]} here", {}
    return "", shared_arrays(data)
