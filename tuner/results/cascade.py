"""Choose groups of two networks of a study: cascades. In a group, the large network answers if the small network is
unsure.

Nothing is trained. Pairs and thresholds are chosen on the validation data. The chosen groups are evaluated once on the
test data. A group computes less than its large network for most examples, but it always takes the bytes of both
networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tune_sparsity.experiments import Data, Experiment, Loaded, NotFinite, Split
from tune_sparsity.experiments.base import outputs_of
from tune_sparsity.experiments.cascade import margins
from tune_sparsity.experiments.metrics import metric_of
from tune_sparsity.tuner.results.networks import network_in
from tune_sparsity.tuner.study.trial import TrialRecord

QUANTILES = 20
"""Of the margins on the validation data: the gates that are tried, beside "never" and "always"."""
MOST_NETWORKS = 200
SHARES = (0.125, 0.25, 0.5, 1.0)
"""Of the best network's multiply-adds: for each the most accurate group within it is chosen."""
PAIRS_SHOWN, EXAMPLES_SHOWN = 10, 5
"""Pairs of classes that are told of a group."""
_NEVER, _ALWAYS = 0.0, 2.0  # gates that no margin is below, and that all are


@dataclass(frozen=True)
class Answers:
    """Holds the predictions of a network for the examples of a split.

    Attributes:
        scores: the metric's score of each example, shape (n,), float64.
        margins: the margin of each example (see `experiments.cascade.margins`), shape (n,), float32.
        leading: the two classes of each example with the largest probabilities, shape (n, 2), int64.
    """

    scores: Tensor
    margins: Tensor
    leading: Tensor


@dataclass(frozen=True)
class Group:
    """The networks of two trials with a threshold, and the quality of this group on a split.

    Attributes:
        small, large: the numbers of the trials.
        theta: the threshold. The large network answers if the margin of the small network is below it.
        passed: the share of the examples that the large network answers.
        value: the metric.
        macs: the mean multiply-adds of an example: those of the small network, plus `passed` times those of the large
            network.
    """

    small: int
    large: int
    theta: float
    passed: float
    value: float
    macs: float


def answers_of(
    experiment: Experiment, network: Path, split: Split | Loaded, device: str | torch.device = "cpu"
) -> Answers:
    """Return the answers of a network on a split. The errors are those of `answered`.

    Args:
        network: a file with the result of `tune_sparsity.tuner.worker.trainable.packed_weights`.
    """
    return answered(experiment, network_in(experiment, network).to(device), split)


@torch.no_grad()
def answered(experiment: Experiment, model: nn.Module, split: Split | Loaded) -> Answers:
    """Return the answers of a model on a split. Raise NotFinite if its outputs are NaN."""
    score = metric_of(experiment.metric).function
    parts = [
        (score(out, y).double().cpu(), margins(out).cpu(), out.topk(2, dim=1).indices.cpu())
        for out, y in outputs_of(experiment, model, split)
    ]
    scores, sure, leading = map(torch.cat, zip(*parts, strict=True))
    if bad := int(sure.isnan().sum()):
        raise NotFinite(f"a network's outputs are no numbers for {bad} of {len(sure)} examples")
    return Answers(scores, sure, leading)


def gates(sure: Tensor) -> list[float]:
    """Return the thresholds to try, in ascending order: 0, about QUANTILES quantiles of the margins, and 2.

    Each quantile is moved to the middle between two margins. If another program rounds the margins differently, they
    then still lie on the same side of the threshold.

    Args:
        sure: the margins, shape (n,).
    """
    ordered, count = sure.sort().values, len(sure)
    places = [round(count * k / (QUANTILES + 1)) for k in range(1, QUANTILES + 1)]
    between = {float((ordered[i - 1] + ordered[i]) / 2) for i in places if 0 < i < count}
    return sorted({_NEVER, *between, _ALWAYS})


def candidates(small: int, answers: Mapping[int, Answers], macs: Mapping[int, int]) -> list[Group]:
    """Return all groups that have this small network. The large network is any network with more multiply-adds, and the
    threshold is any of `gates`.

    Args:
        small: the number of the small network's trial.
        answers: the networks' answers, by the numbers of their trials.
        macs: the networks' multiply-adds of an example, by the numbers of their trials.
    """
    own, larger = answers[small], [number for number in answers if macs[number] > macs[small]]
    if not larger:
        return []
    count, tried = len(own.scores), gates(own.margins)
    passed = (own.margins < torch.tensor(tried)[:, None]).double()  # (gates, examples)
    gains = torch.stack([answers[number].scores - own.scores for number in larger], dim=1)
    values = ((own.scores.sum() + passed @ gains) / count).tolist()  # (gates, larger networks)
    shares = (passed.sum(1) / count).tolist()
    return [
        Group(small, large, theta, share, value, macs[small] + share * macs[large])
        for theta, share, row in zip(tried, shares, values, strict=True)
        for large, value in zip(larger, row, strict=True)
    ]


def on_front(groups: Iterable[Group], alone: Iterable[tuple[float, float]]) -> list[Group]:
    """Return the Pareto-optimal groups, in order of increasing multiply-adds. A group is left out if another group or a
    single network is at least as cheap and at least as good.

    Args:
        alone: for each single network its multiply-adds and its value of the metric.
    """
    ranked: list[tuple[float, float, int, Group | None]] = [(macs, -value, 0, None) for macs, value in alone]
    ranked += [(group.macs, -group.value, place, group) for place, group in enumerate(groups, 1)]
    found, best = list[Group](), -math.inf
    for _, loss, _, group in sorted(ranked, key=lambda one: one[:3]):
        if -loss > best:
            best = -loss
            if group is not None:
                found.append(group)
    return found


def chosen(front: Sequence[Group], value: float, macs: float) -> list[Group]:
    """Return at most five groups to report, in order of increasing multiply-adds. These are the cheapest group that is
    as good as the best network, and for each of SHARES the best group with at most this share of the best network's
    multiply-adds.

    Args:
        front: the result of `on_front`.
        value: the metric of the best network.
        macs: the multiply-adds of the best network.
    """
    level = as_good(front, value, macs)
    within = [[group for group in front if group.macs <= share * macs] for share in SHARES]
    picked = [*([level] if level else []), *(some[-1] for some in within if some)]
    return sorted(set(picked), key=lambda group: group.macs)


def as_good(groups: Sequence[Group], value: float, macs: float) -> Group | None:
    """Return the cheapest group that is as good as a network with this value and needs fewer multiply-adds than the
    network. Return None if there is no such group."""
    return next((group for group in groups if group.value >= value and group.macs < macs), None)


def mcnemar(one: Tensor, other: Tensor) -> dict[str, Any]:
    """Compute McNemar's exact test. Its null hypothesis is that a group and a single network are equally often correct.

    Args:
        one: for each example 1 if the group is correct, else 0.
        other: for each example 1 if the network is correct, else 0.

    Returns:
        The number of examples for which only the group is correct, the number for which only the network is correct,
        and the two-sided p-value.
    """
    won, lost = int(((one > 0.5) & (other <= 0.5)).sum()), int(((one <= 0.5) & (other > 0.5)).sum())
    tail = sum(math.comb(won + lost, k) for k in range(min(won, lost) + 1))
    return {"only_group": won, "only_network": lost, "p": min(1.0, 2 * tail / 2 ** (won + lost))}


def passed_pairs(small: Answers, large: Answers, theta: float, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Count pairs of classes among the examples that are passed on to the large network. The pair of an example are the
    two classes that are most probable for the small network. Return the PAIRS_SHOWN most frequent pairs, the most
    frequent first.

    Args:
        small, large: answers on the same split.
        theta: the threshold. Examples with a smaller margin are passed on.
        classes: the names of the classes. If it is empty, the classes have numbers.

    Returns:
        A dict for each pair: the two classes; the number of examples that are passed on; how many of these the small
        network gets right, and how many the large network; and the indices in the split of the EXAMPLES_SHOWN examples
        with the smallest margins.
    """
    passed = small.margins < theta
    order = small.margins[passed].argsort(stable=True)
    pairs, places = small.leading[passed].sort(dim=1).values.unique(dim=0, return_inverse=True)
    rights = torch.stack([torch.ones(len(places)), small.scores[passed] > 0.5, large.scores[passed] > 0.5])
    counts = torch.zeros(3, len(pairs)).index_add_(1, places, rights).long().tolist()
    rows = [
        {
            "classes": [classes[one] if classes else str(one) for one in pair],
            "examples": n,
            "small": own,
            "large": other,
            "shown": passed.nonzero()[order[places[order] == place][:EXAMPLES_SHOWN], 0].tolist(),
        }
        for place, (pair, n, own, other) in enumerate(zip(pairs.tolist(), *counts, strict=True))
    ]
    return sorted(rows, key=lambda row: -row["examples"])[:PAIRS_SHOWN]


@dataclass(frozen=True)
class Choice:
    """Holds the groups that were chosen on the validation data.

    Attributes:
        groups: the result of `chosen`.
        as_good: the cheapest of them that is as good as the best network, if any.
        pairs: the number of pairs of networks that were tried.
        passed: for each group the result of `passed_pairs`.
    """

    groups: list[Group]
    as_good: Group | None
    pairs: int
    passed: dict[Group, list[dict[str, Any]]]


def choose(
    experiment: Experiment,
    val: Split | Loaded,
    networks: Mapping[int, Path],
    macs: Mapping[int, int],
    best: int,
    device: str = "cpu",
    classes: Sequence[str] = (),
) -> Choice:
    """Choose the groups of two networks to report, on the validation data. Every pair of networks that differ in their
    multiply-adds is tried.

    Args:
        networks: the number of each network's trial -> the network's file.
        macs: the networks' multiply-adds, by the numbers of their trials.
        best: the number of the best network's trial.
        classes: the names of the classes, if they have any.
    """
    answers = {number: answers_of(experiment, file, val, device) for number, file in networks.items()}
    values = {number: float(one.scores.mean()) for number, one in answers.items()}
    front = list[Group]()
    for small in answers:
        found = candidates(small, answers, macs)
        front = on_front([*front, *found], [(macs[number], values[number]) for number in answers])
    pairs = sum(macs[one] < macs[other] for one in answers for other in answers)
    goal = values[best], macs[best]
    groups = chosen(front, *goal)
    passed = {one: passed_pairs(answers[one.small], answers[one.large], one.theta, classes) for one in groups}
    return Choice(groups, as_good(front, *goal), pairs, passed)


def group_document(
    experiment: Experiment, data: Data, networks: Mapping[int, tuple[TrialRecord, Path]], best: int, device: str = "cpu"
) -> dict[str, Any]:
    """Return the value of `group` in result.json: the chosen groups of the study, with their results on the test data.

    Args:
        networks: the number of each kept network's trial -> the trial and its file.
        best: the number of the best network's trial.

    Raises:
        ValueError: if no two networks differ in their multiply-adds.
    """
    kept = [best, *(number for number in networks if number != best)][:MOST_NETWORKS]
    records, files = ({number: networks[number][0] for number in kept}, {n: networks[n][1] for n in kept})
    macs = {number: record.macs for number, record in records.items() if record.macs is not None}
    if best not in macs or len(set(macs.values())) < 2:
        raise ValueError("the study has kept no two networks that differ in their multiply-adds")
    files = {number: files[number] for number in macs}
    choice = choose(experiment, data.val, files, macs, best, device, data.classes)
    wanted = {number for group in choice.groups for number in (group.small, group.large, best)}
    read = {number: answers_of(experiment, files[number], data.test, device) for number in sorted(wanted)}
    names = {group: f"group-{place}" for place, group in enumerate(choice.groups, 1)}
    return {
        "kind": "cascade",
        "best": records[best].name,
        "networks": len(macs),
        "pairs": choice.pairs,
        "as_good_as_best": None if choice.as_good is None else names[choice.as_good],
        "groups": [
            {"name": name, **described(group, records, read, best), "passed_pairs": choice.passed[group]}
            for group, name in names.items()
        ],
    }


def described(
    group: Group, records: Mapping[int, TrialRecord], read: Mapping[int, Answers], best: int
) -> dict[str, Any]:
    """Return a group's entry in result.json.

    Args:
        read: the networks' answers on the test data.
    """
    small, large = records[group.small], records[group.large]
    passed = read[group.small].margins < group.theta
    scores = torch.where(passed, read[group.large].scores, read[group.small].scores)
    objective, sizes = small.objective, [small.size_bytes, large.size_bytes]
    return {
        "small": small.name,
        "large": large.name,
        "theta": group.theta,
        objective.val: group.value,
        objective.test: float(scores.mean()),
        "passed_on": group.passed,
        "test_passed_on": float(passed.double().mean()),
        "expected_macs": group.macs,
        "worst_macs": (small.macs or 0) + (large.macs or 0),
        "share_of_best_macs": group.macs / (records[best].macs or 1),
        "size_bytes": None if None in sizes else sum(size or 0 for size in sizes),
        "mcnemar_against_large": mcnemar(scores, read[group.large].scores),
        "mcnemar_against_best": mcnemar(scores, read[best].scores),
    }


def main_group(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the recommended group. This is the cheapest group that is as accurate as the best network. If no group is
    as accurate, it is the most accurate group. Return None if there is no group.

    Args:
        document: the value of `group` in result.json.
    """
    return as_good_as_best(document) or next(reversed(document.get("groups", ())), None)


def as_good_as_best(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the cheapest group that is as accurate as the best network. Return None if there is no such group.

    Args:
        document: the value of `group` in result.json.
    """
    return next((one for one in document.get("groups", ()) if one["name"] == document["as_good_as_best"]), None)


def group_metrics(group: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a group as MLflow's metrics, by name."""
    tests = {f"{name}_p": group[name]["p"] for name in ("mcnemar_against_large", "mcnemar_against_best")}
    return {name: float(value) for name, value in {**group, **tests}.items() if isinstance(value, int | float)}
