"""A study in progress: the one place where a trial begins, reports and ends, whoever runs it.

Ray's events arrive here through tuner.ray_run. From here the searcher learns what to conclude, the tracker what to
write, the display what to show; all from the same record, so that their states cannot differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tuner.config import StudyConfig
from tuner.display import Progress
from tuner.pareto import best_trial
from tuner.records import TrialRecord, TrialState
from tuner.results import write_trials
from tuner.searcher import Asked, OptunaSearcher
from tuner.tracking import Tracker

_FILES_EVERY = 5.0  # seconds between two writings of trials.csv while the study runs
_MEASURES = ("val_accuracy", "sparsity", "sparsity_total", "hoyer")


class StudyRun:
    """Keeps the records of a study's trials.

    Args:
        config: resolved.
        searcher, tracker, progress: told of everything.
        weights_folder: where trials leave their networks; only the best feasible one's is kept.
        weights_file: (folder, number) -> the file of that trial's network.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        config: StudyConfig,
        searcher: OptunaSearcher,
        tracker: Tracker,
        progress: Progress,
        weights_folder: Path,
        weights_file: Callable[[Path, int], Path],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.searcher, self.tracker, self.progress = config, searcher, tracker, progress
        self._weights_folder, self._weights_file, self._clock = weights_folder, weights_file, clock
        self.records = {record.number: record for record in searcher.finished()}
        self._began: dict[int, float] = {}
        self._written = clock()
        self.sampling_seconds = 0.0
        self.training_seconds = 0.0  # in the workers, summed over all

    def ask(self) -> Asked | None:
        """The next trial, begun; None when the study has had all its trials."""
        if len(self.records) >= self.config.trials:
            return None
        start = self._clock()
        asked = self.searcher.ask()
        self.sampling_seconds += self._clock() - start
        record = TrialRecord(asked.number, asked.method, asked.params)
        self.records[asked.number] = record
        self._began[asked.number] = self._clock()
        self.tracker.start_trial(record)
        return asked

    def epoch(self, number: int, metrics: dict[str, float]) -> None:
        """A trial has trained one more epoch."""
        record = self.records[number]
        record.epochs += 1
        record.seconds = self._clock() - self._began[number]
        record.metrics = metrics
        for name in _MEASURES:
            setattr(record, name, metrics[name])
        record.nonzero_weights = int(metrics["nonzero_weights"])
        self.training_seconds += metrics["epoch_seconds"]
        self.tracker.log_epoch(number, record.epochs, metrics)
        self.progress.update(self.records.values())

    def end(self, number: int, state: TrialState, reason: str = "") -> None:
        """A trial is over: concluded once, in the same way everywhere."""
        record = self.records[number]
        if record.state is not TrialState.RUNNING:
            return
        record.state, record.reason = state, reason
        record.seconds = self._clock() - self._began[number]
        start = self._clock()
        self.searcher.tell(record)
        self.sampling_seconds += self._clock() - start
        self.tracker.end_trial(record)
        self._keep_best_weights(number)
        self.progress.update(self.records.values())
        if self._clock() - self._written > _FILES_EVERY:
            self.write_files()

    def write_files(self) -> None:
        """trials.csv and pareto.csv as they stand."""
        write_trials(self.config.folder, list(self.records.values()), self.config.target)
        self._written = self._clock()

    def running(self) -> list[TrialRecord]:
        """The trials that have begun and not ended."""
        return [record for record in self.records.values() if record.state is TrialState.RUNNING]

    def best(self) -> TrialRecord | None:
        """The best feasible trial so far."""
        return best_trial(self.records.values(), self.config.target)

    def best_weights(self) -> Path | None:
        """The file with the best feasible trial's network: as the trial left it, or, where the study had ended before
        and goes on, the one that was written then."""
        if (best := self.best()) is None:
            return None
        file = self._weights_file(self._weights_folder, best.number)
        return file if file.exists() else self.config.folder / "best" / "model.safetensors"

    def _keep_best_weights(self, ended: int) -> None:
        """Of the networks that trials left, only the best stays: the files of many trials would fill a disk."""
        best = self.best_weights()
        keep = {best, *(self._weights_file(self._weights_folder, record.number) for record in self.running())}
        for path in self._weights_folder.glob("*.safetensors"):
            if path not in keep:
                path.unlink(missing_ok=True)
