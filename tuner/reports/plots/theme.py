"""Define the look of all plots: colours, plotly template, titles and panels."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tune_sparsity.tuner.study.objective import Objective
from tune_sparsity.tuner.study.pareto import Point, point_of
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState

if TYPE_CHECKING:
    import plotly.graph_objects as go


OKABE_ITO = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky blue": "#56B4E9",
    "bluish green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "reddish purple": "#CC79A7",
}
"""The eight colours of Okabe and Ito (2008), which people with any kind of colour vision can distinguish."""
GREY = "#8C8C8C"
"""The colour of trials that do not count as results."""
_AXIS = {
    **{"showline": True, "linecolor": "#444444", "ticks": "outside", "tickcolor": "#444444"},
    **{"gridcolor": "#E5E5E5", "zeroline": False, "automargin": True},
    "title": {"standoff": 12, "font": {"size": 14}},  # otherwise it overlaps long tick labels
}
THEME: dict[str, Any] = {
    "layout": {
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif", "size": 14},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": [
            OKABE_ITO[name]
            for name in ("blue", "vermillion", "bluish green", "orange", "sky blue", "reddish purple", "black")
        ],
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        # Small enough for "EXPERIMENT: accuracy against sparsity" to fit on a telephone.
        "title": {"x": 0.02, "xanchor": "left", "font": {"size": 17}, "subtitle": {"font": {"size": 12}}},
        # A legend above the plot would overlap the title on a narrow page, for example in MLflow's UI.
        "margin": {"l": 70, "r": 30, "t": 105, "b": 105},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 0.01, "yanchor": "bottom", "yref": "container"},
        "hoverlabel": {"align": "left", "bgcolor": "white"},
        "hovermode": "closest",
    }
}
"""The look of all plots, as a plotly template: `go.Figure(layout={"template": THEME})`. It uses only fonts of the
reader's system, because a web font would need the network."""
BLUE, SKY, RED = OKABE_ITO["blue"], OKABE_ITO["sky blue"], OKABE_ITO["vermillion"]
PANEL_COLOURS = (BLUE, OKABE_ITO["bluish green"], OKABE_ITO["orange"], OKABE_ITO["reddish purple"])


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def hover_text(record: TrialRecord) -> str:
    """Return the lines of a trial's hover label. Text from the user is escaped, because plotly interprets tags."""
    known: dict[str, Any] = {
        record.objective.name: record.text or None,
        "sparsity": None if record.sparsity is None else f"{record.sparsity:.3%}",
        "nonzero weights": None if record.nonzero_weights is None else f"{record.nonzero_weights:,}",
        "bytes": None if record.size_bytes is None else f"{record.size_bytes:,}",
        "multiply-adds": None if record.macs is None else f"{record.macs:,}",
        "synaptic operations": None if record.syn_ops is None else f"{record.syn_ops:,}",
        "bit operations": None if record.bit_ops is None else f"{record.bit_ops:,}",
        "bytes of memory in training": None if record.train_bytes is None else f"{record.train_bytes:,}",
        "epochs": record.epochs,
        "method": record.method,
    }
    lines = [f"{key} {_value(value)}" for key, value in known.items() if value is not None]
    parameters = [f"{name} = {_value(value)}" for name, value in record.params.items()]
    state = "stopped early" if record.state is TrialState.PRUNED else record.state
    return "<br>".join([f"<b>{record.name}</b> {state}", *(html.escape(line) for line in lines + parameters)])


def places(records: Iterable[TrialRecord]) -> list[Point]:
    """Return the position of each trial in plots of the metric against sparsity: (sparsity in percent, metric). The
    metric is in percent if the plots show it in percent. Trials without a sparsity or a metric are left out."""
    found = [(record.objective, point) for record in records if (point := point_of(record)) is not None]
    return [(100 * x, objective.shown(objective.value(merit))) for objective, (x, merit) in found]


def value_axis(objective: Objective, what: str) -> dict[str, Any]:
    """Return plotly's settings of an axis that shows the metric.

    Args:
        objective: the metric.
        what: the text before the metric's name in the title of the axis, for example "validation".
    """
    return {"title": {"text": f"{what} {objective.name}"}, "ticksuffix": objective.suffix}


def titled(title: str, subtitle: str = "") -> dict[str, Any]:
    """Return plotly's settings of a title and a subtitle. Both are plain text and are escaped here."""
    return {"text": html.escape(title), "subtitle": {"text": html.escape(subtitle)}}


def figure(data: Sequence[Mapping[str, Any]], title: dict[str, Any], **layout: Any) -> go.Figure:
    """Return a plotly figure in the style of all plots of this package."""
    import plotly.graph_objects as go

    room = {"margin": {"l": 70, "r": 30, "t": 80, "b": 105 if layout.get("showlegend") else 60}}
    return go.Figure(data=list(data), layout={"template": THEME, "title": title, **room, **layout})


def panels(count: int) -> list[list[float]]:
    """Return the vertical ranges of `count` panels as fractions of the plot's height, from the top panel to the bottom
    panel."""
    each = 1 / count
    return [[max(0.0, 1 - (i + 1) * each + 0.09 * (i + 1 < count)), 1 - i * each] for i in range(count)]
