"""Send the notes in a study's outbox (see tuner.tracking.outbox) to MLflow, in a separate process while the study's
driver runs.

The import of MLflow takes seconds. A separate process keeps MLflow out of the driver, and has a lower priority than the
driver. If the driver is killed, this process marks the study's runs in MLflow as KILLED, and then ends.

The first line on standard input is a JSON document that names the outbox and the store. The URI is not in the command
line, because it may contain a password. After this line, the driver may write the lines `flush` and `close`. If the
input ends without `close`, the driver has died. This process sends the outbox in parts of about a megabyte. After every
part, it writes a line to standard output: a JSON document about the notes that have arrived, and about errors.
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
GATHER = 1.0  # seconds between two parts of the record, at least: sending many small parts would slow the trials
LONGEST = 16.0  # seconds between two attempts, at most
SHARE = 1  # the pause after a part, as a multiple of the processor time for sending it
# With a larger SHARE, more of the record would be sent after the last trial, while the study waits.


def main(kind: str) -> None:
    """Import MLflow, wait for the first line on standard input, and run `serve`. If standard input ends without a line,
    end the process, because no study has begun.

    Args:
        kind: the kind of the store, SERVER or DATABASE.
    """
    gc.set_threshold(100_000, 50, 100)  # garbage collection would take a quarter of MLflow's import time
    own_environment()
    with suppress(OSError, ValueError):
        # This process has the same priority as Ray's workers. If its priority were lower, most notes would have to wait
        # until the trials have ended.
        os.nice(int(os.environ.get(NICENESS, "15")))
    with suppress(Exception):  # `serve` tries again and reports the error
        _load(kind)
    if hello := sys.stdin.readline():
        asked = json.loads(hello)
        with log_file(Path(asked["folder"])).open("w") as log:
            os.dup2(log.fileno(), sys.stderr.fileno())
        serve(asked, sys.stdin, sys.stdout)
    os._exit(0)  # the study waits for this process, and the clean-up of MLflow's objects takes a second


def log_file(folder: Path) -> Path:
    """Return the file in a study's folder into which this process writes its standard error."""
    return folder / "tracking" / "writer.log"


def _load(kind: str) -> None:
    """Import MLflow and the libraries that it needs for this kind of store. The import takes several seconds."""
    import_module("mlflow")
    quiet_loggers()
    if kind == DATABASE:
        import_module("mlflow.store.tracking.sqlalchemy_store")


def serve(asked: dict[str, Any], stdin: TextIO, stdout: TextIO) -> None:
    """Send notes until the driver closes this process or dies. At the end, send the remaining notes with a few
    attempts.

    Args:
        asked: the first line of standard input, which names the outbox and the store.
        stdin: further lines from the driver.
        stdout: the stream for the lines about the progress (see the docstring of this module).
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
                closing, failures = True, min(failures, ATTEMPTS - 1)  # one more attempt if the store was away
            if hurried == DEAD:
                end_abandoned(folder, asked["session"])
            start, error = time.process_time(), ""
            try:
                while delivery.waiting:
                    delivery.part()
                    _say(stdout, delivery, 0, "")
                failures = 0
            except Exception as caught:  # the next round tries again after any error
                failures, error = failures + 1, one_line(caught)
            _say(stdout, delivery, failures, error)
            # `sample_forever` imports MLflow in another thread. It begins after a round without failures, because this
            # thread may import MLflow until then.
            if not (sampling or failures):
                from tune_sparsity.tuner.tracking.system_metrics import sample_forever

                threading.Thread(target=sample_forever, args=(folder,), daemon=True).start()
                sampling = True
            if closing and (failures == 0 or failures >= ATTEMPTS):
                return
            took = time.process_time() - start
            pause = GATHER * 2 ** (failures - 1) if failures else max(GATHER, SHARE * took)
            pause = GATHER if closing else min(pause, LONGEST)


def _wait(commands: queue.Queue[str], pause: float) -> str:
    """Wait up to `pause` seconds for commands. Return the most urgent command that has arrived, or "" if there is
    none."""
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
