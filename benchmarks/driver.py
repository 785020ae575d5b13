"""Measure what a study costs without the training: its searcher, early stopping, records and tracker.

    python -m benchmarks.driver [--trials 1000 10000] [--slots 2] [--epochs 8] [--front]

The trials are simulated, and Ray is not used. All other parts are those of a real study: an Optuna journal and an
MLflow store (sqlite) on disk, trials.csv every few seconds, the progress line. A simulated trial reports a learning
curve that depends on its parameters. About 2 % of the trials fail.

Each number in `--trials` is measured in a process of its own. This process first runs a study of 100 trials, and then
the measured study. The table has the largest resident memory after each of these two studies. The value after the small
study is mostly the memory of the libraries. Wall time and the processor time of all threads are measured from the first
trial until the tracker is closed and trials.csv is written.
"""

from __future__ import annotations

import argparse
import io
import math
import resource
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from tune_sparsity.tuner.config.study_config import make_config
from tune_sparsity.tuner.driver.listeners import KeepNetworks, LogEpochs, ShowProgress, TrackTrials, WriteTables
from tune_sparsity.tuner.driver.study_run import Listener, StudyRun
from tune_sparsity.tuner.reports.progress import Progress
from tune_sparsity.tuner.results.tables import write_trials
from tune_sparsity.tuner.search.asha import halving_for
from tune_sparsity.tuner.search.planner import planner_for
from tune_sparsity.tuner.search.searcher import Asked, OptunaSearcher
from tune_sparsity.tuner.search.spaces import spaces_of
from tune_sparsity.tuner.study.goal import Goal, GoalKind, along_front, at_targets
from tune_sparsity.tuner.study.layout import WEIGHTS as WEIGHTS_FOLDER
from tune_sparsity.tuner.study.trial import Epoch, TrialState
from tune_sparsity.tuner.tracking.outbox import StudyIdentity
from tune_sparsity.tuner.tracking.tracker import Tracker

WEIGHTS = 266_200  # of the simulated network


class Simulated:
    """A trial that trains nothing: what it reports depends on its parameters and its number."""

    def __init__(self, asked: Asked, epochs: int) -> None:
        self.number, self.epochs, self.epoch = asked.number, epochs, 0
        self.final_sparsity = asked.params["final_sparsity"]
        away = abs(asked.params["p"] - 1.5) + abs(math.log(asked.params["lr"] / 0.05)) / 5
        self._best = math.exp(-away) * (1 - self.final_sparsity) ** 0.02
        self._rng = np.random.default_rng(asked.number)
        self.fails_at = int(self._rng.integers(1, epochs + 1)) if self._rng.random() < 0.02 else None

    def train(self) -> dict[str, float]:
        """One epoch's metrics."""
        self.epoch += 1
        at_target = self._best * (1 - math.exp(-3 * self.epoch / self.epochs)) + 0.01 * self._rng.normal()
        sparsity = self.final_sparsity * min(1.0, self.epoch / (0.7 * self.epochs))
        return {
            "train_loss": 1 - at_target,
            "val_accuracy": at_target,
            "val_accuracy_at_target": at_target,
            "sparsity": sparsity,
            "sparsity_total": 0.99 * sparsity,
            "hoyer": 0.5,
            "nonzero_weights": float(round((1 - sparsity) * WEIGHTS)),
            "epoch_seconds": 0.0,
        }


def option_of(goal: Goal) -> dict[str, Any]:
    """Return the option `front` or `target` that gives a study this goal, as a dict with one entry."""
    return {"front": goal.ends} if goal.kind is GoalKind.FRONT else {"target": goal.targets}


def study_in(
    folder: Path, trials: int, epochs: int, front: bool, more: Sequence[Listener] = ()
) -> tuple[StudyRun, Tracker]:
    """Return the driver of a study, with the listeners `more` too, and its tracker. All files are in `folder`."""
    goal = along_front(0.5, 0.99) if front else at_targets(0.9)
    options = {**option_of(goal), "trials": trials, "storage": folder, "study": "simulated"}
    config = make_config({**options, "tracking_uri": f"sqlite:///{folder}/mlflow.db"}).resolved()
    config.folder.mkdir()
    spaces = spaces_of(config, goal)
    journal = config.folder / "optuna.journal"
    planner = planner_for(spaces, goal, trials)
    searcher = OptunaSearcher(spaces, goal.lowest, planner=planner, journal=journal, name="simulated")
    tracker = Tracker(config.tracking_uri, StudyIdentity("simulated", "simulated", goal.option, "lpss"), config.folder)
    tracker.start_study({"trials": trials}, {})
    progress = Progress(trials, goal, stream=io.StringIO(), live=False)
    halving = halving_for(config.scheduler, goal, epochs)
    listeners = [
        TrackTrials(tracker),
        LogEpochs(config.folder),
        KeepNetworks(config.folder / WEIGHTS_FOLDER),
        ShowProgress(progress),
        WriteTables(config.folder),
        *more,
    ]
    return StudyRun(config, goal, searcher, listeners, halving), tracker


def run(study: StudyRun, slots: int, epochs: int) -> None:
    """Run all trials of the study, `slots` at a time. The running trials take turns, one epoch each."""
    running: list[Simulated] = []
    while True:
        while len(running) < slots and (asked := study.ask()) is not None:
            running.append(Simulated(asked, epochs))
        if not running:
            return
        running = [trial for trial in running if _goes_on(study, trial)]


def _goes_on(study: StudyRun, trial: Simulated) -> bool:
    epoch = Epoch(trial.epoch + 1, trial.train())
    if trial.epoch == trial.fails_at:
        study.end(trial.number, TrialState.FAILED, "simulated")
        return False
    return reported(study, trial.number, epoch, trial.final_sparsity, last=trial.epoch == trial.epochs)


def reported(study: StudyRun, number: int, epoch: Epoch, final_sparsity: float, *, last: bool) -> bool:
    """Record an epoch of a trial. End the trial after its last epoch, or if early stopping says so. Return whether
    the trial goes on."""
    study.epoch(number, epoch)
    if not last and study.goes_on(number, epoch, final_sparsity):
        return True
    study.end(number, TrialState.COMPLETED if last else TrialState.PRUNED)
    return False


def peak_mib() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(trials: int, slots: int, epochs: int, front: bool) -> dict[str, float]:
    """Run `trials` simulated trials in this process. Return their counts, times and memory (see the file's top)."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as folder:
        warm, tracker = study_in(Path(first), 100, epochs, front)
        run(warm, slots, epochs)
        tracker.close()
        base = peak_mib()
        study, tracker = study_in(Path(folder), trials, epochs, front)
        tracker.flush()
        start, cpu = time.monotonic(), time.process_time()
        run(study, slots, epochs)
        searched = time.monotonic() - start
        pareto = {record.number for record in study.standing.front}
        tracker.finish_study(status="FINISHED", metrics={}, pareto=pareto)
        tracker.close()
        write_trials(study.config.folder, list(study.records.values()), study.goal)
        states = [record.state for record in study.records.values()]
        assert not tracker.problems, tracker.problems
        return {
            "trials": len(states),
            "stopped": states.count(TrialState.PRUNED),
            "epochs": sum(record.epochs for record in study.records.values()),
            "searched": searched,
            "seconds": time.monotonic() - start,
            "processor": time.process_time() - cpu,
            "base": base,
            "peak": peak_mib(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--front", action="store_true")
    options = parser.parse_args()
    print(
        "| trials | stopped | epochs | wall ms a trial | of it after the last trial | processor ms a trial | ", end=""
    )
    print("memory after 100, MiB | at the end, MiB |\n|" + " --- |" * 8)
    for trials in options.trials:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            got = pool.submit(measure, trials, options.slots, options.epochs, options.front).result()
        wall, late, processor = (
            1000 * seconds / trials for seconds in (got["seconds"], got["seconds"] - got["searched"], got["processor"])
        )
        print(
            f"| {got['trials']:,} | {got['stopped']:,} | {got['epochs']:,} | {wall:.1f} | {late:.1f} | "
            f"{processor:.1f} | {got['base']:.0f} | {got['peak']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
