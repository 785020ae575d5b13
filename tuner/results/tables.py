"""Writes the results of a study: trials.csv, pareto.csv and result.json.

Other programs may read these files while the study runs. Each file is therefore replaced in one step. Missing values
are empty in the tables and null in the JSON. The JSON never contains NaN.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tune_sparsity.sparsity import DeadNeurons, NetworkSize
from tune_sparsity.sparsity.patterns import UNSTRUCTURED
from tune_sparsity.tuner.results.inference_cost import Timing
from tune_sparsity.tuner.results.retraining import Retrained
from tune_sparsity.tuner.study.estimate import Estimate, shrunk
from tune_sparsity.tuner.study.goal import Goal, GoalKind
from tune_sparsity.tuner.study.layout import PARETO_CSV, RESULT_JSON, TRIALS_CSV
from tune_sparsity.tuner.study.objective import ACCURACY, Objective
from tune_sparsity.tuner.study.pareto import points_of
from tune_sparsity.tuner.study.trial import COSTS, MEASURES, TrialRecord, TrialState
from tune_sparsity.tuner.system.files import plain, to_json, write_atomically

LEADING_COLUMNS = ("number", "state")
TRAILING_COLUMNS = (
    *("sparsity", "sparsity_matrices", *MEASURES[1:]),
    *("epochs", "seconds", "method", "reason"),
)
"""The columns after the parameters and the metric. All leading and trailing columns except "sparsity_matrices" are
attributes of a TrialRecord."""


@dataclass(frozen=True)
class StudySeconds:
    """The wall-clock time of a study in seconds. After `without_overlap`, the parts and `other` add up to the total.

    Attributes:
        total: the time from the start of the command to the last file.
        startup: the time from the start of the command to the first epoch of a trial.
        training: the sum of the times of all epochs in the workers, divided by the number of trials that ran at once.
        sampling: the time in which the driver proposed trials and recorded their results.
        tracking: the time in which the driver wrote data for MLflow into a file. Another process sends this file to
            MLflow.
        finishing: the time from the end of the search to the last file.
    """

    total: float = 0.0
    startup: float = 0.0
    training: float = 0.0
    sampling: float = 0.0
    tracking: float = 0.0
    finishing: float = 0.0

    @property
    def other(self) -> float:
        """Return the total minus all parts. In this time, workers waited. The result is never negative, although the
        clocks have small errors."""
        parts = (self.startup, self.training, self.sampling, self.tracking, self.finishing)
        return max(0.0, self.total - sum(parts))

    def without_overlap(self) -> StudySeconds:
        """Return these seconds without time that is counted twice. If trials trained while the driver was busy, for
        example with sampling, this time is left out of `training`."""
        rest = self.startup + self.sampling + self.tracking + self.finishing
        return replace(self, training=max(0.0, min(self.training, self.total - rest)))

    def to_dict(self) -> dict[str, float]:
        return {**asdict(self), "other": self.other}


@dataclass(frozen=True)
class StudyOutcome:
    """Holds the results of a study, from which its files and its summary in the terminal are made."""

    study: str
    goal: Goal
    experiment: str
    method: str  # the methods, separated by commas
    records: Sequence[TrialRecord]
    folder: Path  # STORAGE/STUDY, or a local working folder if the study is in an object store
    seconds: StudySeconds = field(default_factory=StudySeconds)
    test_values: Mapping[int, float] = field(default_factory=dict)  # the metric on the test data, by trial number
    weights: int | None = None  # the number of prunable weights in the network
    sparsity_by_layer: Mapping[str, float] = field(default_factory=dict)  # in the best network, in the layers' order
    dead_neurons: Mapping[str, DeadNeurons] = field(default_factory=dict)  # in the best network, by layer
    mlflow_experiment_id: str | None = None
    mlflow_run_id: str | None = None  # the study's parent run
    tracking_uri: str | None = None
    store: str = ""  # the study's address in an object store, or "" if the folder is the study's place
    size: NetworkSize | None = None  # the numbers of prunable and other parameters of the network
    retrained: Sequence[Retrained] = ()  # the results of --final-seeds, the best method first
    group: Mapping[str, Any] = field(default_factory=dict)  # the results of --group
    ensemble: Mapping[str, Any] = field(default_factory=dict)  # the results of --ensemble
    latencies: Mapping[str, Timing] = field(default_factory=dict)  # what --max-latency measured, by trial
    # The number of validation examples, if the metric is the mean of their scores in [0, 1]; otherwise None.
    examples: int | None = None

    @property
    def best(self) -> TrialRecord | None:
        return self.goal.best(self.records)

    @property
    def front(self) -> list[TrialRecord]:
        return self.goal.front(self.records)

    @property
    def test_value(self) -> float | None:
        """Return the metric of the best network on the test data. Return None if there is no best network, or if its
        test metric was not measured."""
        return None if self.best is None else self.test_values.get(self.best.number)

    def estimate(self, record: TrialRecord, target: float) -> Estimate | None:
        """Estimate the metric that the best network at a target would have on new data. Return None if the metric is
        not a mean of scores in [0, 1], because its sampling error is then unknown."""
        points = points_of(self.goal.compared(self.records, target))
        values = [record.objective.value(merit) for _, merit in points]
        if self.examples is None or record.value is None or not all(0 <= value <= 1 for value in values):
            return None
        return shrunk(record.value, values, self.examples)

    @property
    def latency(self) -> Timing | None:
        """Return the measured latency of the best network; None if it was not measured."""
        return None if self.best is None else self.latencies.get(self.best.name)

    @property
    def spike_rates(self) -> dict[str, float]:
        """Return a dict from the name of each spiking layer of the best network to the layer's spike rate. Return an
        empty dict if there are no spiking layers."""
        return {} if self.best is None else self.best.spike_rates

    def sparsity_matrices(self, record: TrialRecord) -> float | None:
        """Return the sparsity of a trial's network over all weight matrices, including matrices that stay dense."""
        return _sparsity_matrices(record, self.size)

    @property
    def states(self) -> dict[str, int]:
        """Return the number of trials in each final state. Running trials are not counted."""
        counts = Counter(record.state for record in self.records)
        return {str(s): counts[s] for s in (TrialState.COMPLETED, TrialState.PRUNED, TrialState.FAILED)}


def _sparsity_matrices(record: TrialRecord, size: NetworkSize | None) -> float | None:
    if size is None or record.nonzero_weights is None:
        return None
    return size.sparsity_matrices(record.nonzero_weights)


def _by_number(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    return sorted(records, key=lambda record: record.number)


def _parameter_columns(records: Iterable[TrialRecord], value: str) -> dict[str, str]:
    """Return a dict from the name of each parameter to the heading of the parameter's column. The columns are in the
    order in which the parameters first occur.

    The heading is the parameter's name. If another column already has this name, the heading gets a prefix: `epochs`
    becomes `param.epochs`. Otherwise some programs could not read the table reliably.

    Args:
        records: the trials.
        value: the heading of the metric's column.
    """
    names = dict.fromkeys(name for record in _by_number(records) for name in record.params)
    taken = {*LEADING_COLUMNS, value, *TRAILING_COLUMNS}
    return {name: f"param.{name}" if name in taken else name for name in names}


def _cell(value: Any) -> str:
    value = plain(value)
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(value)  # the shortest text for exactly this number
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    return " ".join(str(value).splitlines())  # so that each row is one line


def trials_csv(
    records: Sequence[TrialRecord],
    columns_of: Sequence[TrialRecord] | None = None,
    objective: Objective = ACCURACY,
    size: NetworkSize | None = None,
) -> str:
    """Return the trials as a table, with a row for each trial.

    Args:
        records: the trials of the rows, in this order.
        columns_of: the trials whose parameters have columns. If None, these are the trials in `records`.
        objective: the objective of the trials.
        size: the numbers of prunable and other parameters of the network. If None, the column "sparsity_matrices" is
            empty.

    Returns:
        The text of the CSV file, with quotes as in RFC 4180. Each line ends with a line feed.
    """
    parameters = _parameter_columns(records if columns_of is None else columns_of, objective.val)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*LEADING_COLUMNS, *parameters.values(), objective.val, *TRAILING_COLUMNS])
    for record in records:
        own = {**vars(record), "sparsity_matrices": _sparsity_matrices(record, size)}
        leading, trailing = ([own[column] for column in columns] for columns in (LEADING_COLUMNS, TRAILING_COLUMNS))
        values = [*leading, *(record.params.get(name) for name in parameters), record.value, *trailing]
        writer.writerow([_cell(value) for value in values])
    return text.getvalue()


def trial_document(record: TrialRecord) -> dict[str, Any]:
    """Return the entry of a trial in result.json."""
    return {
        "trial": record.name,
        "method": record.method,
        "params": record.params,
        record.objective.val: record.value,
        "sparsity": record.sparsity,
        "sparsity_total": record.sparsity_total,
        "nonzero_weights": record.nonzero_weights,
        **{name: getattr(record, name) for name in COSTS},
    }


def _reported_document(outcome: StudyOutcome, record: TrialRecord) -> dict[str, Any]:
    """Return the entry of a trial in result.json, with the metric of its network on the test data."""
    test = {record.objective.test: outcome.test_values.get(record.number)}
    measured = {**test, "weights": outcome.weights}
    return {**trial_document(record), "sparsity_matrices": outcome.sparsity_matrices(record), **measured}


def _best_document(outcome: StudyOutcome, record: TrialRecord | None, target: float) -> dict[str, Any] | None:
    """Return the entry of the best trial at a target in result.json. It contains the estimate of the trial's metric on
    new data. Return None if there is no trial."""
    if record is None:
        return None
    estimate, name = outcome.estimate(record, target), f"estimated_{record.objective.name}"
    estimated = {} if estimate is None else {name: estimate.value, f"{name}_error": estimate.error}
    return {**_reported_document(outcome, record), **estimated}


def _goal_document(outcome: StudyOutcome) -> dict[str, Any]:
    """Return the entries of result.json that depend on the goal; an empty dict for a goal with one target."""
    goal = outcome.goal
    if goal.kind is GoalKind.TARGETS:
        found = goal.best_at(outcome.records)
        return {"targets": [{"target": t, "best": _best_document(outcome, best, t)} for t, best in found]}
    if goal.kind is GoalKind.MAX_NONZERO:
        return {"max_nonzero": goal.max_nonzero}
    if goal.kind is GoalKind.MAX_BYTES:
        return {"max_bytes": goal.max_bytes}
    if goal.kind is GoalKind.MAX_MACS:
        return {"max_macs": goal.max_macs}
    if goal.kind is GoalKind.MAX_LATENCY:
        latency = None if outcome.latency is None else outcome.latency.ms
        limit = {"max_latency_ms": goal.max_latency, "latency_batch": goal.latency_batch, "max_macs": goal.max_macs}
        measured = [{"trial": name, **one._asdict()} for name, one in outcome.latencies.items()]
        return {**limit, "latency_ms": latency, "latencies": measured}
    if goal.kind is GoalKind.FRONT:
        area = goal.hypervolume(outcome.records)
        mean = {f"mean_{goal.objective.name}": goal.mean_value(area)}
        judged = {"hypervolume": area, "reference": goal.reference, **mean}
        networks = [_reported_document(outcome, record) for record in outcome.front]
        return {"front": {"from": goal.lowest, "to": goal.highest, **judged, "networks": networks}}
    return {}


def latencies_in(document: Mapping[str, Any]) -> dict[str, Timing]:
    """Return the measured latencies in the content of result.json, as a dict from trials' names to the latencies of
    their networks."""
    return {one["trial"]: Timing(one["ms"], one["low"], one["high"]) for one in document.get("latencies", ())}


def result_document(outcome: StudyOutcome) -> dict[str, Any]:
    """Return the content of result.json, which the command also prints if it has the option --json. "best" is None if
    no trial is feasible."""
    dense = outcome.size.dense if outcome.size else ()
    pattern = outcome.size.pattern if outcome.size else UNSTRUCTURED
    document = {
        "study": outcome.study,
        "target": outcome.goal.lowest,
        "metric": outcome.goal.objective.to_dict(),
        **_goal_document(outcome),
        "experiment": outcome.experiment,
        "method": outcome.method,
        "states": outcome.states,
        **({} if pattern == UNSTRUCTURED else {"pattern": str(pattern)}),
        **({"whole_layers": pattern.whole} if pattern.whole else {}),
        "dense_weights": {one.name: one.size for one in dense},
        "dense_share": {one.name: outcome.size.share(one) for one in dense} if outcome.size else {},
        "dead_neurons": {name: one._asdict() for name, one in outcome.dead_neurons.items()},
        **({"spike_rates": outcome.spike_rates} if outcome.spike_rates else {}),
        "best": _best_document(outcome, outcome.best, outcome.goal.lowest),
        "pareto": [trial_document(record) for record in outcome.front],
        **({"final_seeds": [one.to_dict() for one in outcome.retrained]} if outcome.retrained else {}),
        **({"group": outcome.group} if outcome.group else {}),
        **({"ensemble": outcome.ensemble} if outcome.ensemble else {}),
        "seconds": outcome.seconds.to_dict(),
        "mlflow": {"experiment_id": outcome.mlflow_experiment_id, "run_id": outcome.mlflow_run_id},
    }
    return dict(plain(document))


def write_trials(
    folder: Path, records: Sequence[TrialRecord], goal: Goal, size: NetworkSize | None = None
) -> list[Path]:
    """Write trials.csv, ordered by the trials' numbers, and pareto.csv, ordered by sparsity. Return both paths.

    Args:
        folder: the study's folder.
        records: the study's trials.
        goal: the study's target sparsities and limits, as a `Goal`.
        size: the numbers of prunable and other parameters of the network. If None, the column "sparsity_matrices" is
            empty.

    Raises:
        OSError: if the folder cannot be written to.
    """
    trials, pareto = folder / TRIALS_CSV, folder / PARETO_CSV
    write_atomically(trials, trials_csv(_by_number(records), objective=goal.objective, size=size))
    write_atomically(pareto, trials_csv(goal.front(records), columns_of=records, objective=goal.objective, size=size))
    return [trials, pareto]


def write_results(outcome: StudyOutcome) -> list[Path]:
    """Write trials.csv, pareto.csv and result.json into the study's folder. Return the three paths.

    result.json is written last. Its existence therefore shows that the study has ended and that its tables are
    complete.

    Raises:
        OSError: if the folder cannot be written to.
    """
    tables = write_trials(outcome.folder, outcome.records, outcome.goal, outcome.size)
    return [*tables, write_result(outcome)]


def write_result(outcome: StudyOutcome) -> Path:
    """Write result.json without the tables, and return its path. Raise OSError if the folder cannot be written to."""
    result = outcome.folder / RESULT_JSON
    write_atomically(result, to_json(result_document(outcome)))
    return result
