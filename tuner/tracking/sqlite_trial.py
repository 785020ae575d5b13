"""The process that tries whether MLflow can keep a record in an SQLite file.

MLflow may be installed with packages that it does not work with, which shows only when a store is made. A process of
its own keeps MLflow, its settings and what it prints out of the command that asks.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tune_sparsity.tuner.system.processes import own_process
from tune_sparsity.tuner.tracking.client import one_line, own_environment, prepare_sqlite

LONGEST = 240.0  # seconds: MLflow tries some things for more than a minute and a half before it gives up


def try_sqlite() -> str:
    """Has a process make a store as a study's first record would, and write a run to it and read it back.

    Returns:
        What went wrong, in a line, or "".

    Raises:
        OSError: if there is no place for temporary files.
    """
    with tempfile.TemporaryDirectory(prefix="tune-sparsity-") as folder:
        try:
            done = subprocess.run(
                own_process(__name__, folder),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=LONGEST,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"not done after {LONGEST:g} seconds"
    if done.returncode == 0:
        return ""
    said = done.stdout.splitlines() or done.stderr.splitlines()
    return said[-1] if said else f"its process ended with {done.returncode}"


def main(folder: str) -> None:
    """Tries it in this process, whose last line is what went wrong.

    Args:
        folder: the place for the store.
    """
    gc.set_threshold(100_000, 50, 100)  # as the process that delivers a record does
    own_environment()
    wrong = ""
    try:
        _keep_a_run(Path(folder) / "mlflow.db")
    except Exception as error:  # whatever it is, a study would meet it too
        wrong = one_line(error)
        print(wrong)
    sys.stdout.flush()
    os._exit(1 if wrong else 0)  # to take MLflow's objects apart takes a second


def _keep_a_run(file: Path) -> None:
    """Writes a run with a metric to a new store. Raises whatever MLflow raises, or ValueError if the metric is lost."""
    prepare_sqlite(file)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{file}")
    experiment = client.create_experiment("trial", artifact_location=(file.parent / "mlartifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    client.log_metric(run_id, "kept", 0.5)
    if (kept := client.get_run(run_id).data.metrics) != {"kept": 0.5}:
        raise ValueError(f"a metric that was written reads back as {kept}")
