"""Draw the best network: its training, its zeros and its weights. One plot compares the Hoyer sparsity of the
completed trials with expected values (see sparsity.hoyer).

Each function needs only plain data, and no running study.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tune_sparsity.tuner.reports.plots.theme import (
    BLUE,
    OKABE_ITO,
    PANEL_COLOURS,
    RED,
    SKY,
    figure,
    hover_text,
    panels,
    titled,
)
from tune_sparsity.tuner.reports.text import percent
from tune_sparsity.tuner.study.epochs import Series
from tune_sparsity.tuner.study.goal import Goal
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState

if TYPE_CHECKING:
    import numpy as np
    import plotly.graph_objects as go

_PANELS = {
    "sparsity": ("sparsity", 100.0, "%"),
    "threshold": ("threshold", 1.0, ""),
    "grow_rate": ("grow rate", 1.0, ""),
}
_MOST_LAYERS = 7  # lines in one plot, one for each colour


def training_figure(record: TrialRecord, series: Series, goal: Goal) -> go.Figure | None:
    """Return plots of one trial's sparsity, threshold, grow rate and metric by epoch, one above the other. Values that
    the method does not have are left out. Return None if there are no epochs."""
    metric = record.objective
    described = _PANELS | {metric.at_target: (metric.name, metric.shown(1.0), metric.suffix)}
    found = [name for name in described if any(name in one for one in series)]
    if not found:
        return None
    layout: dict[str, Any] = {}
    data: list[dict[str, Any]] = []
    for i, (name, domain) in enumerate(zip(found, panels(len(found)), strict=True)):
        label, factor, suffix = described[name]
        axis = "" if i == 0 else str(i + 1)
        known = [one for one in series if name in one]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": label,
                "x": [one["epoch"] for one in known],
                "y": [factor * one[name] for one in known],
                "yaxis": f"y{axis}",
                "line": {"color": PANEL_COLOURS[i], "width": 2},
                "marker": {"size": 5},
                "hovertemplate": f"epoch %{{x}}: {label} %{{y:.4g}}{suffix}<extra></extra>",
            }
        )
        layout[f"yaxis{axis}"] = {"title": {"text": label}, "ticksuffix": suffix, "domain": domain, "nticks": 5}
        layout[f"yaxis{axis}"]["rangemode"] = "normal" if name == metric.at_target else "tozero"
    moved = (
        "the masks change until the last threshold or grow rate" if "grow_rate" in found else "the masks never change"
    )
    return figure(
        data,
        titled(
            f"How {record.name} was trained", f"{record.method}; {moved}; {metric.name} as if at the final sparsity"
        ),
        xaxis={
            "title": {"text": "epoch"},
            "anchor": "y" if len(found) == 1 else f"y{len(found)}",
            "rangemode": "tozero",
        },
        showlegend=False,
        height=150 + 150 * len(found),
        **layout,
    )


def layers_figure(
    weights: Mapping[str, np.ndarray], spike_rates: Mapping[str, float] | None = None
) -> go.Figure | None:
    """Return a plot of the fraction of zeros in each layer, in the network's order. A line shows the fraction over all
    layers.

    Args:
        weights: a dict from the names of the prunable weights to the weights. If it is empty, the result is None.
        spike_rates: a dict from the name of each spiking layer to the mean number of spikes of one of its neurons in a
            time step. If the network has no spiking layers, this is None or an empty dict.
    """
    if not weights:
        return None
    names = list(weights)
    zeros = [int((weights[name] == 0).sum()) for name in names]
    sizes = [weights[name].size for name in names]
    overall = 100 * sum(zeros) / sum(sizes)
    shares = [100 * zero / size for zero, size in zip(zeros, sizes, strict=True)]
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": [html.escape(name) for name in names],
        "x": shares,
        "marker": {"color": BLUE},
        "text": [f"{share:.1f}%, {size - zero:,} left" for share, size, zero in zip(shares, sizes, zeros, strict=True)],
        "textposition": "auto",
        "insidetextanchor": "start",
        "customdata": list(zip(zeros, sizes, strict=True)),
        "hovertemplate": "%{y}: %{customdata[0]:,} of %{customdata[1]:,} weights are zero (%{x:.2f}%)<extra></extra>",
    }
    line = {"type": "line", "x0": overall, "x1": overall, "y0": 0, "y1": 1, "yref": "paper", "line": {"dash": "dash"}}
    note = {
        "text": f"all layers: {overall:.4g}%",
        "x": overall,
        "y": 1,
        "yref": "paper",
        "yanchor": "bottom",
        "showarrow": False,
    }
    spikes = ", ".join(f"{name} at {rate:.1%}" for name, rate in (spike_rates or {}).items())
    return figure(
        [bars],
        titled("Sparsity by layer", "of the best network" + (f"; steps with a spike: {spikes}" if spikes else "")),
        xaxis={"title": {"text": "weights that are zero"}, "ticksuffix": "%", "range": [0, 101]},
        yaxis={"autorange": "reversed"},
        shapes=[line],
        annotations=[note],
        margin={"l": 70, "r": 30, "t": 105, "b": 60},
        height=190 + max(28, 60 - 3 * len(names)) * len(names),
    )


def weights_figure(weights: Mapping[str, np.ndarray]) -> go.Figure | None:
    """Return a plot of the distribution of the nonzero weights in each layer, as densities. If there are many layers,
    only the largest are drawn. Return None if there are no weights."""
    import numpy as np

    nonzero = {name: values[values != 0] for name, values in weights.items()}
    largest = sorted((name for name in nonzero if nonzero[name].size > 1), key=lambda name: -nonzero[name].size)
    drawn = [name for name in nonzero if name in largest[:_MOST_LAYERS]]
    if not drawn:
        return None
    ends = [float(np.quantile(np.abs(nonzero[name]), 0.995)) for name in drawn]
    edge = max(ends)
    colours = [
        BLUE,
        RED,
        *(OKABE_ITO[name] for name in ("bluish green", "orange", "sky blue", "reddish purple", "black")),
    ]
    data = []
    for name, colour in zip(drawn, colours, strict=False):
        bins = int(min(81, max(15, 2 * nonzero[name].size ** 0.5)))
        density, edges = np.histogram(nonzero[name], bins=bins, range=(-edge, edge), density=True)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"{name} ({nonzero[name].size:,})",
                "x": ((edges[1:] + edges[:-1]) / 2).tolist(),
                "y": density.tolist(),
                "line": {"shape": "hvh", "color": colour, "width": 1.7},
                "hovertemplate": f"{html.escape(name)}: density %{{y:.3g}} at %{{x:.3g}}<extra></extra>",
            }
        )
    rest = len([name for name in nonzero if nonzero[name].size]) - len(drawn)
    return figure(
        data,
        titled(
            "Weights that are not zero",
            "of the best network, by layer" + (f"; the {rest} smaller layers are left out" if rest else ""),
        ),
        xaxis={"title": {"text": "weight"}},
        yaxis={"title": {"text": "density"}, "rangemode": "tozero"},
        showlegend=True,
    )


def exponent(record: TrialRecord) -> float | None:
    """Return the exponent p of a trial at the end of its training. With the method lpss, the weights of each neuron lie
    on a sphere of the p-norm, and p may change during the training. Return None if the trial's parameters contain no
    number p."""
    value = record.params.get("p", record.params.get("p.stop"))
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _measured(done: Sequence[TrialRecord], best: TrialRecord | None) -> list[dict[str, Any]]:
    """Return the measured Hoyer sparsities of the trials as plotly's traces. The best trial has a trace of its own."""
    looks = (
        ("measured", False, {"color": SKY, "size": 9, "line": {"color": BLUE, "width": 1}}),
        (f"best: {best.name}" if best else "", True, {"color": RED, "size": 17, "symbol": "star"}),
    )
    groups = [(name, [r for r in done if (r is best) is is_best], look) for name, is_best, look in looks]
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": [exponent(r) for r in members],
            "y": [r.hoyer for r in members],
            "marker": look,
            "text": [hover_text(r) for r in members],
            "hovertemplate": "Hoyer sparsity %{y:.3f}<br>%{text}<extra></extra>",
        }
        for name, members, look in groups
        if members
    ]


def hoyer_figure(records: Sequence[TrialRecord], goal: Goal, fan_in: int) -> go.Figure | None:
    """Return a plot of the Hoyer sparsity of completed trials against p, the exponent of the sphere. Return None if no
    trial has a p.

    Curves show the expected Hoyer sparsity of neurons before pruning, for three distributions of their weights (see
    sparsity.hoyer).

    Args:
        records: the trials.
        goal: the study's target sparsities and limits, as a `Goal`.
        fan_in: the number of input weights of a neuron, for the curves.
    """
    from tune_sparsity.sparsity.hoyer import expected_gaussian_dual, expected_paper, expected_uniform

    done = [r for r in records if r.state is TrialState.COMPLETED and r.hoyer is not None and exponent(r) is not None]
    if not done:
        return None
    best = goal.best(records)
    ps = [1.05 + 0.95 * i / 60 for i in range(61)]
    curves = [
        ("expected: v Gaussian", expected_gaussian_dual, OKABE_ITO["bluish green"], "solid"),
        ("expected: paper's curve", expected_paper, OKABE_ITO["orange"], "dash"),
        ("expected: uniform on the sphere", expected_uniform, "black", "dot"),
    ]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": ps,
            # The formula for Gaussian v is valid for many weights. It exceeds 1 if p is near 1.
            "y": [min(1.0, expected(p, fan_in)) for p in ps],
            "line": {"color": colour, "dash": dash, "width": 2},
            "hovertemplate": "p %{x:.3f}: %{y:.3f}<extra>" + name + "</extra>",
        }
        for name, expected, colour, dash in curves
    ]
    data += _measured(done, best)
    note = f"expected of {fan_in} weights before pruning; measured where {percent(goal.lowest)} or more are pruned"
    return figure(
        data,
        titled("Hoyer sparsity, measured and expected", note),
        xaxis={"title": {"text": "p, the sphere's exponent"}},
        yaxis={"title": {"text": "Hoyer sparsity"}, "range": [0, 1.02]},
        showlegend=True,
    )
