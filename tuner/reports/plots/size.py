"""Draw the metric against the costs of networks: the bytes of their files, and their multiply-adds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tune_sparsity.tuner.reports.plots.theme import THEME, figure, hover_text, titled, value_axis
from tune_sparsity.tuner.study.goal import Goal
from tune_sparsity.tuner.study.pareto import known_point, point_of
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState

if TYPE_CHECKING:
    import plotly.graph_objects as go

_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star", "hexagon")
_BITS = "weight_bits"


def smallest_front(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the completed trials on the Pareto front of bytes and metric, from the smallest to the largest network."""
    front, best = list[TrialRecord](), -math.inf
    for record in sorted(_sized(records), key=_rank):
        _, merit = known_point(record)
        if merit > best:
            front.append(record)
            best = merit
    return front


def bytes_figure(records: Iterable[TrialRecord], goal: Goal) -> go.Figure | None:
    """Return a plot of the metric against the bytes of the packed file, for completed trials. Each method with each
    number of bits per weight has its own colour. Return None if no completed trial has a packed size."""
    sized = _sized(records)
    if not sized:
        return None
    groups: dict[str, list[TrialRecord]] = defaultdict(list)
    for record in sized:
        bits = f", {record.params[_BITS]} bits" if _BITS in record.params else ""
        groups[f"{record.method}{bits}"].append(record)
    colours = THEME["layout"]["colorway"]
    looks = zip(range(len(groups)), groups.items(), strict=True)
    data = [
        {
            **_points(members, goal),
            "mode": "markers",
            "name": name,
            "marker": {"color": colours[i % len(colours)], "size": 9, "symbol": _SYMBOLS[i % len(_SYMBOLS)]},
        }
        for i, (name, members) in looks
    ]
    # Steps, because a straight line between two networks would suggest networks that do not exist.
    steps = {"color": "black", "width": 1.5, "shape": "hv"}
    data.insert(0, {**_points(smallest_front(sized), goal), "mode": "lines", "name": "Pareto front", "line": steps})
    dashes = {"color": "black", "width": 1.5, "dash": "dash"}
    limit = {"type": "line", "y0": 0, "y1": 1, "yref": "paper", "line": dashes, "layer": "below"}
    most = goal.max_bytes
    return figure(
        data,
        titled("Size of the packed files", f"{goal.objective.name} of the completed trials; smaller is to the left"),
        xaxis={"title": {"text": "bytes"}, "type": "log"},
        yaxis=value_axis(goal.objective, "validation"),
        shapes=[] if most is None else [{**limit, "x0": most, "x1": most}],
        showlegend=True,
    )


def macs_figure(records: Iterable[TrialRecord], goal: Goal, groups: Sequence[Mapping[str, Any]]) -> go.Figure | None:
    """Return a plot of the metric against multiply-adds, for completed trials and for groups of two networks. Return
    None if there are no groups.

    Args:
        groups: the groups of two networks, as in result.json.
    """
    if not groups:
        return None
    objective = goal.objective
    alone = [record for record in _completed(records) if record.macs is not None]
    data = [
        {**_points(alone, goal), "x": [one.macs for one in alone], "mode": "markers", "name": "one network"},
        {
            "type": "scatter",
            "mode": "markers",
            "name": "groups of two",
            "marker": {"size": 12, "symbol": "star"},
            "x": [group["expected_macs"] for group in groups],
            "y": [objective.shown(group[objective.val]) for group in groups],
            "text": [f"{one['name']}: {one['small']}, then {one['large']} ({one['passed_on']:.1%})" for one in groups],
            "hovertemplate": "%{text}<extra></extra>",
        },
    ]
    return figure(
        data,
        titled("Multiply-adds of an example", f"{objective.name} of the completed trials, and of groups (mean)"),
        xaxis={"title": {"text": "multiply-adds"}, "type": "log"},
        yaxis=value_axis(objective, "validation"),
        showlegend=True,
    )


def _completed(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    done = (record for record in records if record.state is TrialState.COMPLETED)
    return [record for record in done if point_of(record) is not None]


def _sized(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    return [record for record in _completed(records) if record.size_bytes is not None]


def _rank(record: TrialRecord) -> tuple[int, float, int]:
    return record.size_bytes or 0, -known_point(record)[1], record.number


def _points(records: Sequence[TrialRecord], goal: Goal) -> dict[str, Any]:
    return {
        "type": "scatter",
        "x": [record.size_bytes for record in records],
        "y": [goal.objective.shown(record.value or 0.0) for record in records],
        "text": [hover_text(record) for record in records],
        "hovertemplate": "%{text}<extra></extra>",
    }
