"""Record the load of this machine in the study's parent run of MLflow, while the study runs."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tune_sparsity.tuner.tracking.outbox import PARENT, Note, append

EVERY = 10.0  # seconds between two samples, unless MLflow's environment variable sets them


def sample_forever(study_folder: Path) -> None:
    """Append notes with metrics of the load of processor, memory, disk, network and GPUs, at regular intervals and
    without end. The metrics have the names that MLflow itself gives to system metrics."""
    monitors = _monitors()
    every = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or EVERY)
    began = time.time()
    while True:
        values: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            values |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        # The step is the time, so that a resumed study does not begin at 0 again.
        append(study_folder, Note(PARENT, step=int(time.time()), metrics=values))
        time.sleep(max(0.1, every - (time.time() - began) % every))


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with suppress(ImportError, RuntimeError):  # no GPU, or no library that reads its load
        found.append(GPUMonitor())
    return found
