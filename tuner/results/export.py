"""`tune-sparsity export`: a study's network as a file for other programs, checked, and what its zeros are worth."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_sparsity.tuner.errors import UsageError, one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tune_sparsity.experiments import Data, Experiment
    from tune_sparsity.sparsity.few_bits import Codes, Precision, Signs
    from tune_sparsity.tuner.results.finished_study import EndedStudy
    from tune_sparsity.tuner.results.inference_cost import Latency
    from tune_sparsity.tuner.study.objective import Objective

SUFFIXES = {
    "packed": ".packed",
    "safetensors": ".safetensors",
    "onnx": ".onnx",
    "torch": ".pt",
    "csr": ".csr.safetensors",
}
"""The formats, and how the names of their files end."""


class ExportFailed(Exception):
    """The file was not written, or is not the network; the message is one line."""


@dataclass(frozen=True)
class Network:
    """A study's network, read back from where the study wrote it."""

    experiment: Experiment
    data: Data
    model: nn.Module  # in evaluation mode
    tensors: dict[str, Tensor]
    prunable: set[str]
    precision: Precision
    description: Path  # model.json
    objective: Objective
    val_value: float  # the metric on the validation data, as the trial reported it

    @cached_property
    def _precise(self) -> dict[str, Tensor | Codes | Signs]:
        """Return the tensors in their own precision."""
        return self.precision.of(self.tensors, self.prunable)

    @cached_property
    def packed(self) -> bytes:
        """Return the packed file. Raises ValueError if there can be none."""
        from tune_sparsity.sparsity.cost.writer import encode

        return encode(self._precise, self.precision.with_zeros(self.prunable))

    @cached_property
    def coded(self) -> dict[str, Tensor | Codes]:
        """Return the tensors in their own precision, signs as int8."""
        from tune_sparsity.sparsity.few_bits import Signs

        return {name: one.values if isinstance(one, Signs) else one for name, one in self._precise.items()}

    @property
    def codes(self) -> dict[str, Codes]:
        """Return the codes of those that have few bits."""
        from tune_sparsity.sparsity.few_bits import Codes

        return {name: one for name, one in self.coded.items() if isinstance(one, Codes)}


def export_network(
    study: EndedStudy, name: str, kind: str, path: Path, given: tuple[Experiment, Data] | None = None
) -> dict[str, Any]:
    """Writes one network of a study, checks the file on the validation data, and measures what its zeros save.

    Args:
        name: of the network, a folder under the study's.
        kind: a format of `SUFFIXES`.
        path: the file; replaced if it exists. Beside it goes model.json, under the file's name with .json added.
        given: as `read_network` takes it.

    Returns:
        The figures, in JSON's types.

    Raises:
        UsageError: if the experiment or its data are not to be had, or the file cannot be written.
        ExportFailed: if the file does not compute what the network computes; it is removed.
    """
    import torch

    from tune_sparsity.tuner.results.inference_cost import sizes
    from tune_sparsity.tuner.results.networks import agrees

    network = read_network(study, name, given)
    val, objective = network.data.val, network.objective
    try:
        measured = network.experiment.validated(network.model, network.data)
    except Exception as error:  # the user's
        raise ExportFailed(f"{name} cannot be measured on the validation data: {one_line(error)}") from error
    if measured is not None and not agrees(network.experiment, measured, network.val_value, val):
        raise ExportFailed(
            f"{name} has a validation {objective.name} of {measured:.4f} on these data, its trial reported "
            f"{network.val_value:.4f}: are they the study's data?"
        )
    with replacing(path) as temporary:
        _write(network, kind, temporary)
        try:
            difference, value = _compare(network, reader_of(network, kind, temporary))
        except Exception as error:  # of the program that reads the format
            raise ExportFailed(f"the {kind} file cannot be used: {one_line(error)}") from error
        scale = difference[1] or 1.0
        if difference[0] > (tolerance_of(network) * scale if kind == "onnx" else 0.0):
            raise ExportFailed(f"the {kind} file computes something else: outputs differ by {difference[0]:.3g}")
    shutil.copyfile(network.description, path.with_name(path.name + ".json"))
    return {
        "study": study.config.study,
        "network": name,
        "format": kind,
        "file": str(path),
        "bytes": path.stat().st_size,
        **({} if measured is None else {objective.val: value, f"network_{objective.val}": measured}),
        "largest_difference": difference[0],
        "sparsity": json.loads(network.description.read_text())["metrics"]["sparsity"],
        "sizes": sizes(network.tensors, network.prunable) | _packed(network),
        "threads": torch.get_num_threads(),
        "latency_ms": [asdict(one) for one in _latencies(network)],
    }


def _packed(network: Network) -> dict[str, int]:
    """Return the bytes of the network's packed file, where there can be one."""
    with suppress(ValueError):
        return {"packed": len(network.packed)}
    return {}


def _latencies(network: Network) -> list[Latency]:
    from tune_sparsity.tuner.results.inference_cost import latencies

    experiment = network.experiment
    prepared, twin = experiment.prepare(network.data.val.first(256).x), experiment.network_with(network.tensors)
    return latencies(network.model, twin, network.prunable, prepared, forward=experiment.forward)


def read_network(study: EndedStudy, name: str, given: tuple[Experiment, Data] | None = None) -> Network:
    """Return one network of a study.

    Args:
        name: a folder under the study's.
        given: its experiment and data, where they have been read.

    Raises:
        UsageError: if it cannot be read, or if the experiment or its data are not to be had.
    """
    from safetensors.torch import load_file

    from tune_sparsity.sparsity.wrappers import as_plain
    from tune_sparsity.tuner.config.experiment import experiment_of, sound_data
    from tune_sparsity.tuner.results.networks import precision_in, split_masks
    from tune_sparsity.tuner.study.layout import DESCRIPTION, MODEL

    experiment = given[0] if given else experiment_of(study.config)
    data = given[1] if given else sound_data(study.config, experiment)
    folder, objective = study.folder / name, study.goal.objective
    try:
        stored, its_masks = split_masks(load_file(folder / MODEL))
        reported = float(json.loads((folder / DESCRIPTION).read_text())["metrics"][objective.val])
        model = experiment.network_with(stored)
        tensors, masks = as_plain(model, stored), as_plain(model, its_masks)
        precision = precision_in(folder / MODEL)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UsageError(f"{folder} does not hold a network of {study.config.experiment}: {error}") from None
    return Network(experiment, data, model, tensors, set(masks), precision, folder / DESCRIPTION, objective, reported)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write to, which takes the path's place at the end, and is gone after an exception."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.umask(mask := os.umask(0o077))
        temporary.chmod(0o666 & ~mask)  # safetensors' own files are private to their owner
        temporary.replace(path)
    except OSError as error:
        raise UsageError(f"--out {path}: cannot be written ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)


def _write(network: Network, kind: str, path: Path) -> None:
    from tune_sparsity.tuner.results import export_formats as formats

    if kind == "onnx":
        try:
            example = network.data.val.first(2).x
            formats.save_onnx(network.model, network.experiment.outputs, example, path, network.codes)
        except RuntimeError as error:
            raise ExportFailed(str(error)) from error
    elif kind == "packed":
        try:
            path.write_bytes(network.packed)
        except ValueError as error:
            raise ExportFailed(str(error)) from error
    elif kind == "csr":
        formats.save_csr(network.tensors, network.prunable, path)
    elif kind == "torch":
        formats.save_torch(network.tensors, path)
    else:
        formats.save_safetensors(network.coded, path)


def reader_of(network: Network, kind: str, path: Path) -> Callable[[Any], Tensor]:
    """Return the file as a function of inputs as the data set holds them: read back as its users would."""
    import torch

    from tune_sparsity.sparsity.cost.writer import load
    from tune_sparsity.tuner.results import export_formats as formats

    if kind == "onnx":
        try:
            return formats.onnx_function(path)
        except Exception as error:  # onnxruntime's, of an LSTM with projections
            raise ExportFailed(f"onnxruntime cannot read the file that torch has written: {one_line(error)}") from error
    tensors = {
        "packed": lambda: load(path.read_bytes()),
        "safetensors": lambda: formats.load_safetensors(path),
        "torch": lambda: torch.load(path, weights_only=True),
        "csr": lambda: formats.load_csr(path),
    }[kind]()
    return partial(network.experiment.outputs, network.experiment.network_with(tensors))


def _compare(network: Network, exported: Callable[[Any], Tensor]) -> tuple[tuple[float, float], float | None]:
    """((the largest difference of outputs, the largest output), the exported one's metric) on validation data. Of a
    loop of one's own the data are the inputs of its first forward pass, and there is no metric."""
    import torch

    from tune_sparsity.experiments.metrics import Scorer, metric_of

    difference = largest = 0.0
    metric = metric_of(network.experiment.metric)
    scorer = None if metric.function is None else Scorer(metric, torch.device("cpu"))
    with torch.no_grad():
        for x, y in network.data.val.batches(256):
            expected, found = network.experiment.outputs(network.model, x), exported(x)
            difference = max(difference, float((expected - found).abs().max()))
            largest = max(largest, float(expected.abs().max()))
            if scorer is not None:
                scorer.add(found, y)
        return (difference, largest), None if scorer is None else scorer.value()


def tolerance_of(network: Network) -> float:
    """Return how far, in largest outputs, another program's outputs may be from the network's: its sums round
    differently."""
    import torch

    steps = [torch.finfo(one.dtype).eps for one in network.tensors.values() if one.is_floating_point()]
    return max(1e-3, 4 * max(steps, default=0.0))


def as_text(document: dict[str, Any], objective: Objective) -> str:
    """Return the figures as a person reads them."""
    value = document.get(objective.val)
    metric = "" if value is None else f"{objective.name} {objective.text(value)}"
    checked = f"the validation data: {metric}" if metric else "the inputs of the loop's first forward pass"
    lines = [
        f"{document['file']}  ({document['bytes']:,} bytes)",
        f"checked on {checked}, outputs within {document['largest_difference']:.2g} of the network's",
        "",
        f"{'numbers of the network':<24}{'bytes':>12}{'of dense':>10}",
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
    """Say in one sentence how much sparsity saves here, also when it saves nothing."""
    held = document["sizes"]
    best = min((name for name in held if name != "dense"), key=held.__getitem__)
    words = best.replace("_", " ")
    size = (
        f"Stored as {words} it takes {held['dense'] / held[best]:.1f} times less room."
        if held[best] < held["dense"]
        else "No form takes less room than the dense one."
    )
    notes = {one["note"] for one in document["latency_ms"] if one["note"]}
    timed = [one for one in document["latency_ms"] if one["sparse"] is not None]
    if not timed:
        return f"{size} Its time over sparse matrices was not measured: {'; '.join(notes)}."
    faster = [one for one in timed if one["sparse"] < one["dense"]]
    slower = [one for one in timed if one not in faster]
    said = [
        f"at batch {one['batch']} sparse matrices make it {one['dense'] / one['sparse']:.1f} times faster"
        for one in faster
    ] + [
        f"at batch {one['batch']} they gain nothing: {one['sparse'] / one['dense']:.1f} times the dense time"
        for one in slower
    ]
    if not faster:
        said = [
            "Unstructured sparsity gains no time on this machine: "
            + ", ".join(
                f"{one['sparse'] / one['dense']:.1f} times the dense time at batch {one['batch']}" for one in slower
            )
        ]
    text = "; ".join(said)
    note = f" ({'; '.join(notes)})" if notes else ""
    return f"{size} {text[0].upper()}{text[1:]}{note}."
