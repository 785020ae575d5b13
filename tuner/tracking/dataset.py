"""Describe the data set, and log this description in MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tune_sparsity.experiments.examples import named

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from tune_sparsity.experiments import Data


_DIGEST = 36  # MLflow's limit, in characters


def dataset_note(experiment: str, data: Data, checksum: str) -> dict[str, Any]:
    """Return a description of the data set: its name, sizes, types and checksum. The entry "digest" is for MLflow,
    which allows only 36 characters: it is the beginning of the checksum."""
    x, y = data.train.first(1)
    return {
        "name": experiment,
        "digest": checksum[:_DIGEST],
        "checksum": checksum,
        "features": specs(x),
        "targets": specs(y),
        "examples": {"train": data.train.examples, "validation": data.val.examples, "test": data.test.examples},
    }


def log_dataset(client: MlflowClient, run_id: str, note: Mapping[str, Any]) -> None:
    """Log the data set as an input of the run."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.schema import TensorDatasetSchema
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.types import Schema

    features, targets = (Schema(tensor_specs(note[name])) for name in ("features", "targets"))
    source = CodeDatasetSource({"mlflow.source.name": f"experiment {note['name']}", "sha256": note["checksum"]})
    dataset = Dataset(
        name=note["name"],
        digest=note["digest"],
        source_type="code",
        source=source.to_json(),
        schema=json.dumps(TensorDatasetSchema(features=features, targets=targets).to_dict()),
        profile=json.dumps({"examples": note["examples"], "sha256": note["checksum"]}),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def specs(nest: Any) -> Any:
    """Return the dtype and the shape of one example of a batch, as a list for JSON, such as ["float32", [28, 28]]. For
    a nested structure of tensors, return a dict from the names of the tensors to such lists."""
    found = {
        name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape[1:])] for name, tensor in named(nest).items()
    }
    return found.get("", found)


def tensor_specs(noted: Any) -> list[Any]:
    """Convert the result of `specs` into MLflow's TensorSpecs."""
    from mlflow.types import TensorSpec

    each = noted if isinstance(noted, dict) else {None: noted}
    return [TensorSpec(np.dtype(dtype), (-1, *shape), name) for name, (dtype, shape) in each.items()]
