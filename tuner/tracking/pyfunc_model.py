"""Load a network as an MLflow model, from tensors and JSON. No pickle is involved.

The folder of a model contains model.safetensors, model.json and served.json, which names the experiment. The code of a
user's own experiment is in code/. The model of a group of two networks has the files of the networks in small/ and
large/. MLflow calls `_load_pyfunc` with the path of a model's folder, in a process that has this package but no files
of the study.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tune_sparsity.experiments import Experiment, find
from tune_sparsity.experiments.cascade import Answer, Cascade
from tune_sparsity.experiments.examples import at_once, mapped, named, parts
from tune_sparsity.experiments.registry import OldImport, import_from
from tune_sparsity.experiments.user_files import code_of
from tune_sparsity.tuner.system.arrays import as_array
from tune_sparsity.tuner.tracking.old_names import make_known

SERVED_JSON, CODE = "served.json", "code"
SMALL, LARGE = "small", "large"
_MASK = ".mask"


class Gated(NamedTuple):
    """A group of two networks. The small network answers if its margin is at least theta, otherwise the large network
    answers. The margin is the largest class probability minus the second largest.

    Attributes:
        small, large: the folders of the networks.
        theta: the threshold of the margin.
    """

    small: Path
    large: Path
    theta: float


class Served:
    """A network, or a group of two networks, with the method `predict` that MLflow calls."""

    def __init__(self, answer: Answer, names: Any = "") -> None:
        self._answer, self._names = answer, names

    @torch.no_grad()
    def predict(self, inputs: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """Return the network's outputs for a batch of examples. For a classifier, they are the logits, shape (n,
        classes). Outputs in bfloat16 become float32.

        Args:
            inputs: an array of shape (n, ...) with examples as in the data set. This method also calls the experiment's
                `prepare`. Nested inputs are given as a dict from names to such arrays. The names are those that
                `tune_sparsity.experiments.examples.named` gives to the tensors.
            params: MLflow's parameters, which have no effect.
        """
        given = inputs if isinstance(inputs, dict) else {"": inputs}
        x = _filled(self._names, {name: torch.from_numpy(np.array(one)) for name, one in given.items()})
        outputs = [self._answer(part) for part in parts(x, at_once(x))]
        return as_array(torch.cat(outputs))


def _names(nest: Any) -> Any:
    """Return the nested structure with names instead of tensors, so that JSON can represent it."""
    names = iter(named(nest))
    return mapped(lambda _: next(names), nest)


def _filled(names: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Return a nested structure in which each name is replaced by its tensor. This is the inverse of `_names`."""
    if isinstance(names, str):
        return tensors[names]
    if isinstance(names, dict):
        return {key: _filled(inner, tensors) for key, inner in names.items()}
    return tuple(_filled(inner, tensors) for inner in names)


def load(experiment: Experiment, folder: Path) -> Served:
    """Return the network or the group of networks in a model's folder.

    Args:
        experiment: the experiment of the networks.
        folder: the model's folder, which `assemble` has written.
    """
    served = json.loads((folder / SERVED_JSON).read_text())
    theta = served.get("theta")
    if theta is None:
        answer = _answer(experiment, folder)
    else:
        answer = Cascade(_answer(experiment, folder / SMALL), _answer(experiment, folder / LARGE), theta)
    return Served(answer, served.get("inputs", ""))  # models of earlier versions have no nested inputs


def _answer(experiment: Experiment, folder: Path) -> Answer:
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    network = experiment.network_with({name: one for name, one in tensors.items() if not name.endswith(_MASK)})
    return partial(experiment.outputs, network)


def assemble(folder: Path, network: Path | Gated, experiment: Experiment, name: str, inputs: Any) -> None:
    """Write the folder of a model.

    Args:
        folder: the folder to create.
        network: a path or a `Gated`. The path is the folder with the network's model.safetensors and model.json. A
            `Gated` is a group of two networks.
        experiment: the experiment of the network.
        name: the name of the experiment, as a value of --experiment. A user's own experiment must be defined in a file,
            because the model stores its source code.
        inputs: the inputs of one example as in the data set, before the experiment's `prepare` is called.
    """
    if isinstance(network, Gated):
        networks = {folder / SMALL: network.small, folder / LARGE: network.large}
    else:
        networks = {folder: network}
    for place, where in networks.items():
        place.mkdir(parents=True)
        for file in ("model.safetensors", "model.json"):
            shutil.copyfile(where / file, place / file)
    code = code_of(experiment, name)
    for path, content in {} if code is None else code.files.items():
        (folder / CODE / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / CODE / path).write_bytes(content)
    served = {"experiment": name if code is None else code.name, "inputs": _names(inputs)}
    if isinstance(network, Gated):
        served["theta"] = network.theta
    (folder / SERVED_JSON).write_text(json.dumps(served) + "\n")


def _load_pyfunc(path: str) -> Served:
    """Load the model in a folder. MLflow finds this function by its name, and calls it."""
    folder = Path(path)
    name = json.loads((folder / SERVED_JSON).read_text())["experiment"]
    code = folder / CODE
    if code.is_dir():
        import_from(code)
        if name.partition(":")[0].endswith(".py"):
            name = f"{code}/{name}"
    try:
        return load(find(name), folder)
    except OldImport:  # an earlier version logged the model
        make_known()
        return load(find(name), folder)
