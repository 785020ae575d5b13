"""The best network as MLflow serves it: loaded from tensors and JSON, with nothing pickled.

A served folder holds model.safetensors, model.json, served.json (by what name the experiment is found) and, of a user's
own experiment, its code under code/. MLflow calls `_load_pyfunc` with it, in a process that has this package and
nothing else of the study.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tune_sparsity.experiments import Experiment, find
from tune_sparsity.experiments.base import in_evaluation
from tune_sparsity.experiments.registry import OldImport, import_from
from tune_sparsity.experiments.user_files import code_of
from tune_sparsity.tuner.system.arrays import as_array
from tune_sparsity.tuner.tracking.old_names import make_known

SERVED_JSON, CODE = "served.json", "code"
_MASK = ".mask"
_LARGEST = (
    1 << 20
)  # bytes of a file, other than Python's, that goes with the code: it may read some, but data stay away
_NUMBERS = 1 << 22  # inputs' numbers in one batch


class Served:
    """A network that takes the data set's inputs as arrays."""

    def __init__(self, experiment: Experiment, network: torch.nn.Module) -> None:
        self._experiment, self._network = experiment, in_evaluation(network)

    @torch.no_grad()
    def predict(self, inputs: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """The network's outputs, for a classifier the logits: shape (n, classes). What is bfloat16 becomes float32.

        Args:
            inputs: an array of shape (n, ...), examples as the data set holds them. What its network needs done to
                them first is done here.
            params: none are known; MLflow may hand some over.
        """
        x = torch.from_numpy(np.array(inputs))  # a copy: the caller's may be read-only
        size = max(1, min(4096, _NUMBERS // max(1, x[:1].numel())))
        outputs = [self._network(self._experiment.prepare(part)) for part in x.split(size)]
        return as_array(torch.cat(outputs))


def load(experiment: Experiment, folder: Path) -> Served:
    """The network of this experiment whose tensors lie in the folder."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    network = experiment.model()
    network.load_state_dict({name: tensor for name, tensor in tensors.items() if not name.endswith(_MASK)})
    return Served(experiment, network)


def assemble(folder: Path, network: Path, experiment: Experiment, name: str) -> None:
    """Makes a served folder.

    Args:
        folder: to make.
        network: the folder with model.safetensors and model.json.
        experiment: of the network.
        name: by which the experiment is found, as --experiment takes it.
    """
    folder.mkdir(parents=True)
    for file in ("model.safetensors", "model.json"):
        shutil.copyfile(network / file, folder / file)
    code = code_of(experiment, name)
    for path, content in {} if code is None else code.files.items():
        if path.endswith(".py") or len(content) <= _LARGEST:
            (folder / CODE / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / CODE / path).write_bytes(content)
    found_by = {"experiment": name if code is None else code.name}
    (folder / SERVED_JSON).write_text(json.dumps(found_by) + "\n")


def _load_pyfunc(path: str) -> Served:
    """MLflow's way in."""
    folder = Path(path)
    name = json.loads((folder / SERVED_JSON).read_text())["experiment"]
    code = folder / CODE
    if code.is_dir():
        import_from(code)
        if name.partition(":")[0].endswith(".py"):
            name = f"{code}/{name}"
    try:
        return load(find(name), folder)
    except OldImport:  # of a study that an earlier version began
        make_known()
        return load(find(name), folder)
