"""Holds a running study. All beginnings, reports and ends of trials pass through this module.

Ray's events arrive here through tuner.driver.ray_tune. The searcher and all listeners get the same TrialRecord of a
trial, so they cannot disagree about its state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tune_sparsity.tuner.config.study_config import StudyConfig
from tune_sparsity.tuner.reports.text import trials_text
from tune_sparsity.tuner.search.asha import Halving
from tune_sparsity.tuner.search.searcher import Asked, OptunaSearcher
from tune_sparsity.tuner.study.front import FrontTracker
from tune_sparsity.tuner.study.goal import Goal
from tune_sparsity.tuner.study.trial import Epoch, TrialRecord, TrialState


class Listener:
    """A base class of objects that a study notifies of its events. Subclasses override the methods for the events that
    they need.

    If a listener raises an error, StudyRun raises it to its caller, and does not notify the later listeners.
    """

    def trial_recalled(self, study: StudyRun, record: TrialRecord) -> None:
        """Handle a trial that ended in an earlier process of the study."""

    def study_begun(self, study: StudyRun) -> None:
        """Handle the start of the study, before its first trial runs."""

    def trial_begun(self, study: StudyRun, record: TrialRecord) -> None:
        """Handle the start of a trial. Its record has the number, the method and the parameters."""

    def epoch_trained(self, study: StudyRun, record: TrialRecord, epoch: Epoch) -> None:
        """Handle the end of an epoch. The record already contains the metrics of this epoch."""

    def network_sent(self, study: StudyRun, record: TrialRecord, network: bytes) -> None:
        """Handle a trained network that arrived in the last report of a trial. If workers and driver share a folder,
        networks are files there, and this method is not called.

        Args:
            network: the content of a safetensors file.
        """

    def trial_ended(self, study: StudyRun, record: TrialRecord) -> None:
        """Handle the end of a trial. The record has the final state."""

    def study_ended(self, study: StudyRun) -> None:
        """Handle the end of the search, also after an error or an interrupt. Listeners are notified in reverse order.
        For trials that the time budget stopped, `trial_ended` is called after this method."""


class StudyRun:
    """Keeps a record of each trial of a study, and notifies the searcher, early stopping and the listeners.

    Args:
        config: the study's resolved configuration.
        goal: the study's metric, target sparsities and limits, as a `Goal`.
        searcher: suggests trials, and receives the result of each trial. For a resumed study, it already contains the
            trials of earlier processes.
        listeners: the listeners, in the order in which they are notified.
        halving: stops trials early. If None, every trial trains to its end.
        clock: a function that returns the time in seconds.
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
        self._why_ended = ""
        self._began: dict[int, float] = {}
        self._started = clock()
        self.elapsed_before = max((record.elapsed for record in self.records.values()), default=0.0)
        """The seconds that earlier processes spent on the study, up to the end of the last trial that ended in them."""
        self.sampling_seconds = 0.0
        self.training_seconds = 0.0  # the sum over all workers
        self.first_epoch_began: float | None = None  # a time of `clock`, not a duration
        for record in self.records.values():
            self._recall(record)

    @contextmanager
    def lasting(self) -> Iterator[None]:
        """Return a context manager. Before its block, it notifies the listeners that the study begins. After the block,
        it notifies them that the study has ended."""
        with ExitStack() as stack:
            for listener in self._listeners:
                listener.study_begun(self)
                stack.callback(listener.study_ended, self)
            yield

    def ask(self) -> Asked | None:
        """Begin and return the next trial. Return None if the search has ended; `why_ended` then has the reason."""
        if self.why_ended:
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
        """Return whether the study has begun all its trials."""
        return len(self.records) >= self.config.trials

    @property
    def why_ended(self) -> str:
        """Return a sentence that says why the search has ended, or "" if more trials may begin. The search never
        continues after it has ended, because Ray no longer asks for trials. If --patience has ended the search, a
        running trial may still become the best trial. The search does not continue in this case, either."""
        self._why_ended = self._why_ended or self._reason_to_end()
        return self._why_ended

    def _reason_to_end(self) -> str:
        begun, patience = len(self.records), self.config.patience
        if self.full:
            return f"The search ended after all {trials_text(begun)}."
        if patience is not None and self.standing.since_gain >= patience:
            return (
                f"The search ended after {trials_text(begun)}: the last {self.standing.since_gain} brought no gain, "
                f"and --patience is {patience}."
            )
        return ""

    def epoch(self, number: int, epoch: Epoch) -> None:
        """Record an epoch that a trial has trained, and notify the listeners. Ignore an epoch that the record already
        contains, because a restarted trial trains some epochs twice."""
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
        """Record several epochs of a trial.

        Args:
            number: the trial's number.
            epochs: the epochs in order.
            again: whether these epochs were trained earlier, before the trial was restarted from a checkpoint. An
                earlier process of the study may have trained them.
        """
        known = self.records[number].epochs
        for epoch in epochs:
            if again and epoch.number > known:
                self._began[number] -= epoch.seconds
                self.training_seconds -= epoch.seconds  # an earlier process trained this epoch
            self.epoch(number, epoch)

    def network_sent(self, number: int, network: bytes) -> None:
        """Pass the network of a trial to the listeners. Call this method if the worker and this process share no
        folder.

        Raises:
            OSError: if a listener cannot write the network.
        """
        for listener in self._listeners:
            listener.network_sent(self, self.records[number], network)

    def goes_on(self, number: int, epoch: Epoch, final_sparsity: float) -> bool:
        """Return whether a trial may continue after this epoch.

        Args:
            number: the trial's number.
            epoch: the epoch that the trial has just trained. It is not the trial's final epoch.
            final_sparsity: the sparsity at which the trial ends, in [0, 1).
        """
        record = self.records[number]
        if epoch.number not in self._halving.rungs or epoch.number in record.rungs:  # a rung is decided only once
            return True
        reached = record.reach_rung(epoch, final_sparsity)
        return self._halving.goes_on(number, record.method, epoch.number, reached)

    def passed(self, number: int, epoch: Epoch, final_sparsity: float) -> None:
        """Record an epoch of a trial that was restarted. Before the restart, early stopping had already allowed the
        trial to continue after this epoch. Early stopping does not decide about the epoch again."""
        record = self.records[number]
        if epoch.number in self._halving.rungs and epoch.number not in record.rungs:
            reached = record.reach_rung(epoch, final_sparsity)
            self._halving.recall(number, record.method, [(epoch.number, reached)])

    def _recall(self, record: TrialRecord) -> None:
        """Tell early stopping and the listeners about a trial of an earlier process. Early stopping also gets the
        values of the trial at the rungs."""
        if record.final_sparsity is not None:
            values = [(epoch, record.at_rung(epoch)) for epoch in record.rungs]
            self._halving.recall(record.number, record.method, values)
        self._ended(record)
        for listener in self._listeners:
            listener.trial_recalled(self, record)

    def end(self, number: int, state: TrialState, reason: str = "") -> None:
        """Record the end of a trial, and notify the searcher, early stopping and the listeners. A second call for
        the same trial changes nothing."""
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
        """Tell early stopping that a trial has ended, and in which state."""
        if record.state is TrialState.FAILED:
            self._halving.forget(record.number)
        else:
            sparsity = record.sparsity if record.final_sparsity is None else record.final_sparsity
            completed = record.state is TrialState.COMPLETED
            self._halving.ended(record.number, record.method, sparsity, completed)

    def running(self) -> list[TrialRecord]:
        """Return the records of the running trials. This is quick even after thousands of ended trials."""
        begun = (self.records.get(number) for number in sorted(self.searcher.running))
        return [record for record in begun if record is not None and record.state is TrialState.RUNNING]
