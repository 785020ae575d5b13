"""The last words of a study on the terminal: its front as a table, the best trial, and where the rest is."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tuner.display import duration, is_terminal
from tuner.final_seeds import Retrained, verdict
from tuner.records import TrialRecord, TrialState
from tuner.results import StudyOutcome
from tuner.tracking_uri import redact

if TYPE_CHECKING:
    from rich.console import RenderableType

PLAIN_WIDTH = 120  # of a result that is not written to a terminal


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


def retrained_line(one: Retrained) -> str:
    """A method's best trial under the final seeds."""
    low, high = min(one.test_accuracies), max(one.test_accuracies)
    seeds = len(one.test_accuracies)
    return f"{one.trial} at {one.sparsity:.2%}: test accuracy {one.mean:.2%} ({low:.2%} to {high:.2%}, {seeds} seeds)"


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


def command(name: str) -> str:
    """How to call a command of this installation from here: by its name if the shell finds it, else by its path, as
    in a virtual environment that is not activated."""
    beside = Path(sys.executable).with_name(name)
    return name if shutil.which(name) or not beside.is_file() else shlex.quote(shown_path(beside))


def tracking_line(tracking_uri: str) -> str:
    """How to open MLflow's UI on the record; a password in the URI is not shown."""
    shown = redact(tracking_uri)
    if re.match(r"https?://", shown):
        return shown  # a server: it is its own UI
    return f"{command('mlflow')} ui --backend-store-uri {shlex.quote(shown)}"


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
        **{f"{one.method}": retrained_line(one) for one in outcome.retrained},
        "verdict": verdict(outcome.retrained),
        "trials": states_line(outcome),
        "time": seconds_line(outcome),
        "files": files_line(outcome),
        "MLflow": tracking_line(outcome.tracking_uri) if outcome.tracking_uri else "",
    }
    style = "bold green" if front else "bold yellow"
    parts.append(Text(best_line(outcome), style=style, no_wrap=True, overflow="ignore"))
    width_of_labels = max(map(len, lines))
    for label, text in lines.items():
        if text:
            parts.append(Text(f"{label:<{width_of_labels}} {text}", no_wrap=True, overflow="ignore"))
    return Group(*parts)


def print_result(outcome: StudyOutcome, stream: TextIO | None = None) -> None:
    """Prints `final_table` on standard output, in colour only on a terminal."""
    from rich.console import Console

    stream = sys.stdout if stream is None else stream
    console = Console(file=stream, width=None if is_terminal(stream) else PLAIN_WIDTH)
    console.print(final_table(outcome, console.width), crop=False, highlight=False)
