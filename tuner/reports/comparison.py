"""Compare studies of one experiment: their fronts, and their best networks for each target or limit."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.reports.page import page
from tune_sparsity.tuner.reports.plots.theme import OKABE_ITO, figure, hover_text, places, titled, value_axis
from tune_sparsity.tuner.reports.text import percent
from tune_sparsity.tuner.results.finished_study import EndedStudy
from tune_sparsity.tuner.study.goal import at_targets
from tune_sparsity.tuner.study.objective import Objective
from tune_sparsity.tuner.study.pareto import pareto_front
from tune_sparsity.tuner.study.trial import TrialRecord

if TYPE_CHECKING:
    import plotly.graph_objects as go

_LOOKS = [
    *(("blue", "circle"), ("vermillion", "diamond"), ("bluish green", "square"), ("orange", "triangle-up")),
    *(("reddish purple", "cross"), ("sky blue", "star"), ("black", "x")),
]
"""The colour and the shape of each study's points."""


def check_alike(studies: Sequence[EndedStudy]) -> None:
    """Raise UsageError if the studies cannot be compared: they must be at least two, and have one experiment and one
    metric."""
    if len(studies) < 2 or len({study.folder.resolve() for study in studies}) < len(studies):
        raise UsageError("compare needs two or more different studies: tune-sparsity compare STUDY STUDY")
    metrics = dict.fromkeys(str(study.goal.objective) for study in studies)
    of = [f"{study.config.study} of {study.result['experiment']}" for study in studies]
    if len({study.result["experiment"] for study in studies}) > 1:
        raise UsageError(f"these are studies of different experiments, which cannot be compared: {', '.join(of)}")
    if len(metrics) > 1:
        raise UsageError(f"these studies have different metrics, which cannot be compared: {', '.join(metrics)}")


def differences(studies: Sequence[EndedStudy], records: Sequence[Sequence[TrialRecord]]) -> list[dict[str, Any]]:
    """Return the best trial of each study for each goal, one row for each pair of a study and a goal.

    The goals are those of all studies together: each target sparsity, and each limit of bytes, multiply-adds or
    milliseconds. A row has a target or a limit; the other is None. A row also has a difference: the trial's validation
    metric, minus the validation metric of the first study's best trial for this goal.
    """
    objective = studies[0].goal.objective
    targets = sorted({target for study in studies if not study.goal.limited for target in study.goal.targets})
    limits = {study.goal.condition: study.goal for study in studies if study.goal.limited}
    rows = []
    for goal in [*map(at_targets, targets), *limits.values()]:
        found = [goal.best(one) for one in records]
        first = found[0].value if found[0] is not None else None
        for study, best in zip(studies, found, strict=True):
            value = None if best is None else best.value
            known = value is not None and first is not None
            rows.append(
                {
                    "target": None if goal.limited else goal.lowest,
                    "limit": goal.condition if goal.limited else None,
                    "study": study.config.study,
                    "trial": None if best is None else best.name,
                    "method": None if best is None else best.method,
                    objective.val: value,
                    "difference": value - first if known else None,  # type: ignore[operator]
                    "sparsity": None if best is None else best.sparsity,
                    "nonzero_weights": None if best is None else best.nonzero_weights,
                    "size_bytes": None if best is None else best.size_bytes,
                    "trials": sum(study.result["states"].values()),
                    "seconds": study.result["seconds"]["total"],
                }
            )
    return rows


def _header(objective: Objective) -> list[str]:
    before, behind = ("target", "study", "trial", "method"), ("sparsity", "weights left", "bytes", "seconds")
    return [*before, objective.name, "against the first", *behind]


def _cells(row: dict[str, Any], objective: Objective) -> list[str]:
    value, difference, nonzero = row[objective.val], row["difference"], row["nonzero_weights"]
    return [
        *(row["limit"] or percent(row["target"]), row["study"], row["trial"] or "none", row["method"] or ""),
        "" if value is None else objective.text(value),
        "" if difference is None else objective.difference(difference, "+"),
        "" if row["sparsity"] is None else f"{row['sparsity']:.3%}",
        "" if nonzero is None else f"{nonzero:,}",
        "" if row["size_bytes"] is None else f"{row['size_bytes']:,}",
        f"{row['seconds']:.0f}",
    ]


def as_lines(rows: Sequence[dict[str, Any]], objective: Objective) -> list[str]:
    """Return the result of `differences` as a table for a terminal, line by line."""
    cells = [_header(objective), *(_cells(row, objective) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    left = {1, 2, 3}
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def notes_on(studies: Sequence[EndedStudy]) -> list[str]:
    """Return notes, one line each: the standard error of the metric, and differences of data, networks or epochs that
    make the studies hard to compare."""
    name, notes = studies[0].goal.objective.name, list[str]()
    if len({study.about.get("data_sha256") for study in studies}) > 1:
        notes.append(f"Their data differ, so that a difference in {name} may come from the data.")
    weights = [(study.result.get("best") or {}).get("weights") for study in studies]
    if len(set(weights) - {None}) > 1:
        told = " and ".join("unknown" if number is None else f"{number:,}" for number in weights)
        notes.append(f"Their networks differ: they have {told} prunable weights.")
    best = studies[0].result.get("best") or {}
    if (error := best.get(f"estimated_{name}_error")) is not None:
        told = studies[0].goal.objective.difference(error)
        notes.append(f"The {name} of one network has a standard error of {told}: smaller differences may be chance.")
    epochs = [study.config.epochs for study in studies]
    if len(set(epochs)) > 1:
        notes.append(f"Their trials differ in length: {' and '.join(map(str, epochs))} epochs.")
    return notes


def fronts_figure(studies: Sequence[EndedStudy], records: Sequence[Sequence[TrialRecord]]) -> go.Figure:
    """Return a plot of the fronts of all studies, with the other feasible trials. The plot begins at the lowest target
    of any study."""
    lowest, objective = min(study.goal.lowest for study in studies), studies[0].goal.objective
    data: list[dict[str, Any]] = []
    for i, (study, own) in enumerate(zip(studies, records, strict=True)):
        colour, symbol = OKABE_ITO[_LOOKS[i % len(_LOOKS)][0]], _LOOKS[i % len(_LOOKS)][1]
        front = pareto_front(own, lowest)
        numbers = {record.number for record in front}
        others = [record for record in own if record.feasible(lowest) and record.number not in numbers]
        name = html.escape(study.config.study)
        for members, look in (
            (others, {"mode": "markers", "opacity": 0.4, "marker": {"size": 6}, "showlegend": not front}),
            (front, {"mode": "lines+markers", "line": {"shape": "vh", "width": 2}, "marker": {"size": 11}}),
        ):
            points = places(members)
            if points:
                look["marker"] |= {"color": colour, "symbol": symbol}  # type: ignore[operator]
                common = {"type": "scatter", "name": name, "legendgroup": str(i), "x": [x for x, _ in points]}
                common |= {"y": [y for _, y in points], "text": [hover_text(record) for record in members]}
                data.append({**common, "hovertemplate": f"{name}<br>%{{text}}<extra></extra>", **look})
    ends = sorted({end for study in studies for end in study.goal.ends})
    line = {"type": "line", "y0": 0, "y1": 1, "yref": "paper", "layer": "below", "line": {"dash": "dash", "width": 1.5}}
    notes = [
        {"text": percent(end), "x": 100 * end, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}
        for end in ends
    ]
    dashed = "dashed: the targets of the studies"
    return figure(
        data,
        titled("Fronts of the studies", f"{objective.name} on the validation data; {dashed}"),
        xaxis={"title": {"text": "sparsity"}, "ticksuffix": "%"},
        yaxis=value_axis(objective, "validation"),
        shapes=[{**line, "x0": 100 * end, "x1": 100 * end} for end in ends],
        annotations=notes,
        showlegend=True,
        height=560,
        margin={"l": 70, "r": 30, "t": 105, "b": 105},
    )


def compare_page(
    studies: Sequence[EndedStudy], records: Sequence[Sequence[TrialRecord]], rows: Sequence[dict[str, Any]]
) -> str:
    """Return the page with the fronts, the differences and the settings of the studies."""
    title = f"{studies[0].result['experiment']}: {' and '.join(study.config.study for study in studies)}"
    objective, configs = studies[0].goal.objective, [study.config for study in studies]
    asked = [
        [one.study, study.goal, ", ".join(one.method), one.trials, one.epochs, one.sampler, one.seed]
        for study, one in zip(studies, configs, strict=True)
    ]
    return page(
        "comparison.html",
        title,
        {"fronts": fronts_figure(studies, records)},
        reached=[_cells(row, objective) for row in rows],
        header=_header(objective),
        notes=notes_on(studies),
        asked=asked,
    )
