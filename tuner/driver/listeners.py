"""Listeners that a running study notifies of its events. They write to MLflow, files and the terminal, and remove old
files."""

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

# Between two writes of trials.csv, at least _TABLES_EVERY seconds pass, and at least _TABLES_SHARE times the duration
# of the last write. So at most about 1 % of the time is spent on it, also with ten thousand trials.
_TABLES_EVERY = 5.0
_TABLES_SHARE = 100


class TrackTrials(Listener):
    """Logs the trials to MLflow."""

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
    """Adds a row to epochs.csv for each epoch."""

    def __init__(self, folder: Path) -> None:
        self._log = EpochLog(folder / EPOCHS_CSV)

    def epoch_trained(self, study: StudyRun, record: TrialRecord, epoch: Epoch) -> None:
        self._log.add(record.number, epoch.number, epoch.metrics, record.objective)


class KeepNetworks(Listener):
    """Removes the networks of ended trials, because they would fill the disk. Does not remove the networks that the
    study's results would contain if the study ended now.

    Args:
        folder: the folder of the networks. Workers write their networks into this folder. If a worker instead sends its
            network to this process, this class writes the network into the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def network_sent(self, study: StudyRun, record: TrialRecord, network: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_bytes(weights_file(self._folder, record.number), network)

    def trial_ended(self, study: StudyRun, record: TrialRecord) -> None:
        kept = (*study.standing.reported, *study.running())
        keep = {weights_file(self._folder, one.number).name for one in kept}
        for path in self._folder.glob("*.safetensors"):
            if path.name not in keep:
                path.unlink(missing_ok=True)


class SweepCheckpoints(Listener):
    """Removes the checkpoints of ended trials."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def trial_ended(self, study: StudyRun, record: TrialRecord) -> None:
        sweep(self._place, study.searcher.running)


class ShowProgress(Listener):
    """Shows the study's progress on the terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def study_begun(self, study: StudyRun) -> None:
        self._progress.open(study.records.values())

    def epoch_trained(self, study: StudyRun, record: TrialRecord, epoch: Epoch) -> None:
        self._progress.update(study.records.values())

    def trial_ended(self, study: StudyRun, record: TrialRecord) -> None:
        self._progress.update(study.records.values())

    def study_ended(self, study: StudyRun) -> None:
        self._progress.close()


class WriteTables(Listener):
    """Updates trials.csv and pareto.csv from time to time while the study runs."""

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
