"""The terminal: how far a study is while it runs, and what it found at its end.

Progress goes to standard error and the result to standard output, so that `--json` and pipes stay clean. rich is
imported only where something is drawn.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from tuner.pareto import best_trial
from tuner.records import TrialRecord, TrialState
from tuner.results import StudyOutcome

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

UPDATE_SECONDS = 0.25
LINE_SECONDS = 10.0
PLAIN_WIDTH = 120  # of a result that is not written to a terminal

FINISHED = (TrialState.COMPLETED, TrialState.PRUNED, TrialState.FAILED)


def duration(seconds: float) -> str:
    """A duration in the largest two units that matter: "41 s", "3 min 20 s", "2 h 05 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def time_left(seconds: float, word: str = "about") -> str:
    """An estimate in words that claim no more than it knows: "about 40 s left", "a few seconds left"."""
    if seconds < 7.5:
        return "a few seconds left"
    if seconds < 90:
        return f"{word} {5 * round(seconds / 5)} s left"
    if seconds < 3600 - 30:
        return f"{word} {round(seconds / 60)} min left"
    return f"{word} {duration(600 * round(seconds / 600))} left"


@dataclass(frozen=True)
class Summary:
    """The study at one moment, as the terminal shows it."""

    done: int = 0
    running: int = 0
    pruned: int = 0
    failed: int = 0
    best: TrialRecord | None = None

    @classmethod
    def of(cls, records: Iterable[TrialRecord], target: float) -> Summary:
        records = list(records)
        states = Counter(record.state for record in records)
        return cls(
            done=sum(states[state] for state in FINISHED),
            running=states[TrialState.RUNNING],
            pruned=states[TrialState.PRUNED],
            failed=states[TrialState.FAILED],
            best=best_trial(records, target),
        )

    def counts(self) -> str:
        """The trials that are not simply done; failed ones are mentioned only if there are any."""
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.running} running, {self.pruned} stopped early{failed}"

    def best_so_far(self) -> str:
        if self.best is None:
            return "no feasible trial yet"
        return f"best {self.best.val_accuracy:.2%} at {self.best.sparsity:.2%} sparsity ({self.best.name})"


def work_done(records: Iterable[TrialRecord]) -> float:
    """The trials that are finished, and those that run as far as the mean duration of finished ones tells.

    Without the latter the first estimate, made when one of several concurrent trials ended, would be far too long.
    """
    records = list(records)
    durations = [record.seconds for record in records if record.state in FINISHED]
    mean = sum(durations) / len(durations) if durations else 0.0
    running = (record.seconds for record in records if record.state is TrialState.RUNNING)
    return len(durations) + (sum(min(seconds / mean, 0.95) for seconds in running) if mean > 0 else 0.0)


class Progress:
    """Shows how far a study is: a bar on a terminal, now and then a line elsewhere, nothing if quiet.

    Use it as a context manager, and call `update` as often as there is news: it does nothing until there is something
    to redraw, at most 4 times a second. A stream that breaks (a closed pipe) ends the display and not the study.

    Args:
        total_trials: how many trials the study will have, those of earlier runs included.
        target: smallest feasible sparsity, in [0, 1].
        stream: where to write; default sys.stderr.
        live: whether the stream is a terminal whose lines can be redrawn; by default this is found out.
        deadline: the clock's reading at which the time budget ends, if there is one.
        quiet: show nothing at all.
        finished_before: trials that an earlier run of the study finished; they say nothing of this run's pace.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        total_trials: int,
        target: float,
        stream: TextIO | None = None,
        live: bool | None = None,
        deadline: float | None = None,
        quiet: bool = False,
        finished_before: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total_trials
        self._target = target
        self._stream = sys.stderr if stream is None else stream
        self._live_wanted = _is_terminal(self._stream) if live is None else live
        self._deadline = deadline
        self._quiet = quiet
        self._clock = clock
        self._started = clock()
        self._summary = Summary()
        self._records: Iterable[TrialRecord] = ()
        self._next_update = self._next_line = float("-inf")
        self._finished_before = finished_before
        self._work = 0.0
        self._expected_end: float | None = None
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if self._live_wanted and not self._quiet:
            from rich.console import Console
            from rich.live import Live

            # rich redraws by itself, so that the clock goes on while no trial reports.
            console = Console(file=self._stream, force_terminal=True)
            self._live = Live(get_renderable=self._drawing, console=console, refresh_per_second=1 / UPDATE_SECONDS)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, records: Iterable[TrialRecord]) -> None:
        """Shows these trials, of every state, if it is time to.

        Args:
            records: all trials of the study so far. They are not looked at before it is time to, so that calling
                this after every epoch of every trial costs nothing; pass a collection, not an iterator.
        """
        if self._quiet:
            return
        self._records = records
        if self._clock() >= self._next_update:
            self._take()

    def close(self) -> None:
        """Shows the last state and lets go of the terminal. May be called more than once."""
        if self._quiet:
            return
        self._take(last=True)
        self._quiet = True
        if self._live is not None:
            with suppress(OSError, ValueError):  # the terminal is gone: nothing is left to restore
                self._live.stop()

    def line(self) -> str:
        """The whole state in one plain line."""
        summary = self._summary
        head = f"{summary.done}/{self._total} trials, {summary.counts()}; {summary.best_so_far()}"
        return f"{head}; {self._times()}"

    def _take(self, last: bool = False) -> None:
        now = self._clock()
        before, records = self._summary, list(self._records)
        self._summary = Summary.of(records, self._target)
        self._next_update = now + UPDATE_SECONDS
        self._estimate(records, now)
        if self._live is None:
            news = self._summary.best is not None and _is_better(self._summary.best, before.best)
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
        # Before a trial has ended nothing is known but the budget.
        return time_left(min(ends) - now, "at most" if self._expected_end is None else "about")

    def _times(self) -> str:
        now = self._clock()
        left = self._time_left(now)
        return f"{duration(now - self._started)} elapsed" + (f", {left}" if left else "")

    def _write_line(self, now: float) -> None:
        # A log of a night's study need not have a line for every 10 seconds of it.
        self._next_line = now + max(LINE_SECONDS, (now - self._started) / 30)
        try:
            print(self.line(), file=self._stream, flush=True)
        except (OSError, ValueError):  # ValueError: the stream was closed
            self._quiet = True

    def _drawing(self) -> RenderableType:
        """Two lines and a bar. Called by rich's thread: it reads only what `_take` replaces as a whole."""
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


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def _is_better(best: TrialRecord, before: TrialRecord | None) -> bool:
    return before is None or best.number != before.number


def shown_path(path: Path) -> str:
    """The path as it is shortest to type: relative to the current folder if it lies in it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (OSError, ValueError):
        return str(path)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _fitting(columns: Sequence[Sequence[str]], width: int) -> int:
    """How many of the columns, each with its heading first, fit side by side."""
    used = 0
    for count, column in enumerate(columns):
        used += max(map(len, column)) + 2
        if used > width + 2:  # the last column needs no gap after it
            return count
    return len(columns)


def front_columns(front: Sequence[TrialRecord], width: int) -> tuple[list[list[str]], int]:
    """The front as columns of text, each with its heading first.

    Args:
        front: the trials of the front; at least one.
        width: characters that a line has.

    Returns:
        The columns, and the number of parameters for which there was no room.
    """
    columns = [
        ["trial", *(record.name for record in front)],
        ["accuracy", *(f"{record.val_accuracy:.2%}" for record in front)],
        ["sparsity", *(f"{record.sparsity:.3%}" for record in front)],
        ["nonzero", *("" if r.nonzero_weights is None else f"{r.nonzero_weights:,}" for r in front)],
    ]
    if len({record.method for record in front}) > 1:
        columns.append(["method", *(record.method for record in front)])
    names = list(dict.fromkeys(name for record in front for name in record.params))
    parameters = [[name, *(_number(r.params.get(name, "")) for r in front)] for name in names]
    room = max(len(columns), _fitting([*columns, *parameters], width))
    shown = [*columns, *parameters][:room]
    return shown, len(columns) + len(parameters) - len(shown)


def best_line(outcome: StudyOutcome) -> str:
    """The best trial in one line, its sparsity also as counts; or that there is none."""
    best = outcome.best
    if best is None:
        return f"no feasible trial: none completed with a sparsity of {100 * outcome.target:.6g}% or more"
    parts = [f"validation accuracy {best.val_accuracy:.2%}"]
    if outcome.test_accuracy is not None:
        parts.append(f"test accuracy {outcome.test_accuracy:.2%}")
    sparsity = f"sparsity {best.sparsity:.4%}"
    if outcome.weights is not None and best.nonzero_weights is not None:
        sparsity += f" ({outcome.weights - best.nonzero_weights:,} of {outcome.weights:,} weights are zero)"
    return f"best {best.name}: {', '.join([*parts, sparsity])}"


def states_line(outcome: StudyOutcome) -> str:
    """How the trials ended, with the commonest reason if some failed."""
    states = outcome.states
    line = f"{states['completed']} completed, {states['pruned']} stopped early, {states['failed']} failed"
    reasons = Counter(r.reason for r in outcome.records if r.state is TrialState.FAILED and r.reason)
    return line + (f" ({' '.join(reasons.most_common(1)[0][0].split())})" if reasons else "")


def seconds_line(outcome: StudyOutcome) -> str:
    """Where the time went."""
    shares = outcome.seconds.to_dict()
    total = shares.pop("total")
    return f"{duration(total)}: {', '.join(f'{name} {seconds:.1f} s' for name, seconds in shares.items())}"


def files_line(outcome: StudyOutcome) -> str:
    """The study's folder and what is in it."""
    names = ("best", "pareto.html", "result.json", "trials.csv", "pareto.csv", "study.yaml")
    there = [name + "/" if name == "best" else name for name in names if (outcome.folder / name).exists()]
    return f"{shown_path(outcome.folder)}{os.sep}" + (f"  ({', '.join(there)})" if there else "")


def tracking_line(tracking_uri: str) -> str:
    """How to open MLflow's UI on the record; a password in the URI is not shown."""
    shown = re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", tracking_uri)
    if re.match(r"https?://", shown):
        return shown  # a server: it is its own UI
    return f"mlflow ui --backend-store-uri {shlex.quote(shown)}"


def final_table(outcome: StudyOutcome, width: int = PLAIN_WIDTH) -> RenderableType:
    """What a study found: the front as a table, the best trial, and where the rest is.

    Args:
        outcome: the study.
        width: characters that a line of the table may have; other lines are never broken, so that they can be copied.

    Returns:
        Something for `rich.console.Console.print`.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    front = outcome.front
    if front:
        columns, left_out = front_columns(front, width)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), collapse_padding=True)
        for heading, *_ in columns:
            table.add_column(
                Text(heading, style="bold"), justify="left" if heading == "trial" else "right", no_wrap=True
            )
        best = outcome.best
        for row in zip(*(cells for _, *cells in columns), strict=True):
            style = "bold green" if best is not None and row[0] == best.name else ""
            table.add_row(*(Text(cell) for cell in row), style=style)
        parts.append(table)
        if left_out:
            parts.append(Text(f"and {left_out} more parameter{'s' if left_out > 1 else ''} in pareto.csv", style="dim"))
        parts.append(Text())
    lines = {
        "trials": states_line(outcome),
        "time": seconds_line(outcome),
        "files": files_line(outcome),
        "MLflow": tracking_line(outcome.tracking_uri) if outcome.tracking_uri else "",
    }
    style = "bold green" if front else "bold yellow"
    parts.append(Text(best_line(outcome), style=style, no_wrap=True, overflow="ignore"))
    for label, text in lines.items():
        if text:
            parts.append(Text(f"{label:<7} {text}", no_wrap=True, overflow="ignore"))
    return Group(*parts)


def print_result(outcome: StudyOutcome, stream: TextIO | None = None) -> None:
    """Prints `final_table` on standard output, in colour only on a terminal."""
    from rich.console import Console

    stream = sys.stdout if stream is None else stream
    console = Console(file=stream, width=None if _is_terminal(stream) else PLAIN_WIDTH)
    console.print(final_table(outcome, console.width), crop=False, highlight=False)
