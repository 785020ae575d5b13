"""Write the last lines of a study in the terminal: a table of its front, the best trial, and the folder of its
files."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TextIO

from tune_sparsity.sparsity.patterns import UNSTRUCTURED
from tune_sparsity.tuner.errors import redact
from tune_sparsity.tuner.reports.groups import HEADER as GROUP_HEADER
from tune_sparsity.tuner.reports.groups import group_line, group_rows, reflection_line
from tune_sparsity.tuner.reports.progress import missing_above
from tune_sparsity.tuner.reports.text import (
    command,
    corner_text,
    dead_text,
    duration,
    estimate_text,
    is_terminal,
    latency_text,
    short_number,
    shown_path,
    spikes_text,
)
from tune_sparsity.tuner.results.retraining import Retrained, verdicts
from tune_sparsity.tuner.results.tables import StudyOutcome
from tune_sparsity.tuner.study.goal import GoalKind
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState

if TYPE_CHECKING:
    from rich.console import RenderableType

_LAYERS_SHOWN = 6
_WHOLE_SHOWN = 3
PLAIN_WIDTH = 120  # characters in a line if the result is not written to a terminal


def _fitting(columns: Sequence[Sequence[str]], width: int) -> int:
    """Return how many of the columns fit side by side, counted from the left.

    Args:
        columns: the cells of each column, beginning with its heading.
        width: the number of characters in a line.
    """
    used = 0
    for count, column in enumerate(columns):
        used += max(map(len, column)) + 2
        if used > width + 2:  # the last column needs no gap after it
            return count
    return len(columns)


def trial_columns(
    rows: Sequence[TrialRecord], width: int, leading: Sequence[list[str]] = ()
) -> tuple[list[list[str]], int]:
    """Return trials as columns of text. Each column begins with its heading.

    Args:
        rows: the trials, one for each row of the table. There must be at least one.
        width: the number of characters in a line.
        leading: columns to put on the left of the trials' own columns.

    Returns:
        The columns, and the number of parameters that are left out because the line is too short.
    """
    columns = [
        *leading,
        ["trial", *(record.name for record in rows)],
        [rows[0].objective.name, *(record.text for record in rows)],
        ["sparsity", *(f"{record.sparsity:.3%}" for record in rows)],
        ["nonzero", *("" if r.nonzero_weights is None else f"{r.nonzero_weights:,}" for r in rows)],
    ]
    if any(record.size_bytes is not None for record in rows):
        columns.append(["bytes", *("" if r.size_bytes is None else f"{r.size_bytes:,}" for r in rows)])
    if len({record.method for record in rows}) > 1:
        columns.append(["method", *(record.method for record in rows)])
    names = list(dict.fromkeys(name for record in rows for name in record.params))
    parameters = [[name, *(short_number(r.params.get(name, "")) for r in rows)] for name in names]
    room = max(len(columns), _fitting([*columns, *parameters], width))
    shown = [*columns, *parameters][:room]
    return shown, len(columns) + len(parameters) - len(shown)


def best_line(outcome: StudyOutcome) -> str:
    """Return a line about the best trial: its metrics, its sparsity and its number of zero weights. If no trial is
    feasible, the line says so."""
    best = outcome.best
    if best is None:
        condition = f"no feasible trial: none completed with {outcome.goal.condition}"
        return latency_text(outcome.goal, outcome.latencies, None) or condition
    return f"best {_found(outcome, best, outcome.goal.lowest)}"


def _found(outcome: StudyOutcome, record: TrialRecord, target: float) -> str:
    objective, estimate = record.objective, outcome.estimate(record, target)
    expected = "" if estimate is None else f" (on new data about {estimate_text(objective, *estimate)})"
    parts = [f"validation {objective.name} {record.text}{expected}"]
    if (value := outcome.test_values.get(record.number)) is not None:
        parts.append(f"test {objective.name} {objective.text(value)}")
    sparsity = f"sparsity {record.sparsity:.4%}"
    if outcome.weights is not None and record.nonzero_weights is not None:
        sparsity += f" ({outcome.weights - record.nonzero_weights:,} of {outcome.weights:,} weights are zero)"
    packed = [] if record.size_bytes is None else [f"packed {record.size_bytes:,} bytes"]
    return f"{record.name}: {', '.join([*parts, sparsity, *packed])}"


def targets_lines(outcome: StudyOutcome) -> list[str]:
    """Return a line about the best network at each target, with its test metric. The list is empty if the study does
    not have several targets."""
    if outcome.goal.kind is not GoalKind.TARGETS:
        return []
    return [
        f"at {target:g}: " + (_found(outcome, best, target) if best is not None else "no trial reached this sparsity")
        for target, best in outcome.goal.best_at(outcome.records)
    ]


def front_line(outcome: StudyOutcome) -> str:
    """Return a line about the front of a study: its hypervolume, and the mean metric over the goal's range of
    sparsities. The mean metric is computed from the hypervolume. Return "" if the study's goal is not --front."""
    goal, objective = outcome.goal, outcome.goal.objective
    if goal.kind is not GoalKind.FRONT:
        return ""
    area = goal.hypervolume(outcome.records)
    return (
        f"hypervolume {area:.5f} {corner_text(goal, f'{goal.lowest:g}')}: a mean {objective.name} of "
        f"{objective.text(goal.mean_value(area))} over the sparsities from {goal.lowest:g} to {goal.highest:g}"
        f"{missing_above(goal, outcome.records, '')}"
    )


def ensemble_line(outcome: StudyOutcome) -> str:
    """Return a line that compares an ensemble (option --ensemble) with the best network alone. The weights of the
    ensemble's networks are random numbers near the weights of the best network. If the ensemble is not better, the line
    says so. Return "" if the study has no ensemble."""
    about, objective = outcome.ensemble, outcome.goal.objective
    if not about:
        return ""
    if about["scale"] == 0:
        return "none: no ensemble was better than the averaged network on the validation data"
    test = {name: objective.text(one["value"]) for name, one in about["test"].items()}
    size = f", {about['size_bytes']:,} bytes" if "size_bytes" in about else ""
    return (
        f"{about['members']} networks at {about['scale']:g} of the spread: test {objective.name} {test['ensemble']}, "
        f"and {test['average']} for the averaged network alone{size}"
    )


def network_line(outcome: StudyOutcome) -> str:
    """Return the best network's sparsity over all weight matrices and over all parameters, and which matrices stay
    dense."""
    best, size = outcome.best, outcome.size
    if best is None or size is None or (matrices := outcome.sparsity_matrices(best)) is None:
        return ""
    total = f" and {best.sparsity_total:.4%} of all parameters" if best.sparsity_total is not None else ""
    dense = f"; dense: {size.dense_text()}" if size.dense else ""
    pattern = "" if size.pattern == UNSTRUCTURED else f", in the pattern {size.pattern}"
    whole = ", ".join(f"{name} ({reason})" for name, reason in islice(size.pattern.whole.items(), _WHOLE_SHOWN))
    more = f" and {count} more" if (count := len(size.pattern.whole) - _WHOLE_SHOWN) > 0 else ""
    whole = f"; no neuron is removed from {whole}{more}" if whole else ""
    return f"{matrices:.4%} of all weight matrices{total} are zero{pattern}{whole}{dense}"


def latency_line(outcome: StudyOutcome) -> str:
    """Return a line with the measured latency of the best network. Return "" if the study has no limit of latency."""
    return "" if outcome.best is None else latency_text(outcome.goal, outcome.latencies, outcome.best.name)


def layers_line(outcome: StudyOutcome) -> str:
    """Return the sparsity of each layer of the best network. If there are many layers, return only the lowest and the
    highest."""
    by_layer = outcome.sparsity_by_layer
    if len(by_layer) <= _LAYERS_SHOWN:
        return ", ".join(f"{name} {sparsity:.1%}" for name, sparsity in by_layer.items())
    least, most = min(by_layer, key=by_layer.__getitem__), max(by_layer, key=by_layer.__getitem__)
    ends = f"{by_layer[least]:.1%} ({least}) to {by_layer[most]:.1%} ({most})"
    return f"{ends} in {len(by_layer)} layers, each in model.json"


def states_line(outcome: StudyOutcome) -> str:
    """Return a line with the number of trials in each final state. If trials failed, the line contains the most
    frequent reason for failure."""
    states = outcome.states
    line = f"{states['completed']} completed, {states['pruned']} stopped early, {states['failed']} failed"
    reasons = Counter(r.reason for r in outcome.records if r.state is TrialState.FAILED and r.reason)
    return line + (f" ({' '.join(reasons.most_common(1)[0][0].split())})" if reasons else "")


def retrained_line(one: Retrained) -> str:
    """Return a line about one method's best trial, which was trained again with several seeds (option
    --final-seeds)."""
    at = "" if one.target is None else f"best at {one.target:g}, "
    text = one.objective.text
    seeds = f"{len(one.test_values)} seeds" + (f", {one.failed} more failed" if one.failed else "")
    spread = f"{text(min(one.test_values))} to {text(max(one.test_values))}, {seeds}"
    return f"{at}{one.trial} at {one.sparsity:.2%}: test {one.objective.name} {text(one.mean)} ({spread})"


def seconds_line(outcome: StudyOutcome) -> str:
    """Return a line with the duration of the study and the seconds of each activity, such as training and sampling."""
    shares = outcome.seconds.to_dict()
    total = shares.pop("total")
    return f"{duration(total)}: {', '.join(f'{name} {seconds:.1f} s' for name, seconds in shares.items())}"


def files_line(outcome: StudyOutcome) -> str:
    """Return a line with the study's folder and the names of its files."""
    tables = ("pareto.html", "pictures.html", "result.json", "trials.csv", "pareto.csv", "study.yaml")
    networks = list(dict.fromkeys(name.partition("/")[0] for name in outcome.goal.folders(outcome.records)))
    there = [f"{name}/" for name in networks if (outcome.folder / name).exists()]
    there += [name for name in tables if (outcome.folder / name).exists()]
    return f"{outcome.store or shown_path(outcome.folder)}{os.sep}" + (f"  ({', '.join(there)})" if there else "")


def tracking_line(tracking_uri: str) -> str:
    """Return the command that opens MLflow's UI for the study, or the address if MLflow is a server. A password in the
    URI is not shown."""
    shown = redact(tracking_uri)
    if re.match(r"https?://", shown):
        return shown  # a server: it is its own UI
    return f"{command('mlflow')} ui --backend-store-uri {shlex.quote(shown)}"


def table_rows(outcome: StudyOutcome) -> tuple[list[TrialRecord], list[list[str]]]:
    """Return the trials for the table, one for each row, and the columns to put on the left of the trials' own columns.

    With several targets, there is one row for each target that is reached: the best trial at this target. One column
    on the left has the targets. For other goals, the trials are those of the front, and there is no column on the left.
    """
    goal = outcome.goal
    if goal.kind is not GoalKind.TARGETS:
        return outcome.front, []
    met = [(target, best) for target, best in goal.best_at(outcome.records) if best is not None]
    return [best for _, best in met], [["target", *(f"{target:g}" for target, _ in met)]]


def _table(columns: Sequence[Sequence[str]], best: int | None = None) -> RenderableType:
    """Return columns of text as a table of rich.

    Args:
        columns: the cells of each column, beginning with its heading.
        best: the index of the row to highlight, from 0; None to highlight no row.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), collapse_padding=True)
    for heading, *_ in columns:
        justify: Any = "left" if heading in ("trial", "group") else "right"
        table.add_column(Text(heading, style="bold"), justify=justify, no_wrap=True)
    for place, cells in enumerate(zip(*(cells for _, *cells in columns), strict=True)):
        table.add_row(*map(Text, cells), style="bold green" if place == best else "")
    return table


def final_table(outcome: StudyOutcome, width: int = PLAIN_WIDTH) -> RenderableType:
    """Return the results of a study as text: a table, and below it lines about the results and the files.

    The table shows the front. For several targets, it shows the best trial at each target instead.

    Args:
        outcome: the results of the study.
        width: the number of characters in a line of the table. Other lines are never broken, so that users can copy
            commands and paths.

    Returns:
        An object that `rich.console.Console.print` accepts.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    rows, leading = table_rows(outcome)
    if rows:
        columns, left_out = trial_columns(rows, width, leading)
        parts.append(_table(columns, next((i for i, record in enumerate(rows) if record is outcome.best), None)))
        if left_out:
            parts.append(Text(f"and {left_out} more parameter{'s' if left_out > 1 else ''} in trials.csv", style="dim"))
        parts.append(Text())
    lines = [
        *(("targets", text) for text in targets_lines(outcome)),
        ("front", front_line(outcome)),
        ("network", network_line(outcome)),
        ("latency", latency_line(outcome)),
        ("group", group_line(outcome.group, outcome.goal.objective)),
        ("reflect", reflection_line(outcome.group, outcome.goal.objective)),
        ("ensemble", ensemble_line(outcome)),
        ("layers", layers_line(outcome)),
        ("dead", dead_text(outcome.dead_neurons, str(outcome.size.pattern) if outcome.size else None)),
        ("spikes", spikes_text(outcome.spike_rates)),
        *((one.method, retrained_line(one)) for one in outcome.retrained),
        *(("verdict", text) for text in verdicts(outcome.retrained)),
        ("trials", states_line(outcome)),
        ("time", seconds_line(outcome)),
        ("files", files_line(outcome)),
        ("MLflow", tracking_line(outcome.tracking_uri) if outcome.tracking_uri else ""),
    ]
    if groups := group_rows(outcome.group, outcome.goal.objective):
        parts += [_table([list(column) for column in zip(GROUP_HEADER, *groups, strict=True)]), Text()]
    style = "bold green" if rows else "bold yellow"
    parts.append(Text(best_line(outcome), style=style, no_wrap=True, overflow="ignore"))
    width_of_labels = max(len(label) for label, text in lines if text)
    for label, text in lines:
        if text:
            parts.append(Text(f"{label:<{width_of_labels}} {text}", no_wrap=True, overflow="ignore"))
    return Group(*parts)


def print_result(outcome: StudyOutcome, stream: TextIO | None = None) -> None:
    """Print the results of a study, in the form that `final_table` returns. If `stream` is None, print to standard
    output. Colours appear only in a terminal."""
    from rich.console import Console

    stream = sys.stdout if stream is None else stream
    console = Console(file=stream, width=None if is_terminal(stream) else PLAIN_WIDTH)
    console.print(final_table(outcome, console.width), crop=False, highlight=False)
