"""Trainings as jobs: each is run once, by one of a few processes, and is a line of a file from then on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

Job = dict[str, Any]


class Jobs:
    """Jobs of one kind, and the file of the finished jobs.

    Args:
        work: (job) -> its measurements, in types that JSON can hold. Other processes run this function, so it must be
            defined at the top level of a module.
        file: has a line for each finished job, with the measurements.
        workers: the number of processes at a time, each with one thread.
    """

    def __init__(self, work: Callable[[Job], Job], file: Path, workers: int) -> None:
        self.work, self.file, self.workers = work, file, workers
        lines = file.read_text().splitlines() if file.exists() else []
        self.done = {_key(line["job"]): line["measured"] for line in map(json.loads, lines)}

    def run(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the measurements of each job. Run the jobs that are not in the file yet."""
        todo = {_key(job): job for job in jobs if _key(job) not in self.done}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(self.workers, mp_context=get_context("spawn")) as pool:
            running = {pool.submit(_worked, self.work, job): job for job in todo.values()}
            for finished in as_completed(running):
                job, measured = running[finished], finished.result()
                self.done[_key(job)] = measured
                with self.file.open("a") as file:
                    file.write(json.dumps({"job": job, "measured": measured}) + "\n")
        return [self.done[_key(job)] for job in jobs]


def _key(job: Job) -> str:
    return json.dumps(job, sort_keys=True)


def _worked(work: Callable[[Job], Job], job: Job) -> Job:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as the search's workers do
    start = time.perf_counter()
    measured = work(job)
    return {**measured, "seconds": round(time.perf_counter() - start, 1)}
