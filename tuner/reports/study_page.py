"""`tune-sparsity report`: a study as a page for a colleague: what was asked and found, at what cost, how to use it."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tune_sparsity.tuner.reports.page import page, picture, table
from tune_sparsity.tuner.reports.plots.gallery import figures, pictured
from tune_sparsity.tuner.reports.text import duration, percent, shown_path
from tune_sparsity.tuner.results.finished_study import EndedStudy
from tune_sparsity.tuner.study.goal import Goal, GoalKind
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState


def report_page(study: EndedStudy) -> str:
    """The whole page."""
    records, goal = study.records(), study.goal
    title = f"{study.result['experiment']}: {_wanted(goal)}"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="lead">{_verdict(study, goal)}</p>',
        "<h2>What was asked</h2>",
        table(_asked(study)),
        "<h2>What was found</h2>",
        *_found(study, goal, records),
        "<h2>At what cost</h2>",
        table(_cost(study, records)),
        "<h2>How to use it</h2>",
        *_use(study),
        "<h2>Pictures</h2>",
    ]
    drawn = figures(pictured(f"{study.result['experiment']}: accuracy against sparsity", goal, records, study.folder))
    return page(title, "\n".join([*parts, *(picture(name, figure) for name, figure in drawn.items())]))


def _wanted(goal: Goal) -> str:
    if goal.kind is GoalKind.FRONT:
        return f"accuracy from {percent(goal.lowest)} to {percent(goal.highest)} sparsity"
    if goal.kind is GoalKind.MAX_NONZERO:
        return f"the most accurate network with at most {goal.max_nonzero:,} nonzero weights"
    targets = " and ".join(percent(target) for target in goal.targets)
    return f"the most accurate network{'s' if len(goal.targets) > 1 else ''} at least {targets} sparse"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _share(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}%}"


def _verdict(study: EndedStudy, goal: Goal) -> str:
    best = study.result["best"]
    if best is None:
        return f"No trial completed with a sparsity of {percent(goal.lowest)} or more."
    test = f", and on the test data, which the search never saw, {_share(best['test_accuracy'])}"
    zero = f"{_share(best['sparsity'])} of its weights are zero"
    if best["weights"] and best["nonzero_weights"] is not None:
        zero += f": {best['nonzero_weights']:,} of {best['weights']:,} are left"
    accuracy = f"has an accuracy of {_share(best['val_accuracy'])} on the validation data"
    text = f"The best network, {best['trial']}, {accuracy}{test if best['test_accuracy'] is not None else ''}. {zero}."
    return html.escape(text)


def _asked(study: EndedStudy) -> list[tuple[str, Any]]:
    config, about = study.config, study.about
    rows: list[tuple[str, Any]] = [
        ("study", config.study),
        ("experiment", config.experiment),
        ("goal", study.goal),
        ("methods", ", ".join(config.method)),
        ("search space", config.space or "the methods' own"),
        ("trials", f"{config.trials} of {config.epochs} epochs at most"),
        ("sampler, early stopping", f"{config.sampler}, {config.scheduler}"),
        ("seed", config.seed),
        ("data (SHA-256)", about.get("data_sha256")),
        ("device", about.get("device")),
        ("versions", ", ".join(f"{name} {version}" for name, version in (about.get("versions") or {}).items())),
    ]
    return [row for row in rows if row[1] is not None]


def _found(study: EndedStudy, goal: Goal, records: Sequence[TrialRecord]) -> list[str]:
    """The front, or each target's best; and the methods' best trained again."""
    tests = _test_accuracies(study)
    best = goal.best(records)
    if goal.kind is GoalKind.TARGETS:
        met = [(percent(target), one) for target, one in goal.best_at(records) if one is not None]
        leading, rows = ["target"], met
    else:
        leading, rows = [], [("", record) for record in goal.front(records)]
    if not rows:
        return ["<p>No trial is feasible: more trials, more epochs or a lower target may give one.</p>"]
    header = [*leading, "trial", "method", "validation", "test", "sparsity", "weights left", "parameters"]
    cells = [
        [
            *([target] if leading else []),
            *(record.name, record.method, _share(record.val_accuracy), _share(tests.get(record.name))),
            *(_share(record.sparsity, 3), "" if record.nonzero_weights is None else f"{record.nonzero_weights:,}"),
            ", ".join(f"{name} {_number(value)}" for name, value in record.params.items()),
        ]
        for target, record in rows
    ]
    marked = next((i for i, (_, record) in enumerate(rows) if record is best), None)
    parts = [table(cells, header, marked)]
    if goal.kind is not GoalKind.TARGETS:
        parts.append('<p class="quiet">These are the Pareto front: no other feasible trial is better in both.</p>')
    if (above := goal.missing_above(records)) is not None and goal.multi_objective:
        parts.append(
            f"<p>No trial was completed above a sparsity of {percent(above)}: more trials may reach further.</p>"
        )
    if again := study.result.get("final_seeds"):
        rows_again = [[str(value) for value in one.values()] for one in again]
        parts += ["<h3>Each method's best, trained again</h3>", table(rows_again, list(again[0]))]
    return parts


def _test_accuracies(study: EndedStudy) -> dict[str, float]:
    """Of the networks that were judged on the test data, by their trials' names."""
    result = study.result
    judged = [result["best"], *(one["best"] for one in result.get("targets", ()))]
    judged += result.get("front", {}).get("networks", [])
    return {one["trial"]: one["test_accuracy"] for one in judged if one and one.get("test_accuracy") is not None}


def _cost(study: EndedStudy, records: Sequence[TrialRecord]) -> list[tuple[str, Any]]:
    seconds, states = study.result["seconds"], study.result["states"]
    trained = sum(record.epochs for record in records)
    whole = len(records) * (study.config.epochs or 0)
    stopped = [record for record in records if record.state is TrialState.PRUNED]
    saved = sum((study.config.epochs or 0) - record.epochs for record in stopped)
    shares = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items() if name != "total")
    stopping = f"; early stopping saved {saved:,} of {whole:,}" if saved and whole else ""
    return [
        ("time", f"{duration(seconds['total'])}: {shares}"),
        ("trials", ", ".join(f"{count} {state.replace('pruned', 'stopped early')}" for state, count in states.items())),
        ("epochs", f"{trained:,} trained{stopping}"),
        ("worker time", f"{duration(sum(record.seconds for record in records))} over all trials"),
    ]


def _use(study: EndedStudy) -> list[str]:
    """What to type, to use the best network and to have the study again."""
    name, call = study.config.study, "tune-sparsity"  # not where it lies here: the page is read elsewhere
    place = study.config.storage
    stored = place.synced
    storage = str(place) if stored else shown_path(Path(str(place)))
    where = "" if storage == "studies" else f" --storage {storage}"
    folder = name if stored else shown_path(study.folder)
    again = f"{call} --config {folder}/study.yaml --study {name}-again"
    if study.result["best"] is None:
        return [f"<p>Run it again with other options:</p><pre>{html.escape(again)}</pre>"]
    file = f"{folder}/best/model.safetensors"
    code = (
        "from safetensors.torch import load_file\n\n"
        f'stored = load_file("{file}")\n'
        "network.load_state_dict({name: t for name, t in stored.items() if not name.endswith('.mask')})"
    )
    described = f"its layers, preprocessing and classes are in {os.path.dirname(file)}/model.json."
    commands = f"{call} export {name} --format onnx{where}\n{call} ui {name}{where}"
    fetch = f"<p>Here {html.escape(folder)}/ is a copy of {html.escape(storage)}/{html.escape(name)}/.</p>"
    return [
        *([fetch] if stored else []),
        f"<p>The weights are ordinary dense tensors with exact zeros; {html.escape(described)}</p>",
        f"<pre>{html.escape(code)}</pre>",
        "<p>As a file for other programs (also --format safetensors, torch or csr), and all runs side by side:</p>",
        f"<pre>{html.escape(commands)}</pre>",
        f"<p>The same study again:</p><pre>{html.escape(again)}</pre>",
    ]
