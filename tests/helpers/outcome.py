"""Read the results of a study: its files, and its runs in MLflow."""

from __future__ import annotations

import csv
import json
import struct
from pathlib import Path

import numpy as np
import optuna
from optuna.storages.journal import JournalFileBackend

DTYPES = {"F32": np.float32, "F64": np.float64, "I64": np.int64, "BOOL": np.bool_, "U8": np.uint8}


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Return the file's tensors. This follows the published file format, and does not use the library safetensors."""
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        start, end = (8 + size + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(raw[start:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def trials_of(study: Path) -> list[dict[str, str]]:
    with (study / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def optuna_states(study: Path) -> dict[int, str]:
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(study / "optuna.journal")))
    return {t.number: t.state.name for t in optuna.load_study(study_name=study.name, storage=storage).trials}


def mlflow_runs(cwd: Path, result: dict) -> tuple[list, list]:
    """Return (parent runs, child runs) of a study, from the file mlflow.db in the folder `cwd`."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{cwd}/mlflow.db")
    runs = client.search_runs([result["mlflow"]["experiment_id"]], max_results=1000)
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    return [run for run in runs if "mlflow.parentRunId" not in run.data.tags], children
