"""Make the page of `tune-sparsity report`: the goal and the settings of a study, its results, the cost of the search,
and how to use its networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tune_sparsity.experiments.base import Data, Experiment
from tune_sparsity.sparsity import DeadNeurons
from tune_sparsity.tuner.config.experiment import experiment_of, sound_data
from tune_sparsity.tuner.reports.advice import advice
from tune_sparsity.tuner.reports.groups import HEADER as GROUP_HEADER
from tune_sparsity.tuner.reports.groups import group_line, group_rows, passed_table, reflection_line
from tune_sparsity.tuner.reports.page import page
from tune_sparsity.tuner.reports.plots.gallery import figures, front_title, pictured
from tune_sparsity.tuner.reports.savings import HEADER as SAVINGS_HEADER
from tune_sparsity.tuner.reports.savings import savings
from tune_sparsity.tuner.reports.text import (
    dead_text,
    duration,
    estimate_text,
    latency_text,
    percent,
    short_number,
    shown_path,
    spikes_text,
)
from tune_sparsity.tuner.results.finished_study import EndedStudy
from tune_sparsity.tuner.results.tables import latencies_in
from tune_sparsity.tuner.study.goal import Goal, GoalKind
from tune_sparsity.tuner.study.objective import ACCURACY, Objective
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState


def report_page(study: EndedStudy, *, measure: bool = True) -> str:
    """Return the page of a study as HTML.

    Args:
        study: the study, which has ended.
        measure: whether to run the best network on this machine, to measure how much its zeros save.
    """
    given = _data(study) if study.result.get("group") else None
    saved, missing = savings(study, given) if measure else ([], "")
    records, goal = study.records(), study.goal
    experiment = study.result["experiment"]
    return page(
        "study.html",
        f"{experiment}: {_wanted(goal)}",
        figures(pictured(front_title(experiment, goal), goal, records, study.folder)),
        verdict=_verdict(study, goal),
        advice=advice(study.config.study, goal, records, study.result.get("group") or {}),
        dead=_dead(study),
        spikes=spikes_text(study.result.get("spike_rates") or {}),
        saved=saved,
        saved_header=SAVINGS_HEADER,
        not_measured=missing,
        asked=_asked(study),
        **_found(study, goal, records, given[1] if given else None),
        cost=_cost(study, records),
        **_use(study),
    )


def _data(study: EndedStudy) -> tuple[Experiment, Data] | None:
    """Return the study's experiment and its data. Return None if they cannot be loaded here."""
    try:
        experiment = experiment_of(study.config)
        return experiment, sound_data(study.config, experiment)
    except (Exception, SystemExit):  # the user's code may raise anything
        return None


def _wanted(goal: Goal) -> str:
    name = goal.objective.name
    if goal.kind is GoalKind.FRONT:
        return f"{name} from {percent(goal.lowest)} to {percent(goal.highest)} sparsity"
    network = "networks" if len(goal.targets) > 1 else "network"
    extreme = "highest" if goal.objective.maximize else "lowest"
    best = f"most accurate {network}" if goal.objective == ACCURACY else f"{network} of {extreme} {name}"
    if goal.kind is GoalKind.MAX_NONZERO:
        return f"the {best} with at most {goal.max_nonzero:,} nonzero weights"
    if goal.kind is GoalKind.MAX_BYTES:
        return f"the {best} in a file of at most {goal.max_bytes:,} bytes"
    if goal.kind is GoalKind.MAX_MACS:
        return f"the {best} with at most {goal.max_macs:,} multiply-adds"
    if goal.kind is GoalKind.MAX_LATENCY:
        return f"the {best} of at most {goal.latency}"
    targets = " and ".join(percent(target) for target in goal.targets)
    return f"the {best} at least {targets} sparse"


def _share(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}%}"


def _verdict(study: EndedStudy, goal: Goal) -> str:
    best, objective = study.result["best"], goal.objective
    timed = latency_text(goal, latencies_in(study.result), best and best["trial"])
    if best is None:
        return f"{timed[0].upper()}{timed[1:]}." if timed else f"No trial completed with {goal.condition}."
    test = ""
    if (value := best[objective.test]) is not None:
        test = f", and on the test data, which the search never saw, {objective.text(value)}"
    zero = f"{_share(best['sparsity'])} of its weights are zero"
    if best["weights"] and best["nonzero_weights"] is not None:
        zero += f": {best['nonzero_weights']:,} of {best['weights']:,} are left"
    if best.get("sparsity_matrices") is not None:
        zero += f" ({_share(best['sparsity_matrices'])} over all weight matrices"
        zero += f" and {_share(best['sparsity_total'])} over all parameters{_dense(study)})"
    reaches = "has an accuracy of" if objective == ACCURACY else f"reaches {objective.name}"
    value = f"{reaches} {objective.text(best[objective.val])} on the validation data"
    takes = f" Its latency was {timed}." if timed else ""
    return f"The best network, {best['trial']}, {value}{test}.{_expected(best, objective)} {zero}.{takes}"


def _expected(best: dict[str, Any], objective: Objective) -> str:
    """Return a sentence with the estimate of the best network's metric on new data. Return "" without an estimate:
    earlier versions of this package wrote none."""
    name = f"estimated_{objective.name}"
    if name not in best:
        return ""
    estimate = estimate_text(objective, best[name], best[f"{name}_error"])
    return f" The best of several measured values is too high on average: expect about {estimate} on new data."


def _dense(study: EndedStudy) -> str:
    """Return the names of the weight matrices that stay dense, with their shares of all weights in matrices. Results of
    earlier versions of this package have no shares."""
    shares = study.result.get("dense_share") or dict.fromkeys(study.result.get("dense_weights") or {})
    named = ", ".join(f"{name} {_share(share, 1)}".rstrip() for name, share in shares.items())
    return f"; dense: {named}" if named else ""


def _dead(study: EndedStudy) -> str:
    """Return a text about the best network's neurons without a connection. Return "" if there are none, or if the study
    was run with a version of this package that did not count them."""
    dead = study.result.get("dead_neurons") or {}
    return dead_text({name: DeadNeurons(**one) for name, one in dead.items()}, study.result.get("pattern"))


def _asked(study: EndedStudy) -> list[tuple[str, Any]]:
    config, about = study.config, study.about
    rows: list[tuple[str, Any]] = [
        ("study", config.study),
        ("experiment", config.experiment),
        ("goal", study.goal),
        *([] if study.goal.objective == ACCURACY else [("metric", study.goal.objective)]),
        ("methods", ", ".join(config.method)),
        ("pattern of the zeros", study.result.get("pattern")),
        ("search space", config.space or "the methods' own"),
        ("trials", f"{config.trials} of {config.epochs} epochs at most"),
        ("sampler, early stopping", f"{config.sampler}, {config.scheduler}"),
        ("seed", config.seed),
        ("data (SHA-256)", about.get("data_sha256")),
        ("device", about.get("device")),
        ("versions", ", ".join(f"{name} {version}" for name, version in (about.get("versions") or {}).items())),
    ]
    return [row for row in rows if row[1] is not None]


def _found(study: EndedStudy, goal: Goal, records: Sequence[TrialRecord], data: Data | None) -> dict[str, Any]:
    """Return the variables of the template about the results: the front or the best network at each target, the
    methods' best trials trained again, and the groups of two networks."""
    tests = _test_values(study, goal.objective)
    best = goal.best(records)
    by_target = goal.kind is GoalKind.TARGETS
    if by_target:
        rows = [(percent(target), one) for target, one in goal.best_at(records) if one is not None]
    else:
        rows = [("", record) for record in goal.front(records)]
    cells = [
        [
            *([target] if by_target else []),
            *(record.name, record.method, record.text, tests.get(record.name, "")),
            *(_share(record.sparsity, 3), "" if record.nonzero_weights is None else f"{record.nonzero_weights:,}"),
            "" if record.size_bytes is None else f"{record.size_bytes:,}",
            ", ".join(f"{name} {short_number(value)}" for name, value in record.params.items()),
        ]
        for target, record in rows
    ]
    header = ["trial", "method", "validation", "test", "sparsity", "weights left", "bytes", "parameters"]
    above = goal.missing_above(records) if goal.multi_objective else None
    again, group = study.result.get("final_seeds") or [], study.result.get("group") or {}
    return {
        "rows": cells,
        "header": ["target", *header] if by_target else header,
        "best_row": next((i for i, (_, record) in enumerate(rows) if record is best), None),
        "is_front": not by_target,
        "missing_above": None if above is None else percent(above),
        "again": [list(one.values()) for one in again],
        "again_header": list(again[0]) if again else [],
        "groups": group_rows(group, goal.objective),
        "groups_header": GROUP_HEADER,
        "group": group_line(group, goal.objective),
        "reflection": reflection_line(group, goal.objective),
        **passed_table(group, data),
    }


def _test_values(study: EndedStudy, objective: Objective) -> dict[str, str]:
    """Return the test metric of each network that was measured on the test data, by the trials' names."""
    result = study.result
    judged = [result["best"], *(one["best"] for one in result.get("targets", ()))]
    judged += result.get("front", {}).get("networks", [])
    known = [one for one in judged if one and one.get(objective.test) is not None]
    return {one["trial"]: objective.text(one[objective.test]) for one in known}


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


def _use(study: EndedStudy) -> dict[str, Any]:
    """Return the commands that use the best network and run the study again."""
    name, place = study.config.study, study.config.storage
    stored = place.synced
    storage = str(place) if stored else shown_path(Path(str(place)))
    return {
        "network": study.result["best"],
        "name": name,
        "stored": stored,
        "storage": storage,
        "folder": name if stored else shown_path(study.folder),
        "where": "" if storage == "studies" else f" --storage {storage}",
    }
