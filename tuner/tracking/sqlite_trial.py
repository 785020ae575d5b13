"""Test in a separate process whether MLflow works with an SQLite file.

If MLflow is installed together with packages whose versions it does not support, an import of MLflow may succeed, but
the creation of a store may fail. This test therefore creates a store. It runs in a separate process, so that the
command itself does not import MLflow, and MLflow cannot change its settings or write into its output.
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

LONGEST = 240.0  # seconds for the test; MLflow repeats some operations for more than 90 seconds before it fails


def try_sqlite() -> str:
    """Start a process that creates a store as a study does, writes a run to it and reads the run again.

    Returns:
        The error in one line, or "" if there was no error.

    Raises:
        OSError: if temporary files cannot be created.
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
            return f"MLflow did not finish within {LONGEST:g} seconds"
    if done.returncode == 0:
        return ""
    said = done.stdout.splitlines() or done.stderr.splitlines()
    return said[-1] if said else f"MLflow's process ended with exit status {done.returncode}"


def main(folder: str) -> None:
    """Run the test in this process. If there is an error, it is the last line of the output.

    Args:
        folder: the folder for the store.
    """
    gc.set_threshold(100_000, 50, 100)  # as in tuner.tracking.writer
    own_environment()
    wrong = ""
    try:
        _keep_a_run(Path(folder) / "mlflow.db")
    except Exception as error:  # whatever the error of MLflow is, it would also stop a study's record
        wrong = one_line(error)
        print(wrong)
    sys.stdout.flush()
    os._exit(1 if wrong else 0)  # the clean-up of MLflow's objects takes a second


def _keep_a_run(file: Path) -> None:
    """Write a run with a metric to a new store, and read it. Raise MLflow's errors, or ValueError if the metric has
    changed."""
    prepare_sqlite(file)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{file}")
    experiment = client.create_experiment("trial", artifact_location=(file.parent / "mlartifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    client.log_metric(run_id, "kept", 0.5)
    if (kept := client.get_run(run_id).data.metrics) != {"kept": 0.5}:
        raise ValueError(f"a metric that was written reads back as {kept}")
