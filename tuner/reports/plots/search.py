"""Draw the search: its best metrics over time, its trials in parallel coordinates, the importances of the parameters,
and the learning curves.

Each function needs only plain data, and no running study.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tune_sparsity.tuner.reports.plots.theme import (
    BLUE,
    GREY,
    OKABE_ITO,
    RED,
    SKY,
    figure,
    hover_text,
    panels,
    titled,
    value_axis,
)
from tune_sparsity.tuner.reports.text import corner_text, percent
from tune_sparsity.tuner.study.epochs import Series
from tune_sparsity.tuner.study.front import FrontTracker
from tune_sparsity.tuner.study.goal import Goal
from tune_sparsity.tuner.study.objective import ACCURACY, Objective
from tune_sparsity.tuner.study.pareto import known_point, point_of
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_LINES = 200  # with more lines nothing can be distinguished: only the best trials are drawn


def _in_order(records: Sequence[TrialRecord]) -> tuple[list[tuple[float, TrialRecord]], str]:
    """Return the ended trials in the order in which they ended, each with its position on the time axis, and a label of
    this axis.

    The unit is minutes since the first trial began. If the times are not known, the position is the number of trials
    that have ended.
    """
    ended = [record for record in records if record.state is not TrialState.RUNNING]
    if ended and all(record.ended is not None for record in ended):
        start = min((record.ended or 0.0) - record.seconds for record in ended)
        timed = [(((record.ended or 0.0) - start) / 60, record) for record in ended]
        return sorted(timed, key=lambda item: item[0]), "minutes since the first trial began"
    return [(float(i + 1), record) for i, record in enumerate(sorted(ended, key=lambda r: r.number))], "trials ended"


def progress_figure(records: Sequence[TrialRecord], goal: Goal) -> go.Figure:
    """Return a plot of the best metric at each target over time, and of the hypervolume over time."""
    timed, name = _in_order(records)
    objective = goal.objective
    standing = FrontTracker(goal)
    steps: list[tuple[float, list[float | None], float, str]] = []
    for when, record in timed:
        standing.add(record)
        best = [None if one is None else one.value for _, one in goal.best_at(standing.front)]
        steps.append((when, best, goal.hypervolume(standing.front), hover_text(record)))
    top, bottom = panels(2)
    x, texts = [step[0] for step in steps], [step[3] for step in steps]
    common = {"type": "scatter", "mode": "lines+markers", "text": texts}
    colours = (BLUE, RED, OKABE_ITO["bluish green"], OKABE_ITO["orange"], SKY, OKABE_ITO["reddish purple"])
    data: list[dict[str, Any]] = [
        {
            **common,
            "name": f"best at {percent(target)}",
            "x": x,
            "y": [None if (value := step[1][i]) is None else objective.shown(value) for step in steps],
            "line": {"shape": "hv", "color": colours[i % len(colours)]},
            "marker": {"size": 5},
            "hovertemplate": f"best so far {_hovered(objective)}<br>at the end of trial %{{text}}<extra></extra>",
        }
        for i, target in enumerate(goal.targets)
    ]
    data.append(
        {
            **common,
            "name": "hypervolume",
            "x": x,
            "y": [step[2] for step in steps],
            "yaxis": "y2",
            "line": {"shape": "hv", "color": "black"},
            "marker": {"size": 5, "symbol": "diamond"},
            "hovertemplate": "hypervolume %{y:.5g}<br>at the end of trial %{text}<extra></extra>",
        }
    )
    area = f"hypervolume: area {corner_text(goal, percent(goal.lowest))}"
    return figure(
        data,
        titled(f"Best {objective.name} and hypervolume over time", area),
        xaxis={"title": {"text": name}, "anchor": "y2", "rangemode": "tozero"},
        yaxis={**value_axis(objective, "best"), "domain": top, "range": _around(data[:-1], goal)},
        yaxis2={"title": {"text": "hypervolume"}, "domain": bottom, "nticks": 5},
        showlegend=True,
    )


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _hovered(objective: Objective) -> str:
    """Return the format of the metric in a hover label, in plotly's syntax."""
    return "%{y:.2f}%" if objective.percent else "%{y:.4g}"


def _around(traces: Sequence[Mapping[str, Any]], goal: Goal) -> list[float] | None:
    """Return a range around the values of the traces. If the values are percentages, the range ends just above 100.
    Return None if there are no values."""
    shown = [value for trace in traces for value in trace["y"] if value is not None]
    if not shown:
        return None
    margin = max(0.005 * goal.objective.shown(goal.scale), 0.1 * (max(shown) - min(shown)))
    return [min(shown) - margin, min(max(shown) + margin, 100.2 if goal.objective.percent else math.inf)]


class _Scale:
    """An axis of the parallel coordinates, with ticks. It maps the values of one parameter to [0, 1]; the lowest value
    is at 0. A trial that does not have the parameter lies below the axis."""

    def __init__(self, name: str, values: Sequence[Any], *, logarithmic: bool | None = None) -> None:
        self.name = name
        known = [value for value in values if value is not None]
        if _numbers(known):
            low, high = min(known), max(known)
            self.log = (low > 0 and high / low >= 20) if logarithmic is None else logarithmic
            self._low, self._span = self._at(low), self._at(high) - self._at(low)
            middle = math.exp((math.log(low) + math.log(high)) / 2) if self.log else (low + high) / 2
            ticks = [low, high] if low == high or (isinstance(low, int) and high - low < 2) else [low, middle, high]
            # A small number has only two digits, because its zeros already need much space.
            self.ticks = [
                (self(value), f"{value:.2g}" if abs(value) < 0.01 else f"{value:.3g}") for value in dict.fromkeys(ticks)
            ]
        else:
            self.log = False
            names = sorted({str(value) for value in known})
            self._places = {one: i / max(1, len(names) - 1) for i, one in enumerate(names)}
            self.ticks = [(place, one) for one, place in self._places.items()]
        if len(known) < len(values):
            self.ticks.append((-0.12, "none"))

    def _at(self, value: float) -> float:
        return math.log(value) if self.log else float(value)

    def __call__(self, value: Any) -> float:
        if value is None:
            return -0.12
        if hasattr(self, "_places"):
            return self._places[str(value)]
        return (self._at(value) - self._low) / self._span if self._span else 0.5


def _searched(records: Sequence[TrialRecord]) -> list[str]:
    """Return the names of the parameters whose values differ between the trials."""
    names = dict.fromkeys(name for record in records for name in record.params)
    return [name for name in names if len({repr(record.params.get(name)) for record in records}) > 1]


def _lines(
    done: Sequence[TrialRecord], best: TrialRecord | None, heights: Sequence[Sequence[float]]
) -> list[dict[str, Any]]:
    """Return plotly's trace of each trial: a line across all axes. The worst trial comes first, so that better trials
    are drawn over it.

    Args:
        done: the trials, from the worst to the best.
        best: the best trial, which is highlighted.
        heights: for each axis, the positions of the trials on it.
    """
    from plotly.colors import sample_colorscale

    # Colours follow the rank. If they followed the values, one collapsed trial would give all others the same colour.
    # The lightest colours are left out, because they cannot be seen on white.
    ranks = [0.85 * (1 - i / (len(done) - 1)) for i in range(len(done))]
    colours = sample_colorscale("Cividis", ranks)
    return [
        {
            "type": "scatter",
            "mode": "lines+markers" if record is best else "lines",
            "x": list(range(len(heights))),
            "y": [of_axis[i] for of_axis in heights],
            "line": {"color": RED, "width": 3.5} if record is best else {"color": colours[i], "width": 1.5},
            "opacity": 1.0 if record is best else 0.75,
            "text": hover_text(record),
            "hovertemplate": "%{text}<extra></extra>",
            "name": f"best: {record.name}",
            "showlegend": record is best,
            "zorder": 1 if record is best else 0,
        }
        for i, record in enumerate(done)
    ]


def parallel_figure(records: Sequence[TrialRecord], goal: Goal) -> go.Figure | None:
    """Return a plot in parallel coordinates: each completed trial is a line across its parameters, its sparsity and its
    metric. The metric gives the colour.

    Returns:
        None if there are fewer than two completed trials, or if all trials have equal parameters.
    """
    done = [record for record in records if record.state is TrialState.COMPLETED and point_of(record) is not None]
    done = sorted(done, key=lambda record: known_point(record)[1])[-MOST_LINES:]  # the best on top of the others
    names = _searched(done)
    if len(done) < 2 or not names:
        return None
    several = len({record.method for record in done}) > 1
    columns: list[tuple[str, list[Any]]] = [("method", [r.method for r in done])] if several else []
    columns += [(name, [record.params.get(name) for record in done]) for name in names]
    columns += [("sparsity", [record.sparsity for record in done])]
    columns += [(goal.objective.name, [record.value for record in done])]
    plain = ("sparsity", goal.objective.name)
    scales = [_Scale(name, values, logarithmic=False if name in plain else None) for name, values in columns]
    best = goal.best(done)
    better = "more accurate" if goal.objective == ACCURACY else "better"
    data = _lines(
        done, best, [[scale(value) for value in values] for scale, (_, values) in zip(scales, columns, strict=True)]
    )
    ticks = [
        {"text": html.escape(text), "x": x, "y": y, "xanchor": "left", "xshift": 5, "showarrow": False}
        | {"font": {"size": 11}, "bgcolor": "rgba(255,255,255,0.75)", "xref": "x", "yref": "y"}
        for x, scale in enumerate(scales)
        for y, text in scale.ticks
    ]
    axes = [
        {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": {"color": "#444444", "width": 1}}
        for x in range(len(scales))
    ]
    labels = [html.escape(f"{scale.name} (log)" if scale.log else scale.name) for scale in scales]
    return figure(
        data,
        titled(
            "Parallel coordinates of the completed trials",
            f"the darker, the {better}; hover a line for its trial",
        ),
        xaxis={"tickvals": list(range(len(scales))), "ticktext": labels, "tickangle": -30, "showgrid": False}
        | {"showline": False, "ticks": "", "range": [-0.2, len(scales) - 0.4]},
        yaxis={"visible": False, "range": [-0.18, 1.06]},
        shapes=axes,
        annotations=ticks,
        showlegend=best is not None,
        height=520,
    )


def importance_figure(
    importances: Mapping[str, float], method: str, trials: int, metric: str = ACCURACY.name
) -> go.Figure | None:
    """Return a plot of the share of the metric's variance that each parameter explains. Return None if there are too
    few trials."""
    if not importances:
        return None
    ranked = sorted(importances.items(), key=lambda item: item[1])
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": [html.escape(name) for name, _ in ranked],
        "x": [100 * share for _, share in ranked],
        "marker": {"color": BLUE},
        "text": [f"{share:.1%}" for _, share in ranked],
        "textposition": "outside",
        "cliponaxis": False,
        "hovertemplate": "%{y}: %{x:.1f}%<extra></extra>",
    }
    return figure(
        [bars],
        titled(
            "Parameter importances",
            f"share of the {metric}'s variance explained alone or with others (fANOVA); {trials} trials of {method}",
        ),
        xaxis={"title": {"text": "importance"}, "ticksuffix": "%", "rangemode": "tozero"},
        height=160 + 32 * len(ranked),
    )


def curves_figure(records: Sequence[TrialRecord], epochs: Mapping[int, Series], goal: Goal) -> go.Figure | None:
    """Return a plot of the learning curves of all trials: the metric against the epoch. In each epoch, the network was
    pruned to its final sparsity before the metric was measured. A cross marks the end of a trial that was stopped
    early. Return None if there are no epochs."""
    drawn = [record for record in records if epochs.get(record.number)]
    if not drawn:
        return None
    best = goal.best(records)
    groups: list[tuple[str, str, list[TrialRecord], dict[str, Any]]] = [
        ("stopped early", GREY, [r for r in drawn if r.state is TrialState.PRUNED], {"width": 1}),
        (
            "failed",
            OKABE_ITO["orange"],
            [r for r in drawn if r.state is TrialState.FAILED],
            {"width": 1, "dash": "dot"},
        ),
        (
            "running",
            OKABE_ITO["reddish purple"],
            [r for r in drawn if r.state is TrialState.RUNNING],
            {"width": 1.5, "dash": "dash"},
        ),
        ("completed", SKY, [r for r in drawn if r.state is TrialState.COMPLETED and r is not best], {"width": 1.5}),
        (f"best: {best.name}" if best else "", RED, [r for r in drawn if r is best], {"width": 3}),
    ]
    objective = goal.objective
    data = [
        _curves(name, colour, members, epochs, line, objective) for name, colour, members, line in groups if members
    ]
    return figure(
        data,
        titled(
            "Learning curves", "as if at the final sparsity; a cross where a trial was stopped; double-click to see all"
        ),
        xaxis={"title": {"text": "epoch"}, "rangemode": "tozero"},
        yaxis={
            "title": {"text": f"{objective.name} at final sparsity"},
            "ticksuffix": objective.suffix,
            "range": _most_of([epochs[r.number] for r in drawn], goal),
        },
        showlegend=True,
    )


def _most_of(series: Sequence[Series], goal: Goal) -> list[float] | None:
    """Return a range around the values of the learning curves, without the worst tenth of the values. Return None if
    there are no values."""
    objective = goal.objective
    values = [one[objective.at_target] for own in series for one in own if objective.at_target in one]
    if not values:
        return None
    values.sort(key=objective.merit)
    low, high = sorted(map(objective.shown, (values[len(values) // 10], values[-1])))
    margin = max(0.01 * objective.shown(goal.scale), 0.06 * (high - low))
    if objective.percent:
        return [max(low - margin, 0), min(high + margin, 100.5)]
    return [low - margin, high + margin]


def _curves(
    name: str,
    colour: str,
    members: Sequence[TrialRecord],
    epochs: Mapping[int, Series],
    line: Mapping[str, Any],
    objective: Objective,
) -> dict[str, Any]:
    """Return the learning curves of a group of trials as one trace of plotly, with gaps between the curves. A separate
    trace for each curve would make the page slow."""
    x: list[float | None] = []
    y: list[float | None] = []
    texts: list[str] = []
    ends: list[int] = []
    for record in members[:MOST_LINES]:
        text = hover_text(record)
        for one in epochs[record.number]:
            if objective.at_target in one:
                x.append(one["epoch"])
                y.append(objective.shown(one[objective.at_target]))
                texts.append(text)
        ends.append(len(x) - 1)
        x.append(None)
        y.append(None)
        texts.append("")
    stopped = members[0].state is TrialState.PRUNED
    last = set(ends)
    sizes = [(7 if i in last and stopped else 3 if i in last else 0) for i in range(len(x))]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": x,
        "y": y,
        "text": texts,
        "line": {"color": colour, **line},
        "marker": {"color": colour, "symbol": "x" if stopped else "circle", "size": sizes},
        "hovertemplate": f"epoch %{{x}}: {_hovered(objective)}<br>%{{text}}<extra></extra>",
    }
