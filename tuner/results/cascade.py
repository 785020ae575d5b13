"""Choose groups of two networks of a study. In a group, the large network answers the examples on which the small
network is unsure. The literature calls such a group a cascade.

Nothing is trained. The two networks of a group, and the threshold that decides which of them answers, are chosen on the
validation data. The chosen groups are evaluated once on the test data. A group computes less than its large network for
the examples that the small network answers, and more for the others. It always needs the bytes of both networks.
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
"""The number of quantiles of the margins on the validation data that are tried as thresholds."""
MOST_NETWORKS = 200
SHARES = (0.125, 0.25, 0.5, 1.0)
"""Shares of the best network's multiply-adds. For each share, the most accurate group that needs at most this share is
chosen."""
PAIRS_SHOWN, EXAMPLES_SHOWN = 10, 5
"""The numbers of pairs of classes, and of examples for each pair, that are reported for a group."""
_NEVER, _ALWAYS = 0.0, 2.0  # no margin is below the first threshold, and all margins are below the second


@dataclass(frozen=True)
class Answers:
    """Holds the predictions of a network for the n examples of one split, for example of the validation data.

    Attributes:
        scores: the score of each example, shape (n,), float64. The metric is the mean of the scores.
        margins: the margin of each example, shape (n,), float32: how sure the network is (see
            `experiments.cascade.margins`).
        leading: the two most probable classes of each example, shape (n, 2), int64.
    """

    scores: Tensor
    margins: Tensor
    leading: Tensor


@dataclass(frozen=True)
class Group:
    """A pair of networks with a threshold, and the quality of this group on a split of the data.

    Attributes:
        small, large: the numbers of the trials that trained the networks.
        theta: the threshold. The large network answers if the margin of the small network is below `theta`.
        passed: the share of the examples that the large network answers, in [0, 1].
        value: the metric of the group.
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
    """Return the predictions of a network for a split of the data. Raise NotFinite if an output is NaN.

    Args:
        experiment: the experiment of the study.
        network: the file of a trial's network, written by `tune_sparsity.tuner.worker.weights.save_weights`.
        split: the examples.
        device: the device that computes.
    """
    return answered(experiment, network_in(experiment, network).to(device), split)


@torch.no_grad()
def answered(experiment: Experiment, model: nn.Module, split: Split | Loaded) -> Answers:
    """Return the predictions of a model for a split of the data. Raise NotFinite if an output is NaN."""
    score = metric_of(experiment.metric).function
    parts = [
        (score(out, y).double().cpu(), margins(out).cpu(), out.topk(2, dim=1).indices.cpu())
        for out, y in outputs_of(experiment, model, split)
    ]
    scores, sure, leading = map(torch.cat, zip(*parts, strict=True))
    if bad := int(sure.isnan().sum()):
        raise NotFinite(f"a network's outputs are NaN for {bad} of {len(sure)} examples")
    return Answers(scores, sure, leading)


def gates(sure: Tensor) -> list[float]:
    """Return the thresholds to try, in ascending order: 0 (the large network never answers), at most QUANTILES
    quantiles of the margins, and 2 (the large network always answers).

    Each quantile lies in the middle between two neighbouring margins. An exported group may run in another program,
    which rounds outputs a little differently. It then usually still chooses the same network for each example.

    Args:
        sure: the margins of the small network, shape (n,).
    """
    ordered, count = sure.sort().values, len(sure)
    places = [round(count * k / (QUANTILES + 1)) for k in range(1, QUANTILES + 1)]
    between = {float((ordered[i - 1] + ordered[i]) / 2) for i in places if 0 < i < count}
    return sorted({_NEVER, *between, _ALWAYS})


def candidates(small: int, answers: Mapping[int, Answers], macs: Mapping[int, int]) -> list[Group]:
    """Return all possible groups with this small network. A group is this network, a large network and a threshold. The
    large network is any network with more multiply-adds. The threshold is one of the numbers that the function `gates`
    returns.

    Args:
        small: the number of the small network's trial.
        answers: a dict from the number of each network's trial to the network's predictions.
        macs: a dict from the number of each network's trial to the network's multiply-adds for an example.
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
    """Return the Pareto-optimal groups of networks, in order of increasing multiply-adds. A group is left out if
    another group or a single network is at least as cheap and at least as good.

    Args:
        groups: the groups of networks.
        alone: (multiply-adds, metric) of each single network.
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
    """Return at most five groups to report, in order of increasing multiply-adds.

    One is the cheapest group that is at least as good as the best network. The others are, for each share in SHARES,
    the best group that needs at most this share of the best network's multiply-adds.

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
    """Return the cheapest group that is at least as good as a network, with fewer multiply-adds. Return None if there
    is no such group.

    Args:
        groups: the groups in order of increasing multiply-adds.
        value: the metric of the network.
        macs: the multiply-adds of the network.
    """
    return next((group for group in groups if group.value >= value and group.macs < macs), None)


def mcnemar(one: Tensor, other: Tensor) -> dict[str, Any]:
    """Compute McNemar's exact test. Its null hypothesis is that a group and a single network are equally often correct.

    Args:
        one: for each example 1 if the group is correct, else 0.
        other: for each example 1 if the network is correct, else 0.

    Returns:
        A dict. "only_group" is the number of examples for which only the group is correct, "only_network" the number
        for which only the network is correct, and "p" the two-sided p-value.
    """
    won, lost = int(((one > 0.5) & (other <= 0.5)).sum()), int(((one <= 0.5) & (other > 0.5)).sum())
    tail = sum(math.comb(won + lost, k) for k in range(min(won, lost) + 1))
    return {"only_group": won, "only_network": lost, "p": min(1.0, 2 * tail / 2 ** (won + lost))}


def passed_pairs(small: Answers, large: Answers, theta: float, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Count the pairs of classes between which the small network hesitates, among the examples that are passed on to
    the large network.

    The pair of an example is the two classes that are most probable for the small network.

    Args:
        small, large: the predictions of both networks for the same split of the data.
        theta: the threshold. Examples with a smaller margin are passed on.
        classes: the names of the classes. If it is empty, the classes are named by their numbers.

    Returns:
        A list of dicts, one for each pair of classes, the most frequent pair first. If there are more than PAIRS_SHOWN
        pairs, the others are left out. "classes" names the two classes, and "examples" is the number of examples of
        this pair that are passed on. "small" and "large" say how many of these examples each network classifies
        correctly. "shown" is a list of up to EXAMPLES_SHOWN indices in the split. They belong to the examples of this
        pair that have the smallest margins.
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
    """Holds the groups of two networks that were chosen on the validation data.

    Attributes:
        groups: the groups to report: the result of the function `chosen`.
        as_good: of the groups that are as good as the best network, the one with the fewest multiply-adds; None if
            there is no such group.
        pairs: the number of pairs of networks that were tried.
        passed: the result of `passed_pairs` for each group.
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
    """Choose the groups of two networks to report, on the validation data. All pairs of networks with different numbers
    of multiply-adds are tried.

    Args:
        experiment: the experiment of the study.
        val: the validation data.
        networks: a dict from the number of each network's trial to the network's file.
        macs: a dict from the number of each network's trial to the network's multiply-adds for an example.
        best: the number of the best network's trial.
        device: the device that computes.
        classes: the names of the classes, or an empty sequence if they have no names.
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
    """Return the entry "group" of result.json: the chosen groups, with their results on the test data.

    Args:
        experiment: the experiment of the study.
        data: the data of the study.
        networks: the networks whose files exist, as a dict from the number of each trial to (trial, file of the
            network). If there are more than MOST_NETWORKS, only the best network and the first ones of the dict are
            used.
        best: the number of the best network's trial.
        device: the device that computes.

    Raises:
        ValueError: if no two networks have known, different numbers of multiply-adds, or if this number is not known
            for the best network.
    """
    kept = [best, *(number for number in networks if number != best)][:MOST_NETWORKS]
    records, files = ({number: networks[number][0] for number in kept}, {n: networks[n][1] for n in kept})
    macs = {number: record.macs for number, record in records.items() if record.macs is not None}
    if best not in macs or len(set(macs.values())) < 2:
        raise ValueError(
            "a group needs two networks with different numbers of multiply-adds, but the study has no such networks"
        )
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
    """Return the entry of one group in result.json.

    Args:
        group: the group.
        records: a dict from numbers to trials. It contains the trials of the group's two networks and of the best
            network.
        read: a dict from the same numbers to the predictions of these trials' networks for the test data.
        best: the number of the best network's trial.
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
    """Return the recommended group: the cheapest group that is as accurate as the best network. If there is no such
    group, return the most accurate of the reported groups. Return None if no group is reported.

    Args:
        document: the entry "group" of result.json.
    """
    return as_good_as_best(document) or next(reversed(document.get("groups", ())), None)


def as_good_as_best(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the entry of a group of two networks: the one with the fewest multiply-adds of all groups that are as
    accurate as the best network. Return None if there is no such group.

    Args:
        document: the entry "group" of result.json. It contains the entries of all reported groups.
    """
    return next((one for one in document.get("groups", ()) if one["name"] == document["as_good_as_best"]), None)


def group_metrics(group: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers in a group's entry of result.json, as a dict from names of MLflow's metrics to values."""
    tests = {f"{name}_p": group[name]["p"] for name in ("mcnemar_against_large", "mcnemar_against_best")}
    return {name: float(value) for name, value in {**group, **tests}.items() if isinstance(value, int | float)}
