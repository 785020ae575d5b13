"""Show the progress of a running study in the terminal.

Progress goes to standard error and the result to standard output, so that `--json` and pipes get only the result. rich
is imported only if the stream is a terminal.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from tune_sparsity.tuner.reports.text import duration, is_terminal, time_left
from tune_sparsity.tuner.study.goal import Goal, GoalKind
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

UPDATE_SECONDS = 0.25
# The time between two updates is at least this multiple of an update's duration. Updates of many trials are slow.
_UPDATE_SHARE = 50
LINE_SECONDS = 10.0

FINISHED = (TrialState.COMPLETED, TrialState.PRUNED, TrialState.FAILED)


@dataclass(frozen=True)
class Summary:
    """The state of a study at one moment: the numbers of its trials and its best results."""

    done: int = 0
    running: int = 0
    pruned: int = 0
    failed: int = 0
    best: TrialRecord | None = None
    saved: float = 0.0  # the share of epochs that early stopping has saved, see `saved_epochs`
    found: str = ""  # the results so far, if the goal has several targets or is a front; otherwise ""

    @classmethod
    def of(cls, records: Iterable[TrialRecord], goal: Goal, epochs: int = 0) -> Summary:
        """Summarise the trials of a study.

        Args:
            records: the trials in any state.
            goal: the study's target sparsities and limits, as a `Goal`.
            epochs: the number of epochs of a trial without early stopping, or 0 if the number is not known.
        """
        records = list(records)
        states = Counter(record.state for record in records)
        return cls(
            done=sum(states[state] for state in FINISHED),
            running=states[TrialState.RUNNING],
            pruned=states[TrialState.PRUNED],
            failed=states[TrialState.FAILED],
            best=goal.best(records),
            saved=saved_epochs(records, epochs),
            found=_found(records, goal),
        )

    def counts(self) -> str:
        """Return the numbers of trials that are running, were stopped early or have failed, as text."""
        failed = f", {self.failed} failed" if self.failed else ""
        saved = f" ({self.saved:.0%} of the epochs saved)" if self.saved >= 0.005 else ""
        return f"{self.running} running, {self.pruned} stopped early{saved}{failed}"

    def best_so_far(self) -> str:
        if self.best is None:
            return "no feasible trial yet"
        if self.found:
            return self.found
        return f"best {self.best.text} at {self.best.sparsity:.2%} sparsity ({self.best.name})"


def _found(records: Sequence[TrialRecord], goal: Goal) -> str:
    """Return the results so far as text, if the goal has several targets or is a front. For other goals, return ""."""
    if goal.kind is GoalKind.TARGETS:
        found = [(target, best) for target, best in goal.best_at(records) if best is not None]
        best = ", ".join(f"{best.text} at {target:g} ({best.name})" for target, best in found)
        return f"best {best}{missing_above(goal, records)}"
    if goal.kind is GoalKind.FRONT:
        mean = goal.objective.text(goal.mean_value(goal.hypervolume(records)))
        reach = f"mean {goal.objective.name} {mean} from {goal.lowest:g} to {goal.highest:g}"
        return f"front of {len(goal.front(records))}, {reach}" + missing_above(goal, records)
    return ""


def missing_above(goal: Goal, records: Sequence[TrialRecord], word: str = " yet") -> str:
    """Return the end of a sentence, such as ", nothing above 0.95 yet". It says that no feasible trial has a sparsity
    above 0.95, although the goal asks for such trials. Return "" if a trial has reached the highest sparsity of the
    goal, or if no trial is feasible.

    Args:
        goal: the study's target sparsities and limits, as a `Goal`.
        records: the study's trials.
        word: the last word of the returned text: " yet" while the study runs, "" after the study has ended.
    """
    above = goal.missing_above(records)
    return "" if above is None else f", nothing above {above:.4g}{word}"


def saved_epochs(records: Iterable[TrialRecord], epochs: int) -> float:
    """Return the share of epochs that early stopping has saved, in [0, 1].

    The share is relative to the number of epochs that the completed and the stopped trials would have had without early
    stopping.

    Args:
        records: the trials in any state.
        epochs: the number of epochs of a trial without early stopping. If it is 0, the result is 0.
    """
    ended = [record for record in records if record.state in (TrialState.COMPLETED, TrialState.PRUNED)]
    stopped = [record for record in ended if record.state is TrialState.PRUNED]
    return (
        sum(max(0, epochs - record.epochs) for record in stopped) / (epochs * len(ended)) if epochs and ended else 0.0
    )


def work_done(records: Iterable[TrialRecord]) -> float:
    """Return the amount of work done, in trials: 1 for each finished trial and a fraction below 1 for each running
    trial.

    The fraction is a running trial's duration so far, divided by the mean duration of the finished trials. Without
    these fractions, the first estimate of the time left would be far too long if several trials run at once.
    """
    records = list(records)
    durations = [record.seconds for record in records if record.state in FINISHED]
    mean = sum(durations) / len(durations) if durations else 0.0
    running = (record.seconds for record in records if record.state is TrialState.RUNNING)
    return len(durations) + (sum(min(seconds / mean, 0.95) for seconds in running) if mean > 0 else 0.0)


class Progress:
    """Shows the progress of a study: in a terminal as a progress bar, otherwise as a line of text from time to time.

    Use this class as a context manager, and call `update` after every event. Progress is redrawn at most 4 times a
    second, so calling `update` more often costs little. If writing to the stream fails, for example because a pipe was
    closed, the display ends and the study continues.

    Args:
        total_trials: the number of trials of the whole study, including earlier runs.
        goal: the study's target sparsities and limits, as a `Goal`.
        stream: the stream to write to. The default is sys.stderr.
        live: whether the stream is a terminal whose lines can be redrawn. If None, this is detected.
        deadline: the time on `clock` at which the time budget ends; None without a time budget.
        quiet: whether to show nothing at all.
        finished_before: the number of trials that an earlier run has finished. These trials do not count when the speed
            of this run is estimated.
        epochs: the number of epochs of a trial that is not stopped early.
        clock: a function that returns the time in seconds and never goes back.
    """

    def __init__(
        self,
        total_trials: int,
        goal: Goal,
        stream: TextIO | None = None,
        live: bool | None = None,
        deadline: float | None = None,
        quiet: bool = False,
        finished_before: int = 0,
        epochs: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total_trials
        self._goal = goal
        self._stream = sys.stderr if stream is None else stream
        self._live_wanted = is_terminal(self._stream) if live is None else live
        self._deadline = deadline
        self._quiet = quiet
        self._clock = clock
        self._started = clock()
        self._summary = Summary()
        self._records: Iterable[TrialRecord] = ()
        self._next_update = self._next_line = float("-inf")
        self._finished_before = finished_before
        self._epochs = epochs
        self._work = 0.0
        self._expected_end: float | None = None
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        self.open()
        return self

    def open(self, records: Iterable[TrialRecord] = ()) -> None:
        """Begin to show the progress of a study.

        Args:
            records: the trials of the study so far. In a resumed study, these are the trials of earlier runs.
        """
        self._records = records
        if self._live_wanted and not self._quiet:
            from rich.console import Console
            from rich.live import Live

            # rich redraws by itself, so that the elapsed time is right while no trial reports.
            console = Console(file=self._stream, force_terminal=True)
            self._live = Live(get_renderable=self._drawing, console=console, refresh_per_second=1 / UPDATE_SECONDS)
            self._live.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, records: Iterable[TrialRecord]) -> None:
        """Show the progress, if the last redraw is long enough ago.

        Args:
            records: all trials of the study so far, in any state. This must be a collection and not an iterator,
                because it may be read later and more than once.
        """
        if self._quiet:
            return
        self._records = records
        if self._clock() >= self._next_update:
            self._take()

    def close(self) -> None:
        """Show the final state and release the terminal. After this, `open`, `update` and `close` show nothing."""
        if self._quiet:
            return
        self._take(last=True)
        self._quiet = True
        if self._live is not None:
            with suppress(OSError, ValueError):  # the terminal has closed
                self._live.stop()

    def line(self) -> str:
        """Return the whole state in one plain line."""
        summary = self._summary
        head = f"{summary.done}/{self._total} trials, {summary.counts()}; {summary.best_so_far()}"
        return f"{head}; {self._times()}"

    def _take(self, last: bool = False) -> None:
        now = self._clock()
        before, records = self._summary, list(self._records)
        self._summary = Summary.of(records, self._goal, self._epochs)
        self._estimate(records, now)
        self._next_update = now + max(UPDATE_SECONDS, _UPDATE_SHARE * (self._clock() - now))
        if self._live is None:
            news = self._summary.best is not None and self._summary.best_so_far() != before.best_so_far()
            if last or news or now >= self._next_line:
                self._write_line(now)

    def _estimate(self, records: Sequence[TrialRecord], now: float) -> None:
        work = work_done(records)
        if work == self._work:
            return  # no news: keep the expected end, so that the time left counts down instead of growing
        self._work = work
        if self._summary.done > self._finished_before:
            pace = (now - self._started) / (work - self._finished_before)
            self._expected_end = now + pace * max(0.0, self._total - work)

    def _time_left(self, now: float) -> str:
        ends = [end for end in (self._expected_end, self._deadline) if end is not None]
        if not ends or self._summary.done >= self._total:
            return ""
        # Before the first trial has ended, only the budget is known.
        return time_left(min(ends) - now, "at most" if self._expected_end is None else "about")

    def _times(self) -> str:
        now = self._clock()
        left = self._time_left(now)
        return f"{duration(now - self._started)} elapsed" + (f", {left}" if left else "")

    def _write_line(self, now: float) -> None:
        # Lines become rarer, so that the log of a long study stays short.
        self._next_line = now + max(LINE_SECONDS, (now - self._started) / 30)
        try:
            print(self.line(), file=self._stream, flush=True)
        except (OSError, ValueError):  # ValueError: the stream was closed
            self._quiet = True

    def _drawing(self) -> RenderableType:
        """Return the display for a terminal: a progress bar and two lines of text.

        A thread of rich calls this method. The method is safe without a lock, because `_take` replaces each attribute
        that it reads as a whole.
        """
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        summary = self._summary
        bar = Table.grid(padding=(0, 2))
        trials = Text(f"{summary.done}/{self._total} trials", no_wrap=True)
        bar.add_row(ProgressBar(self._total, summary.done, width=30), trials, Text(self._times(), no_wrap=True))
        counts = Text(summary.counts(), no_wrap=True, overflow="ellipsis")
        style = "dim" if summary.best is None else "bold green"
        return Group(bar, counts, Text(summary.best_so_far(), style=style, no_wrap=True, overflow="ellipsis"))
