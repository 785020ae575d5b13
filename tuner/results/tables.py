"""The result of a study as files: trials.csv, pareto.csv and result.json.

The files are read by other programs, perhaps while the study runs, so each of them is replaced in one step and is
never seen half written. Missing values are empty in the tables and null in the JSON, which never contains NaN.
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
from tune_sparsity.tuner.results.retraining import Retrained
from tune_sparsity.tuner.study.goal import Goal, GoalKind
from tune_sparsity.tuner.study.layout import PARETO_CSV, RESULT_JSON, TRIALS_CSV
from tune_sparsity.tuner.study.objective import ACCURACY, Objective
from tune_sparsity.tuner.study.trial import COSTS, TrialRecord, TrialState
from tune_sparsity.tuner.system.files import plain, to_json, write_atomically

LEADING_COLUMNS = ("number", "state")
TRAILING_COLUMNS = (
    *("sparsity", "sparsity_matrices", "sparsity_total", "hoyer", "nonzero_weights", *COSTS),
    *("epochs", "seconds", "method", "reason"),
)
"""After the parameters and the metric; like the leading ones they are attributes of a TrialRecord, but for
"sparsity_matrices"."""


@dataclass(frozen=True)
class StudySeconds:
    """Where the driver's wall clock went, in seconds.

    The parts do not overlap, and sum to the total: `startup` from the command's start to the first trial's first epoch,
    `training` the workers' epochs divided by the number of trials that ran at once, `sampling` and `tracking` what the
    driver spent in the searcher and in the tracker, `finishing` from the search's end to the last file, and `other` the
    rest: workers that waited for trials, or for others to end.
    """

    total: float = 0.0
    startup: float = 0.0
    training: float = 0.0
    sampling: float = 0.0
    tracking: float = 0.0
    finishing: float = 0.0

    @property
    def other(self) -> float:
        """Return the rest of the total; it is never negative, since clocks read one after the other may disagree a
        little."""
        parts = (self.startup, self.training, self.sampling, self.tracking, self.finishing)
        return max(0.0, self.total - sum(parts))

    def without_overlap(self) -> StudySeconds:
        """Return the same, where what the driver did while trials trained counts once: as its own, and not as
        training."""
        rest = self.startup + self.sampling + self.tracking + self.finishing
        return replace(self, training=max(0.0, min(self.training, self.total - rest)))

    def to_dict(self) -> dict[str, float]:
        return {**asdict(self), "other": self.other}


@dataclass(frozen=True)
class StudyOutcome:
    """All that a study found, in the one form from which its files and its last words on the terminal are made."""

    study: str
    goal: Goal
    experiment: str
    method: str  # as given: several methods are separated by commas
    records: Sequence[TrialRecord]
    folder: Path  # STORAGE/STUDY; of a study in an object store, where it is worked on
    seconds: StudySeconds = field(default_factory=StudySeconds)
    test_values: Mapping[int, float] = field(default_factory=dict)  # the metric of the reported networks, by trial
    weights: int | None = None  # number of prunable weights of the network
    sparsity_by_layer: Mapping[str, float] = field(default_factory=dict)  # of the best network, in its order
    dead_neurons: Mapping[str, DeadNeurons] = field(default_factory=dict)  # of the best network's layers that have any
    mlflow_experiment_id: str | None = None
    mlflow_run_id: str | None = None  # of the study's parent run
    tracking_uri: str | None = None
    store: str = ""  # where it is kept, if that is not the folder
    size: NetworkSize | None = None  # how many of the network's parameters can be pruned
    retrained: Sequence[Retrained] = ()  # with --final-seeds: every method's best, trained again; the winner first
    group: Mapping[str, Any] = field(default_factory=dict)  # with --group: of two of the kept networks
    ensemble: Mapping[str, Any] = field(default_factory=dict)  # with --ensemble: of networks around the best one

    @property
    def best(self) -> TrialRecord | None:
        return self.goal.best(self.records)

    @property
    def front(self) -> list[TrialRecord]:
        return self.goal.front(self.records)

    @property
    def test_value(self) -> float | None:
        """Return the metric of the best trial on the test data."""
        return None if self.best is None else self.test_values.get(self.best.number)

    @property
    def spike_rates(self) -> dict[str, float]:
        """Return the best network's, by layer; nothing where it has no spiking layers."""
        return {} if self.best is None else self.best.spike_rates

    def sparsity_matrices(self, record: TrialRecord) -> float | None:
        """Return a trial's zeros over the numbers of all weight matrices, those that stay dense included."""
        return _sparsity_matrices(record, self.size)

    @property
    def states(self) -> dict[str, int]:
        """Return the number of trials in each final state; a trial that is still running is in none of them."""
        counts = Counter(record.state for record in self.records)
        return {str(s): counts[s] for s in (TrialState.COMPLETED, TrialState.PRUNED, TrialState.FAILED)}


def _sparsity_matrices(record: TrialRecord, size: NetworkSize | None) -> float | None:
    if size is None or record.nonzero_weights is None:
        return None
    return size.sparsity_matrices(record.nonzero_weights)


def _by_number(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    return sorted(records, key=lambda record: record.number)


def _parameter_columns(records: Iterable[TrialRecord], value: str) -> dict[str, str]:
    """Return the heading of each parameter's column, by the parameter's name, in first-seen order.

    Headings are the plain names, except where a name is that of another column: `epochs` becomes `param.epochs`,
    because two columns of one name are read back as something else by every reader.

    Args:
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
        return repr(value)  # the shortest text that reads back as the same number
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    return " ".join(str(value).splitlines())  # a row stays one line, also for tools that cut at line ends


def trials_csv(
    records: Sequence[TrialRecord],
    columns_of: Sequence[TrialRecord] | None = None,
    objective: Objective = ACCURACY,
    size: NetworkSize | None = None,
) -> str:
    """Return the trials as a table: number, state, parameters, measures, method, reason.

    Args:
        records: the rows, in this order.
        columns_of: the trials whose parameters make the columns; by default those of the rows.
        objective: the metric that the trials have.
        size: of the network; without it "sparsity_matrices" is empty.

    Returns:
        The text of the CSV file: RFC 4180 quoting, "\n" line ends.
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
    """Return a trial as result.json describes it."""
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


def _reported_document(outcome: StudyOutcome, record: TrialRecord | None) -> dict[str, Any] | None:
    """Return a trial whose network is reported, with what was measured of it."""
    if record is None:
        return None
    test = {record.objective.test: outcome.test_values.get(record.number)}
    measured = {**test, "weights": outcome.weights}
    return {**trial_document(record), "sparsity_matrices": outcome.sparsity_matrices(record), **measured}


def _goal_document(outcome: StudyOutcome) -> dict[str, Any]:
    """Return the findings for a goal that is not a single target; `target` is its lowest sparsity."""
    goal = outcome.goal
    if goal.kind is GoalKind.TARGETS:
        found = goal.best_at(outcome.records)
        return {"targets": [{"target": t, "best": _reported_document(outcome, best)} for t, best in found]}
    if goal.kind is GoalKind.MAX_NONZERO:
        return {"max_nonzero": goal.max_nonzero}
    if goal.kind is GoalKind.MAX_BYTES:
        return {"max_bytes": goal.max_bytes}
    if goal.kind is GoalKind.FRONT:
        area = goal.hypervolume(outcome.records)
        mean = {f"mean_{goal.objective.name}": goal.mean_value(area)}
        judged = {"hypervolume": area, "reference": goal.reference, **mean}
        networks = [_reported_document(outcome, record) for record in outcome.front]
        return {"front": {"from": goal.lowest, "to": goal.highest, **judged, "networks": networks}}
    return {}


def result_document(outcome: StudyOutcome) -> dict[str, Any]:
    """Return the study's result as one document, that of result.json and of `--json`; `best` is None if none is
    feasible."""
    dense = outcome.size.dense if outcome.size else ()
    document = {
        "study": outcome.study,
        "target": outcome.goal.lowest,
        "metric": outcome.goal.objective.to_dict(),
        **_goal_document(outcome),
        "experiment": outcome.experiment,
        "method": outcome.method,
        "states": outcome.states,
        "dense_weights": {one.name: one.size for one in dense},
        "dense_share": {one.name: outcome.size.share(one) for one in dense} if outcome.size else {},
        "dead_neurons": {name: one._asdict() for name, one in outcome.dead_neurons.items()},
        **({"spike_rates": outcome.spike_rates} if outcome.spike_rates else {}),
        "best": _reported_document(outcome, outcome.best),
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
    """Writes trials.csv (by number) and pareto.csv (by sparsity), perhaps after every trial. Returns both paths.

    Args:
        size: of the network, for "sparsity_matrices".
    """
    trials, pareto = folder / TRIALS_CSV, folder / PARETO_CSV
    write_atomically(trials, trials_csv(_by_number(records), objective=goal.objective, size=size))
    write_atomically(pareto, trials_csv(goal.front(records), columns_of=records, objective=goal.objective, size=size))
    return [trials, pareto]


def write_results(outcome: StudyOutcome) -> list[Path]:
    """Writes trials.csv, pareto.csv and result.json into the study's folder. Returns the three paths.

    result.json comes last: where it is, the study ended and its tables are complete.

    Raises:
        OSError: if the folder cannot be written to.
    """
    tables = write_trials(outcome.folder, outcome.records, outcome.goal, outcome.size)
    return [*tables, write_result(outcome)]


def write_result(outcome: StudyOutcome) -> Path:
    """Write result.json alone, where the tables are written already. Return its path. Raises as `write_results`."""
    result = outcome.folder / RESULT_JSON
    write_atomically(result, to_json(result_document(outcome)))
    return result
