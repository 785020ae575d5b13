"""Conclude a study after its search: test its best networks, write its files, and log the results to MLflow."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_sparsity.experiments import OwnLoop
from tune_sparsity.experiments.metrics import metric_of
from tune_sparsity.experiments.registry import has_source
from tune_sparsity.tuner.driver.groups import group_model, with_groups
from tune_sparsity.tuner.driver.latency import decide
from tune_sparsity.tuner.driver.prepare import Prepared
from tune_sparsity.tuner.errors import disk_error, one_line
from tune_sparsity.tuner.reports.text import trials_text
from tune_sparsity.tuner.results.cascade import group_metrics, main_group
from tune_sparsity.tuner.results.networks import Written
from tune_sparsity.tuner.results.retraining import Retrained, Retraining
from tune_sparsity.tuner.results.tables import StudyOutcome, StudySeconds, write_result, write_results
from tune_sparsity.tuner.study.goal import GoalKind
from tune_sparsity.tuner.study.layout import BEST, CHECKPOINTS, MODEL, STUDY_YAML, WEIGHTS, weights_file
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState
from tune_sparsity.tuner.tracking.model import model_note

if TYPE_CHECKING:
    from tune_sparsity.tuner.driver.ray_tune import StopWhen
    from tune_sparsity.tuner.driver.study_run import StudyRun
    from tune_sparsity.tuner.results.inference_cost import Timing
    from tune_sparsity.tuner.results.networks import BestModel
    from tune_sparsity.tuner.tracking.tracker import Tracker


@dataclass(frozen=True)
class Times:
    """The values of time.monotonic() at the start of the command and at the start of the study."""

    launched: float
    began: float


@dataclass(frozen=True)
class Finished:
    """The outcome of a study, with the reasons for its end and for missing results."""

    outcome: StudyOutcome
    interrupted: bool
    out_of_time: bool
    problems: list[str]  # a line for each part of the study that is missing in MLflow
    failures: list[str]  # a line for each measurement, network or model that is missing
    ended: str  # a sentence that says why the search ended
    first_failure: str  # the reason why the first failed trial failed, or ""
    ray_states: dict[str, str]  # trial name -> Ray's state of the trial, for the trials that Ray ran
    optuna_states: dict[str, str]  # trial name -> Optuna's state of the trial, for all begun trials


def conclude(
    prepared: Prepared,
    study: StudyRun,
    tracker: Tracker,
    stop: StopWhen,
    times: Times,
    concurrency: int,
    retrained: Retraining,
) -> Finished:
    """Test the best networks, write the files, log the results to MLflow, and return the outcome.

    trials.csv and the other tables are written before the networks are tested on the test data. The tables therefore
    exist even if a test fails.

    Args:
        prepared: the prepared study.
        study: the study, after its search has ended.
        tracker: the tracker that has recorded the trials for MLflow.
        stop: knows whether the user or the time budget ended the search.
        times: the times when the command and the study began.
        concurrency: the number of trials that ran at the same time.
        retrained: the results of training each method's best trial again with other seeds.
    """
    from tune_sparsity.tuner.driver.live_plots import final_pictures

    config, searched, tracked = prepared.config, time.monotonic(), tracker.seconds
    records = [record for record in study.records.values() if record.state is not TrialState.RUNNING]
    given = (config.folder, prepared.experiment, prepared.data)
    decision = decide(prepared.goal, records, *given, measure=not stop.asked)
    prepared = replace(prepared, goal=decision.goal)
    folders = {} if stop.asked else decision.goal.folders(records)
    tables = write_results(_outcome(prepared, records, {}, retrained.methods, decision.latencies))
    written = _networks(prepared, folders)
    outcome, more, missing = _judged(prepared, records, folders, written, retrained, decision.latencies)
    failures = [*decision.problems, *missing, *_log_networks(prepared, outcome, folders | more, tracker)]
    write_result(outcome)
    all_failed = bool(records) and all(record.state is TrialState.FAILED for record in records)
    tracker.finish_study(
        status="KILLED" if stop.asked else "FAILED" if all_failed else "FINISHED",
        metrics=_metrics(outcome),
        pareto={record.number for record in outcome.front},
        artifacts=[*tables, *final_pictures(prepared, records), config.folder / STUDY_YAML],
    )
    tracker.close()
    seconds = _seconds(study, times, searched, tracker.seconds, tracker.seconds - tracked, concurrency)
    outcome = replace(
        outcome, seconds=seconds, mlflow_experiment_id=tracker.experiment_id, mlflow_run_id=tracker.run_id
    )
    write_result(outcome)
    if folders and {record.number for record in folders.values()} <= set(written.networks):
        shutil.rmtree(config.folder / WEIGHTS, ignore_errors=True)
    if not stop.asked:
        shutil.rmtree(config.folder / CHECKPOINTS, ignore_errors=True)
    first = next((record.reason for record in records if record.state is TrialState.FAILED), "")
    return Finished(outcome, stop.asked, stop.out_of_time, tracker.problems, failures, _why(study, stop), first, {}, {})


def _seconds(
    study: StudyRun, times: Times, searched: float, tracking: float, tracked: float, concurrency: int
) -> StudySeconds:
    """Return how many seconds each part of the study took.

    Args:
        searched: the time.monotonic() at which the search had ended.
        tracking: the seconds that the driver spent on MLflow during the whole study.
        tracked: the seconds that the driver spent on MLflow after the search.
    """
    ended = time.monotonic()
    return StudySeconds(
        total=ended - times.launched,
        startup=(study.first_epoch_began or searched) - times.launched,
        training=study.training_seconds / concurrency,
        sampling=study.sampling_seconds,
        tracking=tracking,
        finishing=ended - searched - tracked,
    ).without_overlap()


def _networks(prepared: Prepared, folders: dict[str, TrialRecord]) -> Written:
    """Measure the networks of these trials on the test data, and write each network into its folder."""
    from tune_sparsity.tuner.results.networks import measuring_device, write_networks

    if not folders:
        return Written({}, [])
    config = prepared.config

    def left_by(record: TrialRecord) -> Path:  # the file is gone if the study ended in an earlier process
        return weights_file(config.folder / WEIGHTS, record.number)

    device = measuring_device(config)
    return write_networks(folders, left_by, config.folder, prepared.experiment, prepared.data, device)


def _outcome(
    prepared: Prepared,
    records: list[TrialRecord],
    networks: Mapping[int, BestModel],
    retrained: Sequence[Retrained],
    latencies: Mapping[str, Timing],
) -> StudyOutcome:
    """Return the outcome of the study.

    Args:
        networks: the networks that were measured on the test data, as a dict from the trials' numbers to the measures.
    """
    config, metric = prepared.config, metric_of(prepared.experiment.metric)
    outcome = StudyOutcome(
        study=config.study,
        goal=prepared.goal,
        experiment=prepared.experiment.name,
        method=",".join(config.method),
        records=records,
        folder=config.folder,
        test_values={
            number: network.test_value for number, network in networks.items() if network.test_value is not None
        },
        weights=next((network.weights for network in networks.values()), None),
        store=config.storage.address(config.study) if config.storage.synced else "",
        tracking_uri=config.tracking_uri,
        retrained=retrained,
        size=prepared.size,
        latencies=latencies,
        examples=prepared.data.val.examples if metric.each and metric.percent else None,
    )
    if outcome.best is not None and outcome.best.number in networks:
        best = networks[outcome.best.number]
        return replace(outcome, sparsity_by_layer=best.by_layer, dead_neurons=best.dead)
    return outcome


def _judged(
    prepared: Prepared,
    records: list[TrialRecord],
    folders: Mapping[str, TrialRecord],
    written: Written,
    retrained: Retraining,
    latencies: Mapping[str, Timing],
) -> tuple[StudyOutcome, dict[str, TrialRecord], list[str]]:
    """Return the outcome of the study, with groups (--group) and an ensemble (--ensemble) if the user wants them.

    Returns:
        Three values. The first value is the outcome. The second value describes the networks that were trained again
        because of the option `--group reflect`. It is a dict from a network's folder to the network's trial. The third
        value is a list with a line for each result that is missing.
    """
    outcome = _outcome(prepared, records, written.networks, retrained.methods, latencies)
    outcome, no_ensemble = _with_ensemble(prepared, outcome)
    outcome, more, no_group = with_groups(prepared, outcome, folders)
    return outcome, more, [*retrained.problems, *written.problems, *no_ensemble, *no_group]


def _with_ensemble(prepared: Prepared, outcome: StudyOutcome) -> tuple[StudyOutcome, list[str]]:
    """Add an ensemble around the best network to the outcome, if --ensemble is given. Return the outcome, and a list
    that contains a message if the ensemble could not be made."""
    config, best = prepared.config, outcome.best
    if config.ensemble is None or best is None or best.number not in outcome.test_values:
        return outcome, []
    from tune_sparsity.tuner.results.networks import measuring_device
    from tune_sparsity.tuner.results.resampling import Resampling, ensemble_document

    file, device = config.folder / BEST / MODEL, measuring_device(config)
    try:
        drawn = Resampling(prepared.experiment, prepared.data, file, config.members, device)
        return replace(outcome, ensemble=ensemble_document(drawn, best.size_bytes, best.macs)), []
    except (Exception, SystemExit) as error:  # the user's network or metric may raise anything
        return outcome, [f"there is no ensemble around {best.name}: {one_line(error)}"]


def _short(outcome: StudyOutcome) -> list[str]:
    """Return a list with a warning if a user's own loop trained the best network with another number of steps than the
    loop had announced. Otherwise return an empty list."""
    measured = {} if outcome.best is None else outcome.best.metrics
    made, announced = measured.get("steps"), measured.get("steps_announced")
    if outcome.best is None or made is None or announced is None or made == announced:
        return []
    name = outcome.best.name
    return [f"the loop made {made:g} steps in {name}, but had announced {announced:g} steps to trial.sparsify"]


def _log_networks(
    prepared: Prepared, outcome: StudyOutcome, folders: Mapping[str, TrialRecord], tracker: Tracker
) -> list[str]:
    """Send the reported networks to MLflow. Also log the best network and a group as MLflow models. Return a line for
    each model that is missing."""
    if not folders:
        return []
    folder = prepared.config.folder
    there = [name for name in folders if (folder / name).exists()]
    best = next((name for name in there if folders[name] is outcome.best), None)
    models, failures = dict[str, dict[str, Any] | None](), _short(outcome)
    if isinstance(prepared.experiment, OwnLoop) and not prepared.experiment.rebuilt:
        name = prepared.experiment.name
        best, failures = (
            None,
            [*failures, f"MLflow has no model of the best network: set {name}.model to a function that makes it"],
        )
    notes: dict[str, Callable[[], dict[str, Any] | None]] = {
        "best network": lambda: None if best is None else _model(prepared, outcome, folder / best),
        "group": lambda: group_model(prepared, outcome, {folders[name].name: folder / name for name in there}),
    }
    for what, note in notes.items() if has_source(prepared.config.experiment) else ():
        try:
            models[what] = note()
        except (Exception, SystemExit) as error:  # the user's network may raise anything
            if disk_error(error):
                raise
            failures += [f"the {what} was not logged as a model: {one_line(error)}"]
    tops = [folder / top for top in dict.fromkeys(name.split("/")[0] for name in there)]
    tracker.log_networks(tops, models.get("best network"), models.get("group"))
    return failures


def _model(prepared: Prepared, outcome: StudyOutcome, network: Path) -> dict[str, Any]:
    """Return the description from which MLflow's model of the best network is made."""
    best = outcome.best
    assert best is not None
    measured = {
        best.objective.val: best.value,
        best.objective.test: outcome.test_value,
        "sparsity": best.sparsity,
        "sparsity_total": best.sparsity_total,
        "nonzero_weights": best.nonzero_weights,
        "size_bytes": best.size_bytes,
        "macs": best.macs,
        "syn_ops": best.syn_ops,
        "bit_ops": best.bit_ops,
        "latency_ms": None if outcome.latency is None else outcome.latency.ms,
    }
    tags = {"study": outcome.study, "trial": best.name, "method": best.method, "target": prepared.goal.option}
    return model_note(
        prepared.config.folder,
        network,
        prepared.experiment,
        prepared.config.experiment,
        prepared.data,
        tags={**tags, "experiment": outcome.experiment},
        metrics={name: value for name, value in measured.items() if value is not None},
        register=prepared.config.register,
    )


def _why(study: StudyRun, stop: StopWhen) -> str:
    """Return a sentence that says why the search ended."""
    begun = len(study.records)
    if stop.asked:
        return f"The search was interrupted after {trials_text(begun)}."
    if stop.out_of_time:
        return f"The search ended after {trials_text(begun)}: the time budget was used up."
    return study.why_ended


def _metrics(outcome: StudyOutcome) -> dict[str, float]:
    """Return the metrics of the study for MLflow's parent run."""
    goal, records = outcome.goal, outcome.records
    area = goal.hypervolume(records)
    metrics = {"hypervolume": area, "feasible_trials": float(sum(goal.feasible(record) for record in records))}
    if goal.kind is GoalKind.FRONT:
        metrics[f"front_mean_{goal.objective.name}"] = goal.mean_value(area)
    if outcome.latency is not None:
        metrics["best_latency_ms"] = outcome.latency.ms
    if (group := main_group(outcome.group)) is not None:
        metrics |= {f"group_{name}": value for name, value in group_metrics(group).items()}
    found = {"": outcome.best}
    if goal.kind is GoalKind.TARGETS:
        found |= {f"_at_{target!r}": best for target, best in goal.best_at(records)}
    for where, best in found.items():
        if best is None:
            continue
        if best.value is not None:
            metrics[f"best_{goal.objective.val}{where}"] = best.value
        if (value := outcome.test_values.get(best.number)) is not None:
            metrics[f"best_{goal.objective.test}{where}"] = value
        costs = {name: getattr(best, name) for name in ("size_bytes", "macs", "syn_ops", "bit_ops")}
        more = {"sparsity_matrices": outcome.sparsity_matrices(best), **costs}
        metrics |= {f"best_{name}{where}": value for name, value in more.items() if value is not None}
    return metrics
