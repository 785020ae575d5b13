"""The process that delivers a study's outbox while its driver runs.

A process of its own keeps MLflow, whose import alone takes seconds, out of the driver, gives way to the trials, and
outlives a driver that is killed by as long as it takes to say so. On standard input it is told, in a line of JSON,
what to deliver and where (a URI may hold a password, which no command line should), then `flush` and `close`. On
standard output it says after every part how it stands. The end of its input without `close` is the driver's death.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from tune_sparsity.tuner.tracking.client import one_line, own_environment, quiet_loggers
from tune_sparsity.tuner.tracking.delivery import ATTEMPTS, Delivery, only_one
from tune_sparsity.tuner.tracking.outbox import end_abandoned

FLUSH, CLOSE, DEAD = "flush", "close", "dead"
SERVER, DATABASE = "server", "database"
NICENESS = "RAY_worker_niceness"  # Ray's environment variable for the priority of its workers
GATHER = 1.0  # seconds for which notes are gathered into one part, since every part takes time from the trials
LONGEST = 16.0  # seconds between two attempts
SHARE = 1  # the pause after a part is so many times the processor time that it took, which the trials may have missed:
# not more, since what is not sent while they run is sent after them, when nothing else is left to do


def main(kind: str) -> None:
    """The process, which may be started before there is a study to tell of.

    Args:
        kind: of the store, a SERVER or a DATABASE.
    """
    gc.set_threshold(100_000, 50, 100)  # to look for garbage while MLflow loads takes a quarter of that time
    own_environment()
    with suppress(OSError, ValueError):
        os.nice(int(os.environ.get(NICENESS, "15")))  # as Ray gives the trials, so that neither starves
    with suppress(Exception):  # tried again, and told, when it is needed
        _load(kind)
    if hello := sys.stdin.readline():
        asked = json.loads(hello)
        with log_file(Path(asked["folder"])).open("w") as log:
            os.dup2(log.fileno(), sys.stderr.fileno())
        serve(asked, sys.stdin, sys.stdout)
    os._exit(0)  # the study waits for this process, and to take MLflow's objects apart takes a second


def log_file(folder: Path) -> Path:
    """Return the file, in a study's folder, that holds the standard error of the process."""
    return folder / "tracking" / "writer.log"


def _load(kind: str) -> None:
    """Import MLflow and its libraries. The import takes several seconds."""
    import_module("mlflow")
    quiet_loggers()
    if kind == DATABASE:
        import_module("mlflow.store.tracking.sqlalchemy_store")


def serve(asked: dict[str, Any], stdin: TextIO, stdout: TextIO) -> None:
    """Delivers until it is told to close, or the driver is dead, and all has arrived or the store is away.

    Args:
        asked: what to deliver, and where: the first line of standard input.
    """
    folder, uri = Path(asked["folder"]), asked["uri"]
    commands: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(stdin, commands), daemon=True).start()
    with only_one(folder, wait=True):
        delivery = Delivery(folder, uri)
        sampling = not asked["system_metrics"]
        closing, failures, pause = False, 0, 0.0
        while True:
            hurried = _wait(commands, pause)
            if hurried in (CLOSE, DEAD):
                closing, failures = True, min(failures, ATTEMPTS - 1)  # a store that was away gets one more chance
            if hurried == DEAD:
                end_abandoned(folder, asked["session"])
            start, error = time.process_time(), ""
            try:
                while delivery.waiting:
                    delivery.part()
                    _say(stdout, delivery, 0, "")
                failures = 0
            except Exception as caught:  # whatever it is, it is tried again
                failures, error = failures + 1, one_line(caught)
            _say(stdout, delivery, failures, error)
            if not (
                sampling or failures
            ):  # not before: two threads that import MLflow at once stand in each other's way
                from tune_sparsity.tuner.tracking.system_metrics import sample_forever

                threading.Thread(target=sample_forever, args=(folder,), daemon=True).start()
                sampling = True
            if closing and (failures == 0 or failures >= ATTEMPTS):
                return
            took = time.process_time() - start
            pause = GATHER * 2 ** (failures - 1) if failures else max(GATHER, SHARE * took)
            pause = GATHER if closing else min(pause, LONGEST)


def _wait(commands: queue.Queue[str], pause: float) -> str:
    """Return the weightiest of the commands that came within `pause` seconds; the first ends the wait."""
    came = []
    with suppress(queue.Empty):
        came.append(commands.get(timeout=pause))
        while True:
            came.append(commands.get_nowait())
    return next((command for command in (DEAD, CLOSE, FLUSH) if command in came), "")


def _listen(stdin: TextIO, commands: queue.Queue[str]) -> None:
    last = ""
    for line in stdin:
        last = line.strip()
        commands.put(last)
    if last != CLOSE:
        commands.put(DEAD)


def _say(stdout: TextIO, delivery: Delivery, failures: int, error: str) -> None:
    sent = delivery.sent
    status: dict[str, Any] = {
        "offset": sent.offset,
        "failures": failures,
        "error": error,
        "experiment_id": sent.experiment_id,
        "run_id": sent.run_id,
        "refused": sent.refused,
        "unsent": delivery.unsent_runs() if failures >= ATTEMPTS else 0,
    }
    with suppress(OSError):  # the driver is dead
        print(json.dumps(status), file=stdout, flush=True)
