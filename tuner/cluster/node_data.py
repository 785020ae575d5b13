"""Give a study's data to the processes that train, through Ray's object store. All processes of a node share one copy.

The driver sends the data that it has loaded. On a cluster, data of more than LARGE bytes are not sent. Each node loads
these data itself, from the same path as the driver, before the study begins. A missing data set is therefore found
before the first trial.
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
"""The data, from `tuner.worker.trainable.shared_arrays`: a dict from names to nested containers of NumPy arrays."""
LARGE = 1 << 30
"""The largest number of bytes of training and validation data that the driver sends. The environment variable
TUNE_SPARSITY_LARGE_DATA overrides this number."""


@dataclass(frozen=True)
class NodeArrays:
    """Holds references to the arrays of the training and validation data in Ray's object store.

    Attributes:
        references: a dict from the id of each node to the reference to the arrays that this node has loaded. The key ""
            stands for arrays that the driver has loaded.
    """

    references: dict[str, Any]

    def here(self) -> Arrays:
        """Return the arrays that this node has loaded. If this node has loaded none, for example because it joined
        the cluster during the study, return the arrays of the driver or of another node."""
        mine = self.references.get(ray.get_runtime_context().get_node_id())
        found: Arrays = ray.get(mine if mine is not None else next(iter(self.references.values())))
        return found


def for_workers(
    config: StudyConfig, experiment: Experiment, data: Data, checksum: Callable[[], str]
) -> Arrays | NodeArrays | LoadedThere:
    """Return the data in the form in which trials receive them. Connect to Ray before this call.

    Args:
        config: the study's settings.
        experiment: the experiment.
        data: the data, from `experiment.load`. Either all examples are in memory, or torch data sets load them one by
            one.
        checksum: a function that returns the checksum of the data. It may take seconds.

    Returns:
        The arrays, or references to them. If torch data sets load the examples, a LoadedThere, with which each trial
        loads the data itself. An empty dict if the experiment is a user's own loop, which loads its data.

    Raises:
        UsageError: if the data are large and a node does not have the same data.
    """
    if isinstance(experiment, OwnLoop):  # it loads its data itself
        return {}
    if not data.in_memory:
        return LoadedThere(config.data_dir, checksum())
    arrays = shared_arrays(data)
    large = int(os.environ.get("TUNE_SPARSITY_LARGE_DATA") or LARGE)
    if config.address is None or sum(array.nbytes for array in tree_leaves(arrays)) <= large:
        # The first worker of a trial sends the data to the other workers. References are cheaper to send than arrays.
        return arrays if config.workers_per_trial == 1 else NodeArrays({"": ray.put(arrays)})
    return loaded_by(nodes(), experiment, config.experiment, config.data_dir, checksum())


def loaded_by(where: list[Node], experiment: Experiment, source: str, folder: Path | None, checksum: str) -> NodeArrays:
    """Let each node load the experiment's data.

    Args:
        where: the nodes that load the data.
        source: the value of --experiment. The experiment's code is sent to the nodes.
        folder: the value of --data-dir, which is the same on every node.
        checksum: the checksum of the driver's data. The data of all nodes must have the same checksum.

    Raises:
        UsageError: if a node does not have these data. The message names the first such node.
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
            wrong = f"they cannot be loaded ({' '.join(str(error).split())[-200:]})"
        if wrong:
            raise UsageError(
                f"node {node.address}: the data of {experiment.name} are missing or differ from the data on this "
                f"machine ({wrong}): put the same data into --data-dir on all nodes"
            )
    return NodeArrays({node.id: arrays for node, (_, arrays) in asked.items()})


def _load(experiment: Experiment, folder: Path | None, checksum: str) -> tuple[str, dict[str, Any]]:
    """Load the data on a node. Return the reason why these data cannot be used, or "", and the arrays."""
    try:
        data = experiment.load(folder)
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", {}
    if (found := data.checksum()) != checksum:
        return f"their checksum is {found[:12]} there and {checksum[:12]} here", {}
    return "", shared_arrays(data)
