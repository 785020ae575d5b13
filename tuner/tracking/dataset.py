"""The data set in MLflow: what the driver notes of it, and how it is logged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from tune_sparsity.experiments import Data


_DIGEST = 36  # MLflow's limit, in characters


def dataset_note(experiment: str, data: Data, checksum: str) -> dict[str, Any]:
    """The data set: its name, sizes and types, and its checksum, of which MLflow's digest has the first 36 digits."""
    x, y = data.train
    return {
        "name": experiment,
        "digest": checksum[:_DIGEST],
        "checksum": checksum,
        "features": [_dtype(x), list(x.shape[1:])],
        "targets": [_dtype(y), list(y.shape[1:])],
        "examples": {"train": len(x), "validation": len(data.val.x), "test": len(data.test.x)},
    }


def log_dataset(client: MlflowClient, run_id: str, note: Mapping[str, Any]) -> None:
    """Logs the data set as the run's input."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.schema import TensorDatasetSchema
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.types import Schema

    features, targets = (Schema([tensor_spec(*note[name])]) for name in ("features", "targets"))
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


def tensor_spec(dtype: str, shape: list[int]) -> Any:
    from mlflow.types import TensorSpec

    return TensorSpec(np.dtype(dtype), (-1, *shape))


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")
