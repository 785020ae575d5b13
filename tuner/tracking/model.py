"""Describe the best network for MLflow, and log it as a model.

The driver writes the description, without importing MLflow. The process that sends the notes logs the model.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from tune_sparsity.experiments.examples import named
from tune_sparsity.tuner.errors import one_line
from tune_sparsity.tuner.system.patching import replaced
from tune_sparsity.tuner.tracking.dataset import specs, tensor_specs

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from tune_sparsity.experiments import Data, Experiment
    from tune_sparsity.tuner.tracking.pyfunc_model import Gated

BEST_NAME, GROUP_NAME = "best", "group"
ALIAS = "champion"
SERVED = {BEST_NAME: "model", GROUP_NAME: "group"}  # name -> folder in STUDY/tracking
EXAMPLE, EXAMPLES = "example.npy", "example.npz"
_EXAMPLES = 2  # examples in MLflow's input example
_REQUIRED = ("tune-sparsity", "mlflow", "numpy", "safetensors", "scikit-learn", "torch", "torchvision")


def model_note(
    study_folder: Path,
    network: Path | Gated,
    experiment: Experiment,
    name: str,
    data: Data,
    *,
    tags: Mapping[str, Any],
    metrics: Mapping[str, float],
    register: str | None,
) -> dict[str, Any]:
    """Write the files of a model into the folder STUDY/tracking. Return the description with which `log_model` logs the
    model in MLflow.

    Args:
        study_folder: the study's folder.
        network: a path or a `Gated`. The path is the folder with the network's model.safetensors and model.json. A
            `Gated` (see pyfunc_model) is a group of two networks.
        experiment: the experiment of the network.
        name: the name of the experiment, as a value of --experiment.
        data: the experiment's data.
        tags: facts about the network, for example its trial and its target.
        metrics: the metrics of the network.
        register: the name in MLflow's model registry. If None, the model is not registered.
    """
    from tune_sparsity.tuner.tracking.pyfunc_model import assemble, load

    called = BEST_NAME if isinstance(network, Path) else GROUP_NAME
    folder = study_folder / "tracking" / SERVED[called]
    shutil.rmtree(folder, ignore_errors=True)
    assemble(folder, network, experiment, name, data.val.first(1).x)
    inputs = data.val.first(_EXAMPLES).x
    example = {name: tensor.numpy() for name, tensor in named(inputs).items()}
    outputs = load(experiment, folder).predict(example.get("", example))
    path = folder.parent / (EXAMPLE if "" in example else EXAMPLES)
    if "" in example:
        np.save(path, example[""])
    else:
        np.savez(path, **example)  # type: ignore[arg-type]
    weights = [path.read_bytes() for path in sorted(folder.rglob("model.safetensors"))]
    gate = b"" if isinstance(network, Path) else repr(network.theta).encode()
    digest = hashlib.sha256(b"".join([*weights, gate])).hexdigest()
    return {
        "name": called,
        "folder": str(folder.relative_to(study_folder)),
        "example": str(path.relative_to(study_folder)),
        "inputs": specs(inputs),
        "outputs": [str(outputs.dtype), list(outputs.shape[1:])],
        "tags": {key: str(value) for key, value in tags.items()} | {"weights_sha256": digest},
        "metrics": {key: float(value) for key, value in metrics.items()},
        "requirements": requirements(),
        "type": model_type(data),
        "register": register,
    }


def model_type(data: Data) -> str | None:
    """Return MLflow's type of the model, according to the labels y of the data: "classifier" for classes, "regressor"
    for numbers, and None for all other labels."""
    y = data.val.first(1).y
    if not isinstance(y, Tensor):
        return None
    if data.classes or (y.dim() == 1 and not y.is_floating_point()):
        return "classifier"
    return "regressor" if y.is_floating_point() else None


def requirements() -> list[str]:
    """Return the packages that the logged model needs, with their installed versions, as "NAME==VERSION"."""
    found = []
    for name in _REQUIRED:
        with suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name}=={importlib.metadata.version(name).partition('+')[0]}")
    return found


def log_model(
    run_id: str, client: MlflowClient, experiment_id: str, study_folder: Path, note: Mapping[str, Any]
) -> None:
    """Log the best network or a group of networks as a model of a run. If the run already has a model with the same
    weights, create no new model.

    Args:
        run_id: the run's id in MLflow.
        client: the client of the store.
        experiment_id: the experiment's id in MLflow.
        study_folder: the study's folder.
        note: the result of `model_note`. If it contains a name for MLflow's model registry, the model is registered.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric

    name = note.get("name", BEST_NAME)  # notes of earlier versions have no name
    same = [
        model
        for model in client.search_logged_models([experiment_id], f"name = '{name}'")
        if model.source_run_id == run_id
        and model.status == LoggedModelStatus.READY
        and model.tags.get("weights_sha256") == note["tags"]["weights_sha256"]
    ]
    if same:
        model_id = same[0].model_id
    else:
        params = {key: note["tags"][key] for key in ("method", "target", "trial") if key in note["tags"]}
        model = client.create_logged_model(experiment_id, name, run_id, dict(note["tags"]), params, note.get("type"))
        model_id = model.model_id
        try:
            _upload(client, model, run_id, study_folder, note)
        except ValueError:
            client.finalize_logged_model(model_id, "FAILED")
            raise
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
        now = model.creation_timestamp
        metrics = [Metric(k, v, now, 0, model_id=model_id, run_id=run_id) for k, v in note["metrics"].items()]
        client.log_batch(run_id, metrics, synchronous=True)
        client.finalize_logged_model(model_id, "READY")
    if note["register"]:
        _register(client, note["register"], model_id, run_id, note)


def _upload(client: MlflowClient, model: Any, run_id: str, study_folder: Path, note: Mapping[str, Any]) -> None:
    """Write the files of an MLflow model and send them. Raise ValueError if MLflow cannot write them. Another attempt
    would then fail, too."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            _save(Path(folder) / "model", model, run_id, study_folder, note)
        except OSError:
            raise
        except Exception as error:
            raise ValueError(f"the model cannot be saved: {one_line(error)}") from error
        client.log_model_artifacts(model.model_id, f"{folder}/model")


def _save(path: Path, model: Any, run_id: str, study_folder: Path, note: Mapping[str, Any]) -> None:
    import mlflow.pyfunc
    import mlflow.utils.environment
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema

    about = Model(
        artifact_path=model.artifact_location, model_uuid=model.model_id, run_id=run_id, model_id=model.model_id
    )
    signature = ModelSignature(Schema(tensor_specs(note["inputs"])), Schema(tensor_specs(note["outputs"])))
    # MLflow's comparison of required and installed versions takes two seconds. They are always equal here.
    unneeded = replaced(mlflow.utils.environment, "warn_dependency_requirement_mismatches", lambda required: None)
    with unneeded:
        mlflow.pyfunc.save_model(
            path=str(path),
            loader_module="tune_sparsity.tuner.tracking.pyfunc_model",
            data_path=str(study_folder / note["folder"]),
            mlflow_model=about,
            signature=signature,
            input_example=_example(study_folder / note["example"]),
            pip_requirements=list(note["requirements"]),
        )


def _example(path: Path) -> Any:
    found = np.load(path, allow_pickle=False)
    return found if isinstance(found, np.ndarray) else dict(found)


def _register(client: MlflowClient, name: str, model_id: str, run_id: str, note: Mapping[str, Any]) -> None:
    """Register the model as a version in MLflow's model registry, with its metrics as tags. Set the alias to this
    version."""
    from mlflow import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"models:/{model_id}"
    versions = [
        v for v in client.search_model_versions(f"name = '{name}'") if source in (v.source, f"models:/{v.model_id}")
    ]
    if versions:
        version = versions[0].version
    else:
        tags = {**note["tags"], **{key: repr(value) for key, value in note["metrics"].items()}}
        with _current_store(client.tracking_uri):
            version = client.create_model_version(name, source, run_id, tags, model_id=model_id).version
    client.set_registered_model_alias(name, ALIAS, version)


@contextmanager
def _current_store(uri: str) -> Iterator[None]:
    """Set MLflow's global tracking URI to `uri` within the `with` block. MLflow resolves the address `models:/ID` with
    the global URI, even if a client uses another store."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
