"""Give one line of advice after a study: which number of bits per weight is best, or whether a group of two networks
saves multiply-adds compared with the best network alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tune_sparsity.sparsity.few_bits import ALL_BITS
from tune_sparsity.tuner.results.cascade import as_good_as_best
from tune_sparsity.tuner.study.goal import Goal, GoalKind
from tune_sparsity.tuner.study.objective import ACCURACY
from tune_sparsity.tuner.study.pareto import known_point
from tune_sparsity.tuner.study.trial import BINARY, WEIGHT_BITS, TrialRecord

# If the accuracy of a cheap network is at most this much below the best network's, most examples are probably easy.
_NEARLY = 0.02


def advice(study: str, goal: Goal, records: Sequence[TrialRecord], group: Mapping[str, Any]) -> str:
    """Return one line of advice from the trials of a study, or "" if there is no advice.

    Args:
        study: the study's name, for commands in the text.
        goal: the study's target sparsities and limits, as a `Goal`.
        records: the study's trials.
        group: the entry "group" of result.json about groups of two networks. It is empty without the option --group.
    """
    if goal.kind is GoalKind.MAX_BYTES:
        return _of_bits(goal, records)
    if goal.multi_objective and goal.objective == ACCURACY:
        return _of_group(study, group) if group else _of_cheaper(study, goal, records)
    return ""


def _of_bits(goal: Goal, records: Sequence[TrialRecord]) -> str:
    """Compare the best two numbers of bits per weight, each by its best network. Return "" if all trials have one
    number."""
    kinds: dict[int, list[TrialRecord]] = {}
    for record in filter(goal.feasible, records):
        bits = 1 if record.method == BINARY else int(record.params.get(WEIGHT_BITS, ALL_BITS))
        kinds.setdefault(bits, []).append(record)
    best = {bits: max(some, key=_merit) for bits, some in kinds.items()}
    if len(best) < 2:
        return ""
    other, bits = sorted(best, key=lambda one: _merit(best[one]))[-2:]
    reached = f"weights of {_bits(bits)} reach {goal.objective.name} {best[bits].text}"
    return f"in {goal.max_bytes:,} bytes {reached}, and weights of {_bits(other)} {best[other].text}"


def _merit(record: TrialRecord) -> float:
    return known_point(record)[1]


def _bits(bits: int) -> str:
    return f"{bits} bit{'s' if bits > 1 else ''}"


def _of_group(study: str, group: Mapping[str, Any]) -> str:
    """Say how to export a group that is as good as the best network."""
    found = as_good_as_best(group)
    if found is None:
        return ""
    share = f"{found['share_of_best_macs']:.0%}"
    return (
        f"to save multiply-adds, use two networks: {found['name']} needs {share} of the multiply-adds of "
        f"{group['best']}, at the same accuracy on the validation data: "
        f"tune-sparsity export {study} --network {found['name']} --format onnx"
    )


def _of_cheaper(study: str, goal: Goal, records: Sequence[TrialRecord]) -> str:
    """Recommend the option --group if a cheap network is nearly as good as the best network. A cheap network has at
    most half of the best network's multiply-adds."""
    best = goal.best(records)
    if best is None or not best.macs or best.value is None:
        return ""
    known = [one for one in goal.reported(records) if one.macs is not None and one.value is not None]
    cheap = [one for one in known if 2 * (one.macs or 0) <= best.macs and (one.value or 0.0) >= best.value - _NEARLY]
    if not cheap:
        return ""
    found = max(cheap, key=lambda one: one.value or 0.0)
    lost = goal.objective.difference(best.value - (found.value or 0.0))
    return (
        f"{found.name} has {(found.macs or 0) / best.macs:.0%} of the multiply-adds of {best.name} and loses {lost}: a "
        f"group of two networks may lose less: tune-sparsity resume {study} --group cascade"
    )
