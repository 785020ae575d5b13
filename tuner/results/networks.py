"""Measure each of a study's best networks once on the test data, and write them to files that contain no code."""

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
    """Reports that a file does not contain the network that its trial reported."""


@dataclass(frozen=True)
class BestModel:
    """Measures of a network that is part of the study's results."""

    test_value: float | None  # the metric on the test data; None if measuring it failed
    weights: int  # the number of prunable weights
    zeros: int  # the number of zeros in the prunable weights, counted in the tensors
    by_layer: Mapping[str, float]  # the sparsity of each prunable weight, by its name
    dead: Mapping[str, DeadNeurons] = field(default_factory=dict)  # by layer; only layers with dead neurons
    problem: str = ""  # the reason why the network has no test value, in one line


@dataclass(frozen=True)
class Written:
    """Describes the networks that were written.

    Attributes:
        networks: a dict from the number of each network's trial to the measures of the network.
        problems: a line of text for each network that could not be written or measured.
    """

    networks: Mapping[int, BestModel]
    problems: list[str]


def measuring_device(config: StudyConfig) -> str:
    """Return the device for measuring networks on the test data: "cuda" if trials use GPUs and this machine has a GPU,
    otherwise "cpu"."""
    return "cuda" if config.gpus_per_trial != 0 and torch.cuda.is_available() else "cpu"


def write_networks(
    folders: Mapping[str, TrialRecord],
    weights: Callable[[TrialRecord], Path],
    folder: Path,
    experiment: Experiment,
    data: Data,
    device: str = "cpu",
) -> Written:
    """Write the networks of a study's results into their folders. Remove folders of networks that are no longer part of
    the results.

    Each network is measured only once, even if it is written into several folders. If one network fails, the others are
    still written.

    Args:
        folders: a dict from the name of each network's folder, within the study's folder, to the network's trial.
        weights: a function from the record of a trial to the file into which the trial wrote its network. If an ended
            study is resumed, the files of its earlier trials no longer exist. Their networks are then read from the
            folders that the study wrote when it ended.
        folder: the study's folder.
        experiment: the study's experiment.
        data: the study's data.
        device: the device for the measurement.

    Raises:
        OSError: if the folder cannot be written to.
    """
    earlier = _written(folder)
    measured: dict[int, BestModel] = {}
    problems: dict[str, None] = {}  # without duplicates: a network may fail in several folders
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
    """Return the files of the networks that the study has written before, as a dict from the trials' names to the
    files."""
    return {_trial_in(path): path / MODEL for path in _networks(folder)}


def _trial_in(folder: Path) -> str:
    """Return the name of the trial whose network is in a folder."""
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

    If the measurement fails, the network is still written.

    Args:
        weights: the file into which the trial wrote its network.
        target: the folder to write.
        experiment: the study's experiment.
        data: the study's data.
        record: the trial.
        measured: earlier measures of the same network. If they are given, the network is not measured again.
        device: the device for the measurement.

    Raises:
        RuntimeError: if the network in the file `weights` does not agree with the trial's report, for example in its
            sparsity or its validation metric. The file then does not contain the network that the worker trained.
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
    """Return the names of the weights whose masks are also among the stored tensors, in the order of `stored`."""
    return [name for name in stored if f"{name}{_MASK}" in stored]


def split_masks(stored: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Split the tensors that `tuner.worker.weights.save_weights` wrote into two dicts: the network's state_dict, and
    a dict from the weights' names to the weights' masks."""
    masks = {name: stored[f"{name}{_MASK}"] for name in mask_names(stored)}
    return {name: tensor for name, tensor in stored.items() if not name.endswith((_MASK, SPREAD))}, masks


def precision_in(network: Path) -> Precision:
    """Return the `Precision` of the network in a file. It says, for example, how many bits the weights have."""
    with safe_open(network, "pt") as file:
        known = (file.metadata() or {}).get(PRECISION)
    if known is None:
        return Precision()
    bits, halves, biases, *signs = json.loads(known)  # earlier versions wrote no signs
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
    """Measure a network on the test data. Raise RuntimeError if it is not the network that its trial reported."""
    zeros, total = count_zeros(tensors, masks)
    if record.size_bytes is not None:
        packed = len(encode(precision.of(tensors, masks), precision.with_zeros(masks)))
        if packed > record.size_bytes:  # not `!=`: earlier versions may have reported a larger file
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
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        return replace(best, problem=one_line(error))


def agrees(experiment: Experiment, measured: float, reported: float, split: Split | Loaded) -> bool:
    """Return whether a metric that was measured again agrees with the trial's report. Small differences are allowed,
    because another device may round differently."""
    return abs(measured - reported) <= metric_of(experiment.metric).tolerance(reported, split.examples)


def test_value(experiment: Experiment, data: Data, network: bytes, device: str) -> float | None:
    """Return a network's metric on the test data. Return None if the experiment is a user's training loop without a
    function that measures the test metric.

    Args:
        experiment: the study's experiment.
        data: the study's data.
        network: the network as bytes, from `tuner.worker.weights.packed_weights`.
        device: the device that computes.
    """
    model = experiment.network_with(split_masks(load(network))[0])
    return experiment.tested(model.to(device), data)


def network_in(experiment: Experiment, file: Path) -> torch.nn.Module:
    """Return the network in a trial's file, in evaluation mode.

    Args:
        experiment: the experiment of the study.
        file: the file, written by `tune_sparsity.tuner.worker.weights.save_weights`.
    """
    return experiment.network_with(split_masks(load_file(file))[0])


def without_neurons(experiment: Experiment, data: Data, model: torch.nn.Module) -> torch.nn.Module:
    """Return a smaller copy of a network, without its removed neurons.

    Args:
        experiment: the network's experiment.
        data: the experiment's data. If it is not known yet which neurons must be removed together, the network is
            traced with two examples.
        model: the network, from `experiment.network_with`.

    Raises:
        ValueError: if the experiment's pattern of zeros is not one that removes neurons, or if the network cannot be
            traced.
    """
    example = experiment.prepare(data.val.first(2).x)
    rules = with_neurons(experiment.layers, model, example, experiment.forward)
    if not isinstance(rules.pattern, Neurons) or not isinstance(rules.pattern.groups, NeuronGroups):
        raise ValueError(f"zeros in the pattern {rules.pattern} do not remove neurons")
    masks = [(layer.weight != 0).float() for layer in prunable_layers(model, rules, sphere=False)]
    return in_evaluation(smaller(model, rules.pattern.groups, masks))


def count_zeros(tensors: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Return (number of zero weights, number of weights) of all tensors that have a mask."""
    zeros = sum(int((tensors[name] == 0).sum()) for name in masks)
    return zeros, sum(mask.numel() for mask in masks.values())


def _describe(
    experiment: Experiment,
    data: Data,
    model: torch.nn.Module,
    record: TrialRecord,
    best: BestModel,
) -> dict[str, Any]:
    """Return the content of model.json, with which a person can use the network again."""
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
