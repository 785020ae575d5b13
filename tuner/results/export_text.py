"""Describes an exported file in words: its size, its check, and the space and time that the zeros save."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tune_sparsity.tuner.study.objective import Objective


def as_text(document: dict[str, Any], objective: Objective) -> str:
    """Return the result of `export_network` as text for the terminal."""
    value = document.get(objective.val)
    metric = "" if value is None else f"{objective.name} {objective.text(value)}"
    checked = f"the validation data: {metric}" if metric else "the inputs of the loop's first forward pass"
    lines = [
        f"{document['file']}  ({document['bytes']:,} bytes)",
        f"checked on {checked}, outputs within {document['largest_difference']:.2g} of the network's",
        "",
        f"{'storage format':<24}{'bytes':>12}{'of dense':>10}",
    ]
    dense = document["sizes"]["dense"]
    for name, size in document["sizes"].items():
        lines.append(f"{name.replace('_', ' '):<24}{size:>12,}{size / dense:>10.1%}")
    threads = document["threads"]
    title = f"median ms, {threads} thread{'s' if threads > 1 else ''}"
    lines += ["", f"{title:<24}{'dense':>12}{'sparse':>10}"]
    for one in document["latency_ms"]:
        dense, sparse = ("-" if one[kind] is None else f"{one[kind]:.3f}" for kind in ("dense", "sparse"))
        lines.append(f"{'batch ' + str(one['batch']):<24}{dense:>12}{sparse:>10}")
    return "\n".join([*lines, "", verdict(document)])


def verdict(document: dict[str, Any]) -> str:
    """Return one or two sentences that say how much space and time the zeros save. If they save nothing, the sentences
    say so."""
    held = document["sizes"]
    best = min((name for name in held if name != "dense"), key=held.__getitem__)
    words = best.replace("_", " ")
    size = (
        f"Stored as {words}, the network takes {held['dense'] / held[best]:.1f} times less space."
        if held[best] < held["dense"]
        else "No storage format takes less space than the dense one."
    )
    notes = {one["note"] for one in document["latency_ms"] if one["note"]}
    timed = [one for one in document["latency_ms"] if one["sparse"] is not None]
    if not timed:
        return f"{size} The time with sparse matrices was not measured: {'; '.join(notes)}."
    faster = [one for one in timed if one["sparse"] < one["dense"]]
    slower = [one for one in timed if one not in faster]
    said = [
        f"at batch size {one['batch']} sparse matrices make it {one['dense'] / one['sparse']:.1f} times faster"
        for one in faster
    ] + [
        f"at batch size {one['batch']} they do not make it faster: "
        f"{one['sparse'] / one['dense']:.1f} times the dense time"
        for one in slower
    ]
    if not faster:
        said = [
            "Unstructured sparsity gains no time on this machine: "
            + ", ".join(
                f"{one['sparse'] / one['dense']:.1f} times the dense time at batch size {one['batch']}"
                for one in slower
            )
        ]
    text = "; ".join(said)
    note = f" ({'; '.join(notes)})" if notes else ""
    return f"{size} {text[0].upper()}{text[1:]}{note}."
