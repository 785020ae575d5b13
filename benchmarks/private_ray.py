"""Compare two ways in which the default study can start a private Ray: the fast start, and the start by public calls.

    python -m benchmarks.private_ray [--turns 3]

The fast start needs private names of Ray. For the start by public calls, the study runs with a copy of Ray in which
these names are changed. The two ways take turns. The benchmark prints a table: wall seconds, processor
seconds of all processes of the study, and the largest memory that they had together (proportional set size).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tests.helpers.renamed_ray import renamed_ray
from tune_sparsity.tuner.cluster.ray_patches import PRIVATE

_LOOK_EVERY = 0.25  # seconds
_STUDY = [sys.executable, "-m", "tune_sparsity", "--target", "0.9"]


def measure(folder: Path, paths: list[str]) -> tuple[float, float, float]:
    """Run the default study in a folder. Return seconds, processor seconds and MiB."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    processor, most = dict[int, float](), 0.0
    start = time.monotonic()
    with subprocess.Popen(_STUDY, cwd=folder, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            here = psutil.Process(process.pid)
            memory = 0.0
            for one in [here, *here.children(recursive=True)]:
                with suppress(psutil.Error):
                    times = one.cpu_times()
                    processor[one.pid] = times.user + times.system
                    memory += one.memory_full_info().pss / 2**20
            most = max(most, memory)
            time.sleep(_LOOK_EVERY)
        if process.returncode:
            raise SystemExit(f"the study ended with {process.returncode}")
    return time.monotonic() - start, sum(processor.values()), most


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=3)
    turns = parser.parse_args().turns
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        other = renamed_ray([private.name for private in PRIVATE], folder / "ray")
        ways: dict[str, list[str]] = {"quick": [], "public calls": [str(other)]}
        found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways}
        for turn in range(turns):
            for way, paths in ways.items():
                place = folder / f"{way}-{turn}"
                place.mkdir()
                found[way].append(measure(place, paths))
                print(way, *(f"{value:.1f}" for value in found[way][-1]), file=sys.stderr, flush=True)
    print("| start | wall s | processor s | MiB |\n| --- | --- | --- | --- |")
    for way, rows in found.items():
        cells = [
            f"{statistics.median(column):.0f} ({min(column):.0f} to {max(column):.0f})"
            for column in zip(*rows, strict=True)
        ]
        print(f"| {way} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
