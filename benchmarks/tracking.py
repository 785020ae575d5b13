"""Measure the time that MLflow's record adds to a study: 1,000 reports of 12 metrics, compared with no record.

    python -m benchmarks.tracking [--rounds 3] [--only none sqlite http]

50 trials report 20 times each. Only the driver's tracker is the real one. A loop that computes for 6 s replaces the
trials: a study of the same size with Ray Tune takes 6 s without a record. The stores exist before the clock starts,
because MLflow needs some seconds to make a new SQLite file. The MLflow server runs without its own workers for jobs.
These would still need half a minute of processor time after the server says that it is ready. The clock stops when all
reports have arrived. The kinds of record (none, sqlite, http) take turns, because the machine may also do other work.
The table shows wall clock times, and the processor time of the driver.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.mlflow_servers import Server
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState
from tune_sparsity.tuner.tracking.outbox import StudyIdentity
from tune_sparsity.tuner.tracking.tracker import Tracker

TRIALS, EPOCHS, METRICS = 50, 20, 12
WITHOUT = 6.0  # seconds that the trials take without a tracker
WAYS = ("none", "sqlite", "http")


def compute(seconds: float) -> None:
    """Keeps the processor busy, as a trial would."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def study(tracker: Tracker | None, busy: float) -> None:
    """The trials, two at a time."""
    pause = busy / (TRIALS * EPOCHS)
    for first in range(0, TRIALS, 2):
        pair = [TrialRecord(number, "lpss", {"lr": 0.1, "p": 1.5}) for number in (first, first + 1)]
        if tracker is not None:
            for record in pair:
                tracker.start_trial(record)
        for epoch in range(1, EPOCHS + 1):
            for record in pair:
                compute(pause)
                if tracker is not None:
                    values = {f"metric_{n}": record.number + n / epoch for n in range(METRICS)}
                    tracker.log_epoch(record.number, epoch, values)
        for record in pair:
            record.state, record.epochs = TrialState.COMPLETED, EPOCHS
            if tracker is not None:
                tracker.end_trial(record)


def measure(uri: str | None, folder: Path) -> tuple[float, float]:
    """(seconds until everything has arrived, processor seconds of this process) of one study."""
    tracker = None
    if uri is not None:
        identity = StudyIdentity(folder.name, "benchmark", 0.9, "lpss")
        warm = Tracker(uri, identity, folder.with_name(f"{folder.name}-warm"))
        warm.close()
        assert not warm.problems, warm.problems
    start, processor = time.monotonic(), time.process_time()
    if uri is not None:
        tracker = Tracker(uri, identity, folder)
        tracker.start_study({"trials": TRIALS}, {})
    study(tracker, WITHOUT)
    if tracker is not None:
        tracker.finish_study(status="FINISHED", metrics={"hypervolume": 0.1}, pareto=[0, 1])
        tracker.close()
        assert not tracker.problems, tracker.problems
    return time.monotonic() - start, time.process_time() - processor


@contextmanager
def store(way: str, folder: Path) -> Iterator[str | None]:
    """Yield the tracking URI for a kind of record. For http, run a server."""
    if way == "http":
        server = Server(folder)
        server.start()
        try:
            yield server.uri
        finally:
            server.kill()
    else:
        yield f"sqlite:///{folder}/mlflow.db" if way == "sqlite" else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in options.only}
    for round_ in range(options.rounds):
        for way in options.only:
            with tempfile.TemporaryDirectory() as name, store(way, Path(name)) as uri:
                found[way].append(measure(uri, Path(name) / "studies" / f"round{round_}"))
    print("| record | seconds | more than without | processor seconds of the driver |\n| --- | --- | --- | --- |")
    base = statistics.median(seconds for seconds, _ in found["none"]) if "none" in found else float("nan")
    for way, rounds in found.items():
        seconds = statistics.median(one for one, _ in rounds)
        processor = statistics.median(one for _, one in rounds)
        print(f"| {way} | {seconds:.1f} | {seconds - base:.1f} | {processor:.2f} |", flush=True)


if __name__ == "__main__":
    main()
