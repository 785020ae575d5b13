"""A study in progress: the one place where a trial begins, reports and ends, whoever runs it.

Ray's events arrive here through tuner.driver.ray_tune. From here the searcher learns what to conclude, the tracker
what to write, the display what to show; all from the same record, so that their states cannot differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tune_sparsity.tuner.config.study_config import StudyConfig
from tune_sparsity.tuner.reports.progress import Progress
from tune_sparsity.tuner.results.tables import write_trials
from tune_sparsity.tuner.search.asha import Halving
from tune_sparsity.tuner.search.searcher import Asked, OptunaSearcher
from tune_sparsity.tuner.storage.places import Place
from tune_sparsity.tuner.study.epochs import EpochLog
from tune_sparsity.tuner.study.front import FrontTracker
from tune_sparsity.tuner.study.goal import Goal
from tune_sparsity.tuner.study.layout import EPOCHS_CSV
from tune_sparsity.tuner.study.trial import Epoch, TrialRecord, TrialState
from tune_sparsity.tuner.system.files import write_bytes
from tune_sparsity.tuner.tracking.tracker import Tracker
from tune_sparsity.tuner.worker.checkpoints import sweep

_FILES_EVERY = 5.0  # seconds between two writings of trials.csv while the study runs, at the least
_FILES_SHARE = 20  # and so many times what the last took: the table of ten thousand trials takes seconds


class StudyRun:
    """Keeps the records of a study's trials.

    Args:
        config: resolved.
        goal: what the study looks for.
        searcher, tracker, progress: told of everything.
        weights_folder: where trials leave their networks; only those that would be reported are kept.
        weights_file: (folder, number) -> the file of that trial's network.
        halving: stops trials early; None: all train to their end. It is told what the trials of earlier processes had.
        clock: seconds, for tests.
        checkpoints: where running trials leave their checkpoints; None: another sweeps there.
    """

    def __init__(
        self,
        config: StudyConfig,
        goal: Goal,
        searcher: OptunaSearcher,
        tracker: Tracker,
        progress: Progress,
        weights_folder: Path,
        weights_file: Callable[[Path, int], Path],
        halving: Halving | None = None,
        clock: Callable[[], float] = time.monotonic,
        checkpoints: Place | None = None,
    ) -> None:
        self.config, self.goal = config, goal
        self.searcher, self.tracker, self.progress = searcher, tracker, progress
        self._weights_folder, self._weights_file, self._clock = weights_folder, weights_file, clock
        self._halving = halving or Halving((), target=None)
        self._checkpoints = checkpoints
        self.records = {record.number: record for record in searcher.finished()}
        for record in self.records.values():
            self._recall(record)
            tracker.recall(record)
        self.standing = FrontTracker(goal, self.records.values())
        self._began: dict[int, float] = {}
        self._pause = _FILES_EVERY
        self._epochs = EpochLog(config.folder / EPOCHS_CSV)
        self._written = self._started = clock()
        self.elapsed_before = max((record.elapsed for record in self.records.values()), default=0.0)
        """Seconds that earlier processes spent on the study, up to the last trial that ended."""
        self.sampling_seconds = 0.0
        self.training_seconds = 0.0  # in the workers, summed over all
        self.first_epoch_began: float | None = None  # by the clock

    def ask(self) -> Asked | None:
        """The next trial, begun; None when the study has had all its trials, or no gain for too many of them."""
        if self.full or self.out_of_patience:
            return None
        start = self._clock()
        asked = self.searcher.ask()
        self.sampling_seconds += self._clock() - start
        record = TrialRecord(asked.number, asked.method, asked.params)
        self.records[asked.number] = record
        self._began[asked.number] = self._clock()
        self.tracker.start_trial(record)
        return asked

    @property
    def full(self) -> bool:
        """Whether the study has had all its trials."""
        return len(self.records) >= self.config.trials

    @property
    def out_of_patience(self) -> bool:
        """Whether as many trials as --patience says have ended without a gain in what the goal judges."""
        return self.config.patience is not None and self.standing.since_gain >= self.config.patience

    def epoch(self, number: int, epoch: Epoch) -> None:
        """Take note of an epoch that a trial has trained. One that is known, from before the trial was restarted, is no
        news."""
        record = self.records[number]
        if epoch.number <= record.epochs:
            return
        record.add(epoch)
        record.seconds = self._clock() - self._began[number]
        self.training_seconds += epoch.seconds
        if self.first_epoch_began is None:
            self.first_epoch_began = self._clock() - epoch.seconds
        self.tracker.log_epoch(number, epoch.number, epoch.metrics)
        self._epochs.add(number, epoch.number, epoch.metrics)
        self.progress.update(self.records.values())

    def epochs(self, number: int, epochs: Sequence[Epoch], again: bool = False) -> None:
        """Take note of some more epochs of a trial.

        Args:
            again: it trained them before it was restarted from a checkpoint, perhaps in an earlier process.
        """
        known = self.records[number].epochs
        for epoch in epochs:
            if again and epoch.number > known:
                self._began[number] -= epoch.seconds
                self.training_seconds -= epoch.seconds  # it was not in this process's time
            self.epoch(number, epoch)

    def goes_on(self, number: int, epoch: Epoch, final_sparsity: float) -> bool:
        """Return whether a trial may train on after this epoch, which is not its last.

        Args:
            final_sparsity: the sparsity that the trial is to end on.
        """
        record = self.records[number]
        if epoch.number not in self._halving.rungs or epoch.number in record.rungs:  # once decided it stays so
            return True
        record.final_sparsity = final_sparsity
        record.rungs[epoch.number] = epoch.accuracy_at_target
        reached = epoch.accuracy_at_target, final_sparsity
        return self._halving.goes_on(number, record.method, epoch.number, reached)

    def passed(self, number: int, epoch: Epoch, final_sparsity: float) -> None:
        """Take note that a trial, which was restarted, had gone on after this epoch: nothing is decided again."""
        record = self.records[number]
        if epoch.number in self._halving.rungs and epoch.number not in record.rungs:
            record.final_sparsity = final_sparsity
            record.rungs[epoch.number] = epoch.accuracy_at_target
            reached = epoch.accuracy_at_target, final_sparsity
            self._halving.recall(number, record.method, [(epoch.number, reached)])

    def _recall(self, record: TrialRecord) -> None:
        """Takes up a trial of an earlier process in the rungs that it reached."""
        if record.final_sparsity is not None:
            values = [(epoch, (accuracy, record.final_sparsity)) for epoch, accuracy in record.rungs.items()]
            self._halving.recall(record.number, record.method, values)
        self._ended(record)

    def end(self, number: int, state: TrialState, reason: str = "") -> None:
        """A trial is over: concluded once, in the same way everywhere."""
        record = self.records[number]
        if record.state is not TrialState.RUNNING:
            return
        record.state, record.reason = state, reason
        record.seconds, record.ended = self._clock() - self._began[number], time.time()
        record.elapsed = self.elapsed_before + self._clock() - self._started
        self._ended(record)
        start = self._clock()
        self.searcher.tell(record)
        self.sampling_seconds += self._clock() - start
        self.tracker.end_trial(record)
        self.standing.add(record)
        self._keep_reported_weights()
        if self._checkpoints is not None:
            sweep(self._checkpoints, self.searcher.running)
        self.progress.update(self.records.values())
        if self._clock() - self._written > self._pause:
            self.write_files()

    def _ended(self, record: TrialRecord) -> None:
        """Tells early stopping how a trial ended."""
        if record.state is TrialState.FAILED:
            self._halving.forget(record.number)
        else:
            sparsity = record.sparsity if record.final_sparsity is None else record.final_sparsity
            completed = record.state is TrialState.COMPLETED
            self._halving.ended(record.number, record.method, sparsity, completed)

    def write_files(self) -> None:
        """trials.csv and pareto.csv as they stand."""
        start = self._clock()
        write_trials(self.config.folder, list(self.records.values()), self.goal)
        self._written = self._clock()
        self._pause = max(_FILES_EVERY, _FILES_SHARE * (self._written - start))

    def running(self) -> list[TrialRecord]:
        """The trials that have begun and not ended; found without looking at all the others, at every end of one."""
        begun = (self.records.get(number) for number in sorted(self.searcher.running))
        return [record for record in begun if record is not None and record.state is TrialState.RUNNING]

    def weights(self, record: TrialRecord) -> Path:
        """The file with a reported trial's network, as the trial left it; it is there only if the trial ended since
        this process began."""
        return self._weights_file(self._weights_folder, record.number)

    def take_weights(self, number: int, content: bytes) -> None:
        """Keeps the network of a trial whose worker has no folder in common with this process. Raises OSError."""
        path = self.weights(self.records[number])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)

    def _keep_reported_weights(self) -> None:
        """Of the networks that trials left, only those that would be reported stay: all would fill a disk."""
        keep = {self.weights(record) for record in (*self.standing.reported, *self.running())}
        for path in self._weights_folder.glob("*.safetensors"):
            if path not in keep:
                path.unlink(missing_ok=True)
