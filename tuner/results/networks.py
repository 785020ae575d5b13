"""Measure the reported networks once on the test data, and write them as files that hold no code."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load, load_file

from tune_sparsity.experiments import Data, Experiment, Loaded, Split
from tune_sparsity.experiments.base import NotFinite, in_evaluation
from tune_sparsity.experiments.examples import mapped
from tune_sparsity.experiments.metrics import metric_of
from tune_sparsity.sparsity import DeadNeurons, dead_neurons, prunable_layers
from tune_sparsity.sparsity.cost.writer import encode
from tune_sparsity.sparsity.few_bits import Precision
from tune_sparsity.sparsity.neurons.finding import with_neurons
from tune_sparsity.sparsity.neurons.groups import NeuronGroups
from tune_sparsity.sparsity.neurons.removal import smaller
from tune_sparsity.sparsity.patterns import Neurons
from tune_sparsity.tuner.config.study_config import StudyConfig
from tune_sparsity.tuner.errors import disk_error, one_line
from tune_sparsity.tuner.study.layout import DESCRIPTION, MODEL, PRECISION, SPREAD
from tune_sparsity.tuner.study.trial import TrialRecord
from tune_sparsity.tuner.system.files import plain, write_atomically

_MASK = ".mask"


class _OtherNetwork(RuntimeError):
    """A file does not hold the network that its trial reported."""


@dataclass(frozen=True)
class BestModel:
    """The measures of a reported network."""

    test_value: float | None  # the metric on the test data; None if measuring it failed
    weights: int  # prunable ones
    zeros: int  # of those, counted in the tensors themselves
    by_layer: Mapping[str, float]  # the sparsity of each prunable weight, by its name
    dead: Mapping[str, DeadNeurons] = field(default_factory=dict)  # of the layers that have any, by name
    problem: str = ""  # why it has no test value, in one line


@dataclass(frozen=True)
class Written:
    """The measures of the networks that were written, by the numbers of their trials, and a line for each failure."""

    networks: Mapping[int, BestModel]
    problems: list[str]


def measuring_device(config: StudyConfig) -> str:
    """Return the device on which the reported networks are measured: a GPU if trials use GPUs and this machine has one,
    otherwise the CPU."""
    return "cuda" if config.gpus_per_trial != 0 and torch.cuda.is_available() else "cpu"


def write_networks(
    folders: Mapping[str, TrialRecord],
    weights: Callable[[TrialRecord], Path],
    folder: Path,
    experiment: Experiment,
    data: Data,
    device: str = "cpu",
) -> Written:
    """Write the network of every reported trial into its folders. Remove the folders of other trials.

    Each network is measured only once, even if it is written into several folders. If one network fails, the others are
    still written.

    Args:
        folders: the folder of each network within the study's folder -> its trial.
        weights: a function that returns the file into which a trial wrote its network. If a study that had ended is
            resumed, this file no longer exists. The network is then read from its folder, which was written when the
            study ended before.
        folder: the study's folder.
        device: the device for the measurement.

    Raises:
        OSError: if the folder cannot be written to.
    """
    earlier = _written(folder)
    measured: dict[int, BestModel] = {}
    problems: dict[str, None] = {}  # a network in several folders fails in each
    for name, record in folders.items():
        own = weights(record)
        if not own.exists():
            own = earlier.get(record.name, own)
        known = measured.get(record.number)
        try:
            best = write_best(own, folder / name, experiment, data, record, known, device)
        except (Exception, SystemExit) as error:
            if disk_error(error):
                raise
            gone = f"{own} was removed" if not own.exists() else one_line(error)
            problems[f"the network of {record.name} was not written: {gone}"] = None
            if (folder / name).is_dir() and _trial_in(folder / name) != record.name:
                shutil.rmtree(folder / name)
            continue
        measured[record.number] = best
        if best.problem:
            problems[f"the test {record.objective.name} of {record.name} was not measured: {best.problem}"] = None
    for stale in set(_networks(folder)) - {folder / name for name in folders}:
        shutil.rmtree(stale)
    return Written(measured, list(problems))


def _networks(folder: Path) -> list[Path]:
    """Return the folders of the study's networks."""
    return sorted(path.parent for pattern in ("best*", "front/*") for path in folder.glob(f"{pattern}/{DESCRIPTION}"))


def _written(folder: Path) -> dict[str, Path]:
    """Return the networks that the study has written before, by the name of the trial."""
    return {_trial_in(path): path / MODEL for path in _networks(folder)}


def _trial_in(folder: Path) -> str:
    """Return the trial whose network lies in a folder."""
    return str(json.loads((folder / DESCRIPTION).read_text())["trial"])


def write_best(
    weights: Path,
    target: Path,
    experiment: Experiment,
    data: Data,
    record: TrialRecord,
    measured: BestModel | None = None,
    device: str = "cpu",
) -> BestModel:
    """Read a trial's network, measure it on the test data, and write it into the folder `target`.

    A network that cannot be measured is still written.

    Args:
        measured: earlier measures of the same network. If they are given, the network is not measured again.
        device: the device for the measurement.

    Raises:
        RuntimeError: if the sparsity or the validation metric of the file differs from the trial's report. The file is
            then not the network that the worker trained, and its figures must not be trusted.
    """
    tensors, masks = split_masks(load_file(weights))
    model = experiment.network_with(tensors)
    best = measured or _measure(experiment, data, model.to(device), tensors, masks, precision_in(weights), record)
    description = _describe(experiment, data, model, record, best)
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(weights, target / f".{MODEL}.tmp")
    (target / f".{MODEL}.tmp").replace(target / MODEL)
    write_atomically(target / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    return best


def mask_names(stored: Mapping[str, Any]) -> list[str]:
    """Return the names of the weights that have a mask beside them, in the network's order."""
    return [name for name in stored if f"{name}{_MASK}" in stored]


def split_masks(stored: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Split the tensors that `tuner.worker.trainable.save_weights` wrote into the network's state_dict and the masks.
    Each mask has the name of its weight."""
    masks = {name: stored[f"{name}{_MASK}"] for name in mask_names(stored)}
    return {name: tensor for name, tensor in stored.items() if not name.endswith((_MASK, SPREAD))}, masks


def precision_in(network: Path) -> Precision:
    """Return the precision of the network in this file: the number of bits of its weights."""
    with safe_open(network, "pt") as file:
        known = (file.metadata() or {}).get(PRECISION)
    if known is None:
        return Precision()
    bits, halves, biases, *signs = json.loads(known)  # earlier versions wrote three
    return Precision(bits, tuple(halves), biases, *signs)


def _measure(
    experiment: Experiment,
    data: Data,
    model: torch.nn.Module,
    tensors: dict[str, torch.Tensor],
    masks: dict[str, torch.Tensor],
    precision: Precision,
    record: TrialRecord,
) -> BestModel:
    """Measure the network on the test data, if it is the one that its trial reported. Raise RuntimeError if it is
    not."""
    zeros, total = count_zeros(tensors, masks)
    if record.size_bytes is not None:
        packed = len(encode(precision.of(tensors, masks), precision.with_zeros(masks)))
        if packed > record.size_bytes:  # an earlier version may have written a larger file
            raise _OtherNetwork(f"{record.name} reported {record.size_bytes} bytes, its packed file has {packed}")
    if zeros / total != record.sparsity:
        raise _OtherNetwork(f"{record.name} reported sparsity {record.sparsity}, its file has {zeros}/{total} zeros")
    if any(not torch.equal(tensors[name] != 0, mask) for name, mask in masks.items()):
        raise _OtherNetwork(f"{record.name}: the zeros of its file are not where its masks say")
    by_layer = {name: 1 - int(mask.sum()) / mask.numel() for name, mask in masks.items()}
    layers = [] if precision.signs else prunable_layers(model, experiment.layers, sphere=False)
    dead = dead_neurons(layers, (masks[layer.name] for layer in layers))
    best = BestModel(None, total, zeros, by_layer, dead)
    value: float | None = math.nan
    try:
        with suppress(NotFinite):
            value = experiment.validated(model, data)
        if value is not None and (record.value is None or not agrees(experiment, value, record.value, data.val)):
            name = record.objective.name
            raise _OtherNetwork(f"{record.name} reported {name} {record.value}, its file gives {value}")
        return replace(best, test_value=experiment.tested(model, data))
    except _OtherNetwork:
        raise
    except (Exception, SystemExit) as error:  # the user's
        return replace(best, problem=one_line(error))


def agrees(experiment: Experiment, measured: float, reported: float, split: Split | Loaded) -> bool:
    """Return whether a metric that was measured again, perhaps on another device, agrees with the trial's report."""
    return abs(measured - reported) <= metric_of(experiment.metric).tolerance(reported, split.examples)


def test_value(experiment: Experiment, data: Data, network: bytes, device: str) -> float | None:
    """Return a network's metric on the test data, computed on `device`. The network is a result of
    `tuner.worker.trainable.packed_weights`."""
    model = experiment.network_with(split_masks(load(network))[0])
    return experiment.tested(model.to(device), data)


def network_in(experiment: Experiment, file: Path) -> torch.nn.Module:
    """Return the network of a trial's file, in evaluation mode.

    Args:
        file: a file with the result of `tune_sparsity.tuner.worker.trainable.packed_weights`.
    """
    return experiment.network_with(split_masks(load_file(file))[0])


def without_neurons(experiment: Experiment, data: Data, model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of a network without its removed neurons.

    Args:
        experiment: the network's experiment.
        data: the experiment's data. If the groups of neurons are not known, two examples are used to find them.
        model: the network, as `experiment.network_with` makes it.

    Raises:
        ValueError: if the pattern of the zeros is not `neurons`, or if the network cannot be traced.
    """
    example = experiment.prepare(data.val.first(2).x)
    rules = with_neurons(experiment.layers, model, example, experiment.forward)
    if not isinstance(rules.pattern, Neurons) or not isinstance(rules.pattern.groups, NeuronGroups):
        raise ValueError(f"zeros in the pattern {rules.pattern} do not remove neurons")
    masks = [(layer.weight != 0).float() for layer in prunable_layers(model, rules, sphere=False)]
    return in_evaluation(smaller(model, rules.pattern.groups, masks))


def count_zeros(tensors: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Return (zero weights, all weights) of the tensors with a mask. Zeros of the masks do not count."""
    zeros = sum(int((tensors[name] == 0).sum()) for name in masks)
    return zeros, sum(mask.numel() for mask in masks.values())


def _describe(
    experiment: Experiment,
    data: Data,
    model: torch.nn.Module,
    record: TrialRecord,
    best: BestModel,
) -> dict[str, Any]:
    """Describe the network so that a person can use it again, in JSON's types."""
    return {
        "experiment": experiment.name,
        "architecture": str(model).split("\n"),
        "input_shape": mapped(lambda x: list(x.shape[1:]), data.test.first(1).x),
        "preprocessing": data.preprocessing,
        "classes": list(data.classes),
        "trial": record.name,
        "method": record.method,
        "params": {name: plain(value) for name, value in record.params.items()},
        "metrics": {
            record.objective.val: record.value,
            record.objective.test: best.test_value,
            "sparsity": record.sparsity,
            "sparsity_total": record.sparsity_total,
            "nonzero_weights": best.weights - best.zeros,
            "weights": best.weights,
            "size_bytes": record.size_bytes,
            "macs": record.macs,
            "syn_ops": record.syn_ops,
            "bit_ops": record.bit_ops,
        },
        "sparsity_by_layer": dict(best.by_layer),
    }
