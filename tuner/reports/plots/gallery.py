"""Draw all plots of a study, and put them on one page that works offline."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tune_sparsity.tuner.reports.page import page
from tune_sparsity.tuner.reports.plots.front import front_figure
from tune_sparsity.tuner.reports.plots.network import hoyer_figure, layers_figure, training_figure, weights_figure
from tune_sparsity.tuner.reports.plots.search import curves_figure, importance_figure, parallel_figure, progress_figure
from tune_sparsity.tuner.reports.plots.size import bytes_figure, macs_figure
from tune_sparsity.tuner.study.epochs import Series, read_epochs
from tune_sparsity.tuner.study.goal import Goal
from tune_sparsity.tuner.study.layout import EPOCHS_CSV, RESULT_JSON
from tune_sparsity.tuner.study.trial import TrialRecord
from tune_sparsity.tuner.system.arrays import as_array

if TYPE_CHECKING:
    import numpy as np
    import plotly.graph_objects as go

_FAN_IN = 100  # the assumed number of input weights of a neuron if there is no trained network yet


@dataclass(frozen=True)
class Pictured:
    """Holds the data for all plots of a study.

    Attributes:
        title: the title of the front's plot.
        goal: the study's target sparsities and limits, as a `Goal`.
        records: the trials.
        epochs: a dict from the number of each trial to the metrics of the trial's epochs, as `read_epochs` returns it.
        weights: the prunable weights of the best network, as a dict from the weights' names in the state_dict to
            arrays.
        groups: the groups of two networks, as in result.json.
    """

    title: str
    goal: Goal
    records: Sequence[TrialRecord]
    epochs: Mapping[int, Series] = field(default_factory=dict)
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    groups: Sequence[Mapping[str, Any]] = ()


def front_title(experiment: str, goal: Goal) -> str:
    """Return the title for the plot of a study's front."""
    return f"{experiment}: {goal.objective.name} against sparsity"


def pictured(title: str, goal: Goal, records: Sequence[TrialRecord], folder: Path) -> Pictured:
    """Return the data for all plots of a study. The epochs and the best network are read from the study's folder, if
    they are there.

    Args:
        title: the title of the front's plot.
        goal: the study's target sparsities and limits, as a `Goal`.
        records: the trials.
        folder: the study's folder.
    """
    weights = best_weights(folder, goal.best(records))
    return Pictured(title, goal, records, read_epochs(folder / EPOCHS_CSV), weights, _groups(folder / RESULT_JSON))


def _groups(result: Path) -> list[dict[str, Any]]:
    """Return the groups of two networks from result.json. Return an empty list if the study has not ended."""
    try:
        return list(json.loads(result.read_text(encoding="utf-8")).get("group", {}).get("groups", ()))
    except OSError:
        return []


def best_weights(folder: Path, best: TrialRecord | None) -> dict[str, np.ndarray]:
    """Return the prunable weights of the study's best network, as a dict from the weights' names in the state_dict to
    arrays. An array has one row for each neuron.

    While the study runs, the weights are read from the file that the trial has written. Return an empty dict if there
    is no best network, or if its file cannot be read.
    """
    from safetensors import safe_open

    from tune_sparsity.tuner.results.networks import mask_names
    from tune_sparsity.tuner.study.layout import MODEL, ORIENTATIONS

    if best is None:
        return {}
    left = folder / ".weights" / f"{best.number}.safetensors"
    try:
        with safe_open(left if left.exists() else folder / "best" / MODEL, "pt") as file:
            names = sorted(mask_names(dict.fromkeys(file.keys())), key=_natural)
            weights = {name: as_array(file.get_tensor(name)) for name in names}
            turned = json.loads((file.metadata() or {}).get(ORIENTATIONS, "{}"))
    except OSError:
        return {}
    return weights | {name: _turned(weights[name], *orientation) for name, orientation in turned.items()}


def _turned(weight: np.ndarray, fan_in: list[int], groups: int) -> np.ndarray:
    import torch

    from tune_sparsity.sparsity import Orientation

    return Orientation(tuple(fan_in), groups).turned(torch.from_numpy(weight)).numpy()


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Return a key that sorts "layer10" after "layer2". Sorting is needed because the file does not keep the order of
    the layers."""
    parts = re.split(r"(\d+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def figures(study: Pictured) -> dict[str, go.Figure]:
    """Return the plots of a study, as a dict from short names to plots. Plots without data are left out."""
    from tune_sparsity.tuner.search.importance import importances

    goal, records = study.goal, study.records
    best = goal.best(records)
    fan_in = [values[0].size for values in study.weights.values() for _ in range(len(values)) if values[0].size > 1]
    made = {
        "front": front_figure(records, goal, study.title),
        "bytes": bytes_figure(records, goal),
        "macs": macs_figure(records, goal, study.groups),
        "progress": progress_figure(records, goal),
        "training": None if best is None else training_figure(best, study.epochs.get(best.number, []), goal),
        "layers": layers_figure(study.weights, {} if best is None else best.spike_rates),
        "weights": weights_figure(study.weights),
        "hoyer": hoyer_figure(records, goal, round(median(fan_in)) if fan_in else _FAN_IN),
        "curves": curves_figure(records, study.epochs, goal),
        "parallel": parallel_figure(records, goal),
        "importances": importance_figure(
            *importances(records, None if best is None else best.method), goal.objective.name
        ),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def pictures_page(study: Pictured, heading: str) -> str:
    """Return a page with all plots of a study."""
    return page("pictures.html", heading, figures(study))
