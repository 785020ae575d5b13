"""Draw the Pareto front of a study: the metric against sparsity.

plotly is imported inside the functions, because importing it takes longer than `tune-sparsity --help` should take.
"""

from __future__ import annotations

import html
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING, Any

from tune_sparsity.tuner.reports.plots.theme import GREY, OKABE_ITO, THEME, hover_text, places, value_axis
from tune_sparsity.tuner.reports.text import percent
from tune_sparsity.tuner.study.goal import Goal, GoalKind
from tune_sparsity.tuner.study.pareto import Point, known_point, point_of
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState

if TYPE_CHECKING:
    import plotly.graph_objects as go


Range = tuple[float, float]
"""The displayed range of an axis."""


@dataclass(frozen=True)
class _Groups:
    """The trials in the groups that are drawn in different colours. Each trial has a sparsity and a metric."""

    front: list[TrialRecord]
    dominated: list[TrialRecord]
    below: list[TrialRecord]  # completed, but less sparse than the target
    stopped: list[TrialRecord]

    @property
    def drawn(self) -> list[TrialRecord]:
        return [*self.front, *self.dominated, *self.below, *self.stopped]

    @property
    def feasible(self) -> list[TrialRecord]:
        return [*self.front, *self.dominated]

    @cached_property
    def names(self) -> dict[Point | None, list[str]]:
        """Return the names of the trials at each point. Several trials may have exactly the same sparsity and
        metric."""
        names: dict[Point | None, list[str]] = defaultdict(list)
        for one in self.drawn:
            names[point_of(one)].append(one.name)
        return names

    def label(self, record: TrialRecord) -> str:
        """Return the hover label of a trial. The label also names other trials at the same point, because they are
        hidden behind this trial."""
        others = [name for name in self.names[point_of(record)] if name != record.name]
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        return hover_text(record) + (f"<br>also here: {', '.join(others[:5])}{more}" if others else "")


def _group(records: Sequence[TrialRecord], goal: Goal) -> _Groups:
    # Failed trials are not drawn, because measures before a NaN mean nothing. Running trials are drawn when they end.
    located = [record for record in records if point_of(record) is not None]
    front = goal.front(located)
    numbers = {record.number for record in front}
    return _Groups(
        front=front,
        dominated=[r for r in located if goal.feasible(r) and r.number not in numbers],
        below=[r for r in located if r.state is TrialState.COMPLETED and not goal.feasible(r)],
        stopped=[r for r in located if r.state is TrialState.PRUNED],
    )


def _trace(groups: _Groups, records: Sequence[TrialRecord], name: str, **look: Any) -> dict[str, Any]:
    points = places(records)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "text": [groups.label(record) for record in records],
        "hovertemplate": "%{text}<extra></extra>",
        **look,
    }


def _traces(groups: _Groups, best: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """Return plotly's traces, in the order in which they are drawn over each other. Each group has its own colour and
    shape. An empty group has no trace."""
    blue, sky, red = OKABE_ITO["blue"], OKABE_ITO["sky blue"], OKABE_ITO["vermillion"]
    grey = {"color": GREY, "size": 8}
    front_look = {
        "mode": "lines+markers",
        # Steps, because a straight line between two networks would suggest networks that do not exist.
        "line": {"color": blue, "width": 2, "shape": "vh"},
        "marker": {"color": blue, "size": 10},
    }
    outline = {"color": "black", "width": 1}
    star = {"color": red, "size": 18, "symbol": "star", "line": outline}
    looks: list[tuple[Sequence[TrialRecord], str, dict[str, Any]]] = [
        (groups.stopped, "stopped early", {"marker": {**grey, "symbol": "x-open"}}),
        (groups.below, "below the target", {"marker": {**grey, "symbol": "circle-open"}}),
        (groups.dominated, "dominated", {"marker": {"color": sky, "size": 8, "symbol": "diamond"}}),
        (groups.front, "Pareto front", front_look),
        (best, f"best: {', '.join(one.name for one in best)}", {"marker": star}),
    ]
    return [_trace(groups, members, name, **look) for members, name, look in looks if members]


def _padded(values: Sequence[float], least: float, bounds: Range) -> Range:
    """Return a range around the values. The range is at least `least` wide, and goes hardly beyond the bounds."""
    low, high = min(values), max(values)
    span = max(high - low, least)
    margin = (span - (high - low)) / 2 + 0.06 * span
    spare = 0.02 * span  # so that the edge of the plot does not cut a marker at exactly 100%
    return max(low - margin, bounds[0] - spare), min(high + margin, bounds[1] + spare)


def _inside(points: Iterable[Point], x_range: Range, y_range: Range, reach: float = 0.0) -> list[Point]:
    """Return the points within both ranges. Before the check, each range is extended on both sides by `reach` times its
    width."""
    x_reach, y_reach = reach * (x_range[1] - x_range[0]), reach * (y_range[1] - y_range[0])
    return [
        (x, y)
        for x, y in points
        if x_range[0] - x_reach <= x <= x_range[1] + x_reach and y_range[0] - y_reach <= y <= y_range[1] + y_reach
    ]


def _not_collapsed(groups: _Groups) -> list[TrialRecord]:
    """Return the feasible trials without those of very bad values, which would flatten the front in the plot."""
    merits = [known_point(record)[1] for record in groups.feasible]
    middle = median(merits)
    lowest = min(middle - 3 * (max(merits) - middle), *(known_point(record)[1] for record in groups.front))
    return [record for record in groups.feasible if known_point(record)[1] >= lowest]


def _ranges(groups: _Groups, goal: Goal) -> tuple[Range, Range]:
    """Return the initial ranges of sparsity and of the metric, so that they show the goal and the feasible trials.

    Trials that are not feasible are often far away, because a trial that was stopped in its first epochs is almost
    dense. They count only if they are near, or if no trial is feasible.
    """
    whole = goal.objective.shown(goal.scale)
    bounds = (0.0, 100.0) if goal.objective.percent else (-math.inf, math.inf)

    def around(points: Sequence[Point]) -> tuple[Range, Range]:
        sparsities = [*(100 * end for end in goal.ends), *(x for x, _ in points)]
        values = [y for _, y in points] or [0.0, whole]
        return _padded(sparsities, 1.0, (0.0, 100.0)), _padded(values, 0.02 * whole, bounds)

    drawn = places(groups.drawn)
    if not groups.feasible:
        return around(drawn)
    centre = places(_not_collapsed(groups))
    return around([*centre, *_inside(drawn, *around(centre), reach=0.5)])


def _summary(records: Sequence[TrialRecord], groups: _Groups) -> str:
    states = [record.state for record in records]
    counts = {
        "feasible": len(groups.feasible),
        "below the target": len(groups.below),
        "stopped early": states.count(TrialState.PRUNED),
        "failed": states.count(TrialState.FAILED),
        "running": states.count(TrialState.RUNNING),
    }
    parts = [f"{count} {what}" for what, count in counts.items() if count or what == "feasible"]
    return f"{len(records)} trial{'' if len(records) == 1 else 's'}: {', '.join(parts)}"


def _note(text: str, **place: Any) -> dict[str, Any]:
    return {"text": text, "showarrow": False, "xref": "paper", "yref": "paper", **place}


def _labels(goal: Goal) -> list[dict[str, Any]]:
    """Return labels for the dashed lines at the targets, or at the ends of a front. Labels after the first are short,
    because they have less space."""
    front = goal.kind is GoalKind.FRONT
    first, *others = goal.ends
    texts = [f"front from {percent(first)}" if front else f"target {percent(first)}"]
    texts += [f"to {percent(end)}" if front else percent(end) for end in others]
    place = {"xref": "x", "y": 1, "xanchor": "center", "yanchor": "bottom"}
    return [_note(text, x=100 * end, **place) for text, end in zip(texts, goal.ends, strict=True)]


def _annotations(groups: _Groups, goal: Goal, outside: int) -> list[dict[str, Any]]:
    notes = _labels(goal)
    centre = {"x": 0.5, "y": 0.5, "font": {"size": 18}}
    if not groups.drawn:
        notes.append(_note("No trial has a result yet.", **centre))
    elif not groups.feasible:
        text = f"No trial is feasible: none completed with {goal.condition}."
        notes.append(_note(text, **{**centre, "y": 0.97}))
    if outside:
        text = f"{outside} more outside this view: double-click to see all"
        # On the side of bad values, so that it covers no good trial.
        side = {"y": 0, "yanchor": "bottom"} if goal.objective.maximize else {"y": 1, "yanchor": "top"}
        notes.append(_note(text, x=1, xanchor="right", font={"size": 12, "color": "#555555"}, **side))
    return notes


def front_figure(records: Iterable[TrialRecord], goal: Goal, title: str) -> go.Figure:
    """Return a plot of the metric against sparsity: the Pareto front, the other trials, the best trials and the
    targets.

    Args:
        records: the trials in any order and state. Failed and running trials are not drawn. The subtitle has their
            numbers. Trials that were stopped early are drawn at their last validation.
        goal: the study's target sparsities and limits, as a `Goal`.
        title: the title of the plot, as plain text.

    Returns:
        A plotly figure with sparsities in percent. If no trial has a result yet, the figure says so.
    """
    import plotly.graph_objects as go

    records = list(records)
    groups = _group(records, goal)
    x_range, y_range = _ranges(groups, goal)
    outside = len(groups.drawn) - len(_inside(places(groups.drawn), x_range, y_range))
    line = {"color": "black", "width": 1.5, "dash": "dash"}
    across = {"type": "line", "y0": 0, "y1": 1, "yref": "paper", "line": line, "layer": "below"}
    # If the goal is a front, it has one target, and only the first network is kept. This network has the best metric.
    best = goal.reported(records)[: len(goal.targets)]
    subtitle = {"text": _summary(records, groups)}
    return go.Figure(
        data=_traces(groups, best),
        layout={
            "template": THEME,
            "title": {"text": html.escape(title), "subtitle": subtitle},
            "xaxis": {"title": {"text": "sparsity"}, "ticksuffix": "%", "range": x_range},
            "yaxis": {**value_axis(goal.objective, "validation"), "range": y_range},
            "shapes": [{**across, "x0": 100 * end, "x1": 100 * end} for end in goal.ends],
            "annotations": _annotations(groups, goal, outside),
            "showlegend": True,
        },
    )
