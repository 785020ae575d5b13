"""All pictures of a study, and pages of them with plotly.js in once, which ask the network for nothing."""

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

_FAN_IN = 100  # where no network is there to ask


@dataclass(frozen=True)
class Pictured:
    """Hold the content of a study's pictures. `weights`: the best network's prunable ones, by name. `groups`: of two
    networks, as result.json has them."""

    title: str
    goal: Goal
    records: Sequence[TrialRecord]
    epochs: Mapping[int, Series] = field(default_factory=dict)
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    groups: Sequence[Mapping[str, Any]] = ()


def front_title(experiment: str, goal: Goal) -> str:
    """Return the title of a study's front."""
    return f"{experiment}: {goal.objective.name} against sparsity"


def pictured(title: str, goal: Goal, records: Sequence[TrialRecord], folder: Path) -> Pictured:
    """With the epochs and the best network from the study's folder, as far as they are there."""
    weights = best_weights(folder, goal.best(records))
    return Pictured(title, goal, records, read_epochs(folder / EPOCHS_CSV), weights, _groups(folder / RESULT_JSON))


def _groups(result: Path) -> list[dict[str, Any]]:
    """Return the groups of two networks that an ended study has."""
    try:
        return list(json.loads(result.read_text(encoding="utf-8")).get("group", {}).get("groups", ()))
    except OSError:
        return []


def best_weights(folder: Path, best: TrialRecord | None) -> dict[str, np.ndarray]:
    """Return the prunable weights of the study's best network, neurons first: while the study runs from where the trial
    left it; none where there is no such network."""
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
    """So that layer 10 comes after layer 2: the file has the names in no order of the network's."""
    parts = re.split(r"(\d+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def figures(study: Pictured) -> dict[str, go.Figure]:
    """Return the study's pictures by their short names, those left out that have nothing to show yet."""
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
    """Return all pictures of a study as a page."""
    return page("pictures.html", heading, figures(study))
