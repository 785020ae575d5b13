"""Describe groups of two networks in lines and tables of text. In a group, the large network answers if the small
network is unsure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from tune_sparsity.experiments.base import Data
from tune_sparsity.tuner.reports.examples import pictures_of
from tune_sparsity.tuner.results.cascade import main_group
from tune_sparsity.tuner.study.objective import Objective

HEADER = (
    *("group", "small", "large", "passed on", "validation", "test", "expected macs", "of the best's", "worst macs"),
    *("bytes", "p against large"),
)

PASSED_HEADER = ("the small network hesitates between", "examples passed on", "small is right", "large is right")
LEAST_SURE = "it is least sure of"
_IMAGE = Markup('<img class="example" alt="example" src="{}">')


def group_rows(document: Mapping[str, Any], objective: Objective) -> list[list[str]]:
    """Return the table of the groups, with one row for each group and the columns of HEADER."""
    return [
        [
            *(group["name"], group["small"], group["large"], f"{group['passed_on']:.1%}"),
            *(objective.text(group[name]) for name in (objective.val, objective.test)),
            *(f"{group['expected_macs']:,.0f}", f"{group['share_of_best_macs']:.1%}", f"{group['worst_macs']:,}"),
            "" if group["size_bytes"] is None else f"{group['size_bytes']:,}",
            f"{group['mcnemar_against_large']['p']:.3g}",
        ]
        for group in document.get("groups", ())
    ]


def passed_table(document: Mapping[str, Any], data: Data | None) -> dict[str, Any]:
    """Return a table about the examples that the small network of the recommended group passes on to the large network.

    Each row is for one pair of classes. It is about the examples for which the small network considers these two
    classes most probable.

    Args:
        document: the entry "group" of result.json.
        data: the study's data, for pictures of the examples. If None, the table has no pictures.

    Returns:
        A dict with two keys: "passed" for the rows of the table, and "passed_header" for the headings of the columns.
    """
    pairs = (main_group(document) or {}).get("passed_pairs", ())
    rows = [
        [" or ".join(pair["classes"]), str(pair["examples"]), str(pair["small"]), str(pair["large"])] for pair in pairs
    ]
    drawn = [pictures_of(data, pair.get("shown", ())) if data else [] for pair in pairs]
    if not any(drawn):
        return {"passed": rows, "passed_header": PASSED_HEADER}
    images = [Markup("").join(map(_IMAGE.format, some)) for some in drawn]
    return {
        "passed": [[*row, image] for row, image in zip(rows, images, strict=True)],
        "passed_header": (*PASSED_HEADER, LEAST_SURE),
    }


def reflection_line(document: Mapping[str, Any], objective: Objective) -> str:
    """Return a line that says whether training the large network again has made the recommended group better. Return ""
    without the option --group reflect."""
    about = document.get("reflection")
    if not about:
        return ""
    plain = next(group for group in document["groups"] if group["name"] == about["against"])
    trained = f"{about['large']} was trained again, with the hard examples of {about['small']} up to 5 times an epoch"
    if (value := about[objective.val]) is None:
        return f"{trained}: its groups take more multiply-adds or bytes than {plain['name']}, and are not kept"
    now, before = objective.text(value), objective.text(plain[objective.val])
    values = f"{now} on the validation data, where {plain['name']} has {before}"
    return (
        f"{trained}: its group has {values}, with no more multiply-adds, and is {'' if about['kept'] else 'not '}kept"
    )


def group_line(document: Mapping[str, Any], objective: Objective) -> str:
    """Return a line that compares the recommended group with the best network: multiply-adds and accuracy. Return ""
    without the option --group."""
    if not document:
        return ""
    best, group = document["best"], main_group(document)
    if group is None:
        pairs = f"none of {document['pairs']} pairs of networks"
        return f"{pairs} is better than a single network with at most as many multiply-adds"
    share = f"{group['share_of_best_macs']:.0%} of its multiply-adds"
    tested = f"test {objective.name} {objective.text(group[objective.test])}"
    against = group["mcnemar_against_best"]
    tested += f"; only the group is right for {against['only_group']} examples, and only {best} is right for "
    tested += f"{against['only_network']} (McNemar's p {against['p']:.2g})"
    if document["as_good_as_best"] is None:
        value = objective.text(group[objective.val])
        return f"no pair reaches the accuracy of {best}; {group['name']} has {value} with {share}: {tested}"
    return f"{group['name']} has the same accuracy as {best} with {share} on the validation data: {tested}"
