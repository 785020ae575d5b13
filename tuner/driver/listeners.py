"""Listeners of a running study: its record in MLflow, its files, its trials' networks and checkpoints, the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tune_sparsity.sparsity import NetworkSize
from tune_sparsity.tuner.driver.study_run import Listener, StudyRun
from tune_sparsity.tuner.reports.progress import Progress
from tune_sparsity.tuner.results.tables import write_trials
from tune_sparsity.tuner.storage.places import Place
from tune_sparsity.tuner.study.epochs import EpochLog
from tune_sparsity.tuner.study.layout import EPOCHS_CSV, weights_file
from tune_sparsity.tuner.study.trial import Epoch, TrialRecord
from tune_sparsity.tuner.system.files import write_bytes
from tune_sparsity.tuner.tracking.tracker import Tracker
from tune_sparsity.tuner.worker.checkpoints import sweep

_TABLES_EVERY = 5.0  # seconds between two writings of trials.csv while the study runs, at the least
_TABLES_SHARE = 20  # and so many times what the last took: the table of ten thousand trials takes seconds


class TrackTrials(Listener):
    """Tells MLflow of the trials."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def trial_recalled(self, study: StudyRun, record: TrialRecord) -> None:
        self._tracker.recall(record)

    def trial_begun(self, study: StudyRun, record: TrialRecord) -> None:
        self._tracker.start_trial(record)

    def epoch_trained(self, study: StudyRun, record: TrialRecord, epoch: Epoch) -> None:
        self._tracker.log_epoch(record.number, epoch.number, epoch.metrics)

    def trial_ended(self, study: StudyRun, record: TrialRecord) -> None:
        self._tracker.end_trial(record)


class LogEpochs(Listener):
    """Writes epochs.csv."""

    def __init__(self, folder: Path) -> None:
        self._log = EpochLog(folder / EPOCHS_CSV)

    def epoch_trained(self, study: StudyRun, record: TrialRecord, epoch: Epoch) -> None:
        self._log.add(record.number, epoch.number, epoch.metrics, record.objective)


class KeepNetworks(Listener):
    """Keeps those of the trials' networks that would be reported if the study ended now: all would fill a disk.

    Args:
        folder: where trials leave their networks. A network that a report brings is written there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def network_sent(self, study: StudyRun, record: TrialRecord, network: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_bytes(weights_file(self._folder, record.number), network)

    def trial_ended(self, study: StudyRun, record: TrialRecord) -> None:
        kept = (*study.standing.reported, *study.running())
        keep = {weights_file(self._folder, one.number) for one in kept}
        for path in self._folder.glob("*.safetensors"):
            if path not in keep:
                path.unlink(missing_ok=True)


class SweepCheckpoints(Listener):
    """Removes the checkpoints of ended trials."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def trial_ended(self, study: StudyRun, record: TrialRecord) -> None:
        sweep(self._place, study.searcher.running)


class ShowProgress(Listener):
    """Shows on the terminal how far the study is."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def study_begun(self, study: StudyRun) -> None:
        self._progress.open()

    def epoch_trained(self, study: StudyRun, record: TrialRecord, epoch: Epoch) -> None:
        self._progress.update(study.records.values())

    def trial_ended(self, study: StudyRun, record: TrialRecord) -> None:
        self._progress.update(study.records.values())

    def study_ended(self, study: StudyRun) -> None:
        self._progress.close()


class WriteTables(Listener):
    """Writes trials.csv and pareto.csv as they stand, now and then."""

    def __init__(
        self, folder: Path, size: NetworkSize | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._size, self._clock = folder, size, clock
        self._written, self._pause = clock(), _TABLES_EVERY

    def trial_ended(self, study: StudyRun, record: TrialRecord) -> None:
        start = self._clock()
        if start - self._written <= self._pause:
            return
        write_trials(self._folder, list(study.records.values()), study.goal, self._size)
        self._written = self._clock()
        self._pause = max(_TABLES_EVERY, _TABLES_SHARE * (self._written - start))
