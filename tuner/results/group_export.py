"""Exports a group of two networks for other programs, and checks the files. The result is a folder with both networks,
or one ONNX graph."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_sparsity.tuner.errors import UsageError, one_line
from tune_sparsity.tuner.results.cascade import main_group
from tune_sparsity.tuner.results.export import (
    SUFFIXES,
    ExportFailed,
    Network,
    export_network,
    read_network,
    reader_of,
    replacing,
    tolerance_of,
)
from tune_sparsity.tuner.system.files import to_json, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from tune_sparsity.experiments import Data, Experiment
    from tune_sparsity.experiments.cascade import Answer, Cascade
    from tune_sparsity.tuner.results.finished_study import EndedStudy
    from tune_sparsity.tuner.study.objective import Objective

GROUP_JSON = "group.json"
_NEAR = 1e-4  # examples whose margin is so near to the gate's threshold are not compared: rounding may decide them


def group_named(study: EndedStudy, name: str) -> dict[str, Any]:
    """Return the entry of a group in result.json.

    Args:
        study: the study.
        name: the group's name, such as "group-2", or "group" for the recommended group.

    Raises:
        UsageError: if there is no group with this name.
    """
    document = study.result.get("group") or {}
    groups = {group["name"]: group for group in document.get("groups", ())}
    found = main_group(document) if name == "group" else groups.get(name)
    if found is None:
        there = (
            ", ".join(groups) or f"none. `tune-sparsity resume {study.config.study} --group cascade` looks for groups"
        )
        raise UsageError(
            f"--network {name}: study {study.config.study} has no such group of two networks. Its groups: {there}"
        )
    return found


def export_group(study: EndedStudy, name: str, kind: str, path: Path) -> dict[str, Any]:
    """Write a group of two networks, and check the files on the validation data.

    Args:
        study: the study.
        name: the group's name, such as "group-2", or "group" for the recommended group.
        kind: the format, a key of `SUFFIXES`.
        path: for the format "onnx", the file to write. For the other formats, the folder into which the files of both
            networks and group.json are written.

    Returns:
        The results as a dict for JSON, such as names, sizes in bytes, the metric, and the multiply-adds of the group.

    Raises:
        UsageError: if there is no such group, if the experiment or its data cannot be found, or if a file cannot be
            written.
        ExportFailed: if the files give other outputs than the group, or if the group's metric differs from the value
            that the study reported.
    """
    from tune_sparsity.tuner.config.experiment import experiment_of, sound_data

    group = group_named(study, name)
    experiment = experiment_of(study.config)
    given = experiment, sound_data(study.config, experiment)
    folders = {part: _folder_of(study, group[part]) for part in ("small", "large")}
    networks = {part: read_network(study, folder, given) for part, folder in folders.items()}
    whole = _cascade(networks, group["theta"])
    about = {"kind": study.result["group"]["kind"], **group}  # the content of group.json
    if kind == "onnx":
        with replacing(path) as temporary:
            _write_onnx(networks, group["theta"], temporary)
            exported = reader_of(networks["small"], kind, temporary)
            document = _checked(study, group, whole, exported, given, max(map(tolerance_of, networks.values())))
        size = path.stat().st_size
        write_atomically(path.with_name(path.name + ".json"), to_json(about) + "\n")
    else:
        files = {part: path / f"{part}{SUFFIXES[kind]}" for part in folders}
        for part, folder in folders.items():
            export_network(study, folder, kind, files[part], given)
        exported = _cascade(networks, group["theta"], kind, files)
        document = _checked(study, group, whole, exported, given, 0.0)
        write_atomically(path / GROUP_JSON, to_json({**about, "files": {p: f.name for p, f in files.items()}}) + "\n")
        size = sum(file.stat().st_size for file in files.values())
    return {"study": study.config.study, "network": group["name"], "format": kind, "file": str(path), "bytes": size} | {
        **document,
        **{key: group[key] for key in ("theta", "passed_on", "expected_macs", "worst_macs", "size_bytes")},
    }


def _folder_of(study: EndedStudy, trial: str) -> str:
    """Return the folder of a trial's network, relative to the study's folder. Raise UsageError if there is none."""
    for name in study.networks:
        if json.loads((study.folder / name / "model.json").read_text())["trial"] == trial:
            return name
    raise UsageError(f"study {study.config.study} no longer has the network of {trial}")


def _cascade(
    networks: dict[str, Network], theta: float, kind: str = "", files: dict[str, Path] | None = None
) -> Cascade:
    """Return a function that computes the outputs of a group. The function uses the exported files if they are given,
    otherwise the study's networks."""
    from tune_sparsity.experiments.cascade import Cascade

    parts: list[Answer] = [
        reader_of(networks[part], kind, files[part]) if files else partial(one.experiment.outputs, one.model)
        for part, one in networks.items()
    ]
    return Cascade(parts[0], parts[1], theta)


def _write_onnx(networks: dict[str, Network], theta: float, path: Path) -> None:
    """Write both networks as one graph. Raise ExportFailed if torch cannot export one of them."""
    from tune_sparsity.tuner.results.export_formats import onnx_model
    from tune_sparsity.tuner.results.onnx_cascade import gated

    try:
        models = [
            onnx_model(one.model, one.experiment.outputs, one.data.val.first(2).x, one.codes)
            for one in networks.values()
        ]
    except RuntimeError as error:
        raise ExportFailed(str(error)) from error
    path.write_bytes(gated(models[0], models[1], theta).SerializeToString())


def _checked(
    study: EndedStudy,
    group: dict[str, Any],
    whole: Cascade,
    exported: Answer,
    given: tuple[Experiment, Data],
    tolerance: float,
) -> dict[str, Any]:
    """Compare the exported group with the study's group on the validation data. Return the metrics of both, and the
    largest difference of the outputs.

    Args:
        study: the study.
        group: the group's entry in result.json.
        whole: the study's group.
        exported: a function from inputs to outputs, which uses the exported files.
        given: the experiment and its data.
        tolerance: the allowed difference of outputs, as a fraction of the largest output.

    Raises:
        ExportFailed: if the two groups differ, or if the metric is not the one that the study reported.
    """
    import torch

    from tune_sparsity.experiments.metrics import Scorer, metric_of
    from tune_sparsity.tuner.results.networks import agrees

    (experiment, data), objective = given, study.goal.objective
    scorers = [Scorer(metric_of(experiment.metric), torch.device("cpu")) for _ in range(2)]
    difference = largest = 0.0
    try:
        with torch.no_grad():
            for x, y in data.val.batches(256):
                pair = whole(x), exported(x)
                for scorer, outputs in zip(scorers, pair, strict=True):
                    scorer.add(outputs, y)
                sure = _sure(whole, x)
                difference = max(difference, _most(pair[0][sure] - pair[1][sure]))
                largest = max(largest, _most(pair[0]))
    except Exception as error:  # an error in the library that reads the format
        raise ExportFailed(f"the exported group cannot be used: {one_line(error)}") from error
    measured, value = (scorer.value() for scorer in scorers)
    if not agrees(experiment, measured, group[objective.val], data.val):
        raise ExportFailed(
            f"the group has a validation {objective.name} of {measured:.4f} on these data, but the study reported "
            f"{group[objective.val]:.4f}: are these the study's data?"
        )
    if difference > tolerance * (largest or 1.0):
        raise ExportFailed(f"the exported group computes something else: outputs differ by {difference:.3g}")
    return {objective.val: value, f"network_{objective.val}": measured, "largest_difference": difference}


def _sure(whole: Cascade, x: Any) -> Tensor:
    """Return a mask that is False for examples with a margin near the threshold. For such examples, rounding may decide
    which network answers."""
    from tune_sparsity.experiments.cascade import margins

    return (margins(whole.small(x)) - whole.theta).abs() > _NEAR


def _most(outputs: Tensor) -> float:
    return float(outputs.abs().max()) if outputs.numel() else 0.0


def group_text(document: dict[str, Any], objective: Objective) -> str:
    """Return the result of `export_group` as text for the terminal."""
    value = objective.text(document[objective.val])
    packed = document["size_bytes"]
    return "\n".join(
        [
            f"{document['file']}  ({document['bytes']:,} bytes)",
            f"checked on the validation data: {objective.name} {value}, outputs within "
            f"{document['largest_difference']:.2g} of the group's",
            f"{document['passed_on']:.1%} of the examples, with a margin below {document['theta']:.6g}, go to the "
            "large network",
            f"an example takes {document['expected_macs']:,.0f} multiply-adds on average, and at most "
            f"{document['worst_macs']:,}{'' if packed is None else f'; packed, both networks take {packed:,} bytes'}",
        ]
    )
