"""A study in progress: the one place where a trial begins, reports and ends, whoever runs it.

Ray's events arrive here through tuner.driver.ray_tune. From here the searcher learns what to conclude, and each
listener what it writes or shows; all from the same record, so that their states cannot differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tune_sparsity.tuner.config.study_config import StudyConfig
from tune_sparsity.tuner.search.asha import Halving
from tune_sparsity.tuner.search.searcher import Asked, OptunaSearcher
from tune_sparsity.tuner.study.front import FrontTracker
from tune_sparsity.tuner.study.goal import Goal
from tune_sparsity.tuner.study.trial import Epoch, TrialRecord, TrialState


class Listener:
    """Is told of a study's trials as they go, and does nothing about it unless a subclass does.

    An error that a listener raises goes to the caller of the study, and the listeners after it are not told.
    """

    def trial_recalled(self, study: StudyRun, record: TrialRecord) -> None:
        """A trial ended in an earlier process."""

    def study_begun(self, study: StudyRun) -> None:
        """Trials are going to run."""

    def trial_begun(self, study: StudyRun, record: TrialRecord) -> None:
        """A trial has its number, its method and its parameters, and is going to train."""

    def epoch_trained(self, study: StudyRun, record: TrialRecord, epoch: Epoch) -> None:
        """A trial has trained an epoch, which its record knows already."""

    def network_sent(self, study: StudyRun, record: TrialRecord, network: bytes) -> None:
        """A trial is about to end, and its network arrived with its last report: workers share no folder with us."""

    def trial_ended(self, study: StudyRun, record: TrialRecord) -> None:
        """A trial has ended, in the state that its record has."""

    def study_ended(self, study: StudyRun) -> None:
        """No trial trains any more, for whatever reason. The last listener is told first. Trials that the time budget
        cut off end after this."""


class StudyRun:
    """Keeps the records of a study's trials.

    Args:
        config: resolved.
        goal: what the study looks for.
        searcher: asked for trials, and told how they ended.
        listeners: told of everything, in their order.
        halving: stops trials early; None: all train to their end. It is told what the trials of earlier processes had.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        config: StudyConfig,
        goal: Goal,
        searcher: OptunaSearcher,
        listeners: Sequence[Listener] = (),
        halving: Halving | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.goal, self.searcher = config, goal, searcher
        self._listeners, self._clock = listeners, clock
        self._halving = halving or Halving((), target=None)
        self.records = {record.number: record for record in searcher.finished()}
        self.standing = FrontTracker(goal, self.records.values())
        self._began: dict[int, float] = {}
        self._started = clock()
        self.elapsed_before = max((record.elapsed for record in self.records.values()), default=0.0)
        """Seconds that earlier processes spent on the study, up to the last trial that ended."""
        self.sampling_seconds = 0.0
        self.training_seconds = 0.0  # in the workers, summed over all
        self.first_epoch_began: float | None = None  # by the clock
        for record in self.records.values():
            self._recall(record)

    @contextmanager
    def lasting(self) -> Iterator[None]:
        """Tell the listeners that the study begins, and at the block's end that it has ended."""
        with ExitStack() as stack:
            for listener in self._listeners:
                listener.study_begun(self)
                stack.callback(listener.study_ended, self)
            yield

    def ask(self) -> Asked | None:
        """Return the next trial, begun; None when the study has had all its trials, or no gain for too many of them."""
        if self.full or self.out_of_patience:
            return None
        start = self._clock()
        asked = self.searcher.ask()
        self.sampling_seconds += self._clock() - start
        record = TrialRecord(asked.number, asked.method, asked.params, objective=self.goal.objective)
        self.records[asked.number] = record
        self._began[asked.number] = self._clock()
        for listener in self._listeners:
            listener.trial_begun(self, record)
        return asked

    @property
    def full(self) -> bool:
        """Return whether the study has had all its trials."""
        return len(self.records) >= self.config.trials

    @property
    def out_of_patience(self) -> bool:
        """Return whether as many trials as --patience says have ended without a gain in what the goal judges."""
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
        for listener in self._listeners:
            listener.epoch_trained(self, record, epoch)

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

    def network_sent(self, number: int, network: bytes) -> None:
        """Take the network of a trial whose worker has no folder in common with this process. Raises OSError."""
        for listener in self._listeners:
            listener.network_sent(self, self.records[number], network)

    def goes_on(self, number: int, epoch: Epoch, final_sparsity: float) -> bool:
        """Return whether a trial may train on after this epoch, which is not its last.

        Args:
            final_sparsity: the sparsity that the trial is to end on.
        """
        record = self.records[number]
        if epoch.number not in self._halving.rungs or epoch.number in record.rungs:  # once decided it stays so
            return True
        reached = record.reach_rung(epoch, final_sparsity)
        return self._halving.goes_on(number, record.method, epoch.number, reached)

    def passed(self, number: int, epoch: Epoch, final_sparsity: float) -> None:
        """Take note that a trial, which was restarted, had gone on after this epoch: nothing is decided again."""
        record = self.records[number]
        if epoch.number in self._halving.rungs and epoch.number not in record.rungs:
            reached = record.reach_rung(epoch, final_sparsity)
            self._halving.recall(number, record.method, [(epoch.number, reached)])

    def _recall(self, record: TrialRecord) -> None:
        """Take up a trial of an earlier process, also in the rungs that it reached."""
        if record.final_sparsity is not None:
            values = [(epoch, record.at_rung(epoch)) for epoch in record.rungs]
            self._halving.recall(record.number, record.method, values)
        self._ended(record)
        for listener in self._listeners:
            listener.trial_recalled(self, record)

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
        self.standing.add(record)
        for listener in self._listeners:
            listener.trial_ended(self, record)

    def _ended(self, record: TrialRecord) -> None:
        """Tells early stopping how a trial ended."""
        if record.state is TrialState.FAILED:
            self._halving.forget(record.number)
        else:
            sparsity = record.sparsity if record.final_sparsity is None else record.final_sparsity
            completed = record.state is TrialState.COMPLETED
            self._halving.ended(record.number, record.method, sparsity, completed)

    def running(self) -> list[TrialRecord]:
        """Return the trials that have begun and not ended; found without looking at all the others, at every end of
        one."""
        begun = (self.records.get(number) for number in sorted(self.searcher.running))
        return [record for record in begun if record is not None and record.state is TrialState.RUNNING]
