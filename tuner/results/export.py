"""Exports a study's network for other programs, checks the file, and measures the space and time its zeros save."""

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
    from tune_sparsity.tuner.results.forms import Latency, Weights
    from tune_sparsity.tuner.study.objective import Objective

SUFFIXES = {
    "packed": ".packed",
    "safetensors": ".safetensors",
    "onnx": ".onnx",
    "torch": ".pt",
    "csr": ".csr.safetensors",
}
"""The suffix of the file's name for each format."""


class ExportFailed(Exception):
    """Reports that a network could not be exported, or that an exported file gives other outputs than the network. The
    message is one line."""


@dataclass(frozen=True)
class Network:
    """A network that a study has written to its folder, with the network's experiment and data."""

    experiment: Experiment
    data: Data
    model: nn.Module  # in evaluation mode
    tensors: dict[str, Tensor]  # the network's state_dict
    prunable: set[str]  # the names of its prunable weights
    precision: Precision
    description: Path  # model.json
    objective: Objective
    val_value: float  # the metric on the validation data that the trial reported

    @cached_property
    def _precise(self) -> dict[str, Tensor | Codes | Signs]:
        """Return the state_dict in the number types that the network was trained for. Weights with few bits become
        instances of Codes or Signs (see tune_sparsity.sparsity.few_bits)."""
        return self.precision.of(self.tensors, self.prunable)

    @cached_property
    def packed(self) -> bytes:
        """Return the content of the packed file, this package's smallest format. Raise ValueError if the format cannot
        hold the network."""
        from tune_sparsity.sparsity.cost.writer import encode

        return encode(self._precise, self.precision.with_zeros(self.prunable))

    @cached_property
    def coded(self) -> dict[str, Tensor | Codes]:
        """Return the state_dict. In it, prunable weights that were trained with 8, 4 or 2 bits are `Codes` (whole
        numbers and scales). Those with one bit are int8 tensors of -1 and +1."""
        from tune_sparsity.sparsity.few_bits import Signs

        return {name: one.values if isinstance(one, Signs) else one for name, one in self._precise.items()}

    def without_neurons(self, model: nn.Module) -> nn.Module:
        """Return a smaller copy of a model, without the neurons that its training removed. See
        `tuner.results.networks.without_neurons`."""
        from tune_sparsity.tuner.results.networks import without_neurons

        return without_neurons(self.experiment, self.data, model)

    @property
    def timed_weights(self) -> Weights:
        """Return an object of `tuner.results.forms.Weights`, with which forward passes of the network are measured. The
        inputs are the first 256 validation examples."""
        from tune_sparsity.tuner.results.forms import Weights

        experiment = self.experiment
        return Weights(
            lambda: experiment.network_with(self.tensors),
            self.prunable,
            experiment.prepare(self.data.val.first(256).x),
            experiment.forward,
            self.without_neurons if self.removes_neurons else None,
        )

    @property
    def removes_neurons(self) -> bool:
        """Return whether the study removed whole neurons, so that a smaller network without them exists."""
        from tune_sparsity.sparsity.patterns import Neurons

        return isinstance(self.experiment.layers.pattern, Neurons)

    @property
    def codes(self) -> dict[str, Codes]:
        """Return the weights with 8, 4 or 2 bits, as a dict from their names to `Codes`."""
        from tune_sparsity.sparsity.few_bits import Codes

        return {name: one for name, one in self.coded.items() if isinstance(one, Codes)}


def export_network(
    study: EndedStudy, name: str, kind: str, path: Path, given: tuple[Experiment, Data] | None = None
) -> dict[str, Any]:
    """Write a network of a study, check the file on the validation data, and measure the space and time its zeros save.

    Args:
        study: the study.
        name: the network's folder in the study's folder, such as "best".
        kind: the format, a key of `SUFFIXES`.
        path: the file to write. An existing file is replaced. The network's model.json, a description of the network,
            is copied to the same folder. The copy has the name of the exported file, with .json added.
        given: the experiment and its data, if the caller already has them.

    Returns:
        The results as a dict for JSON: file, metric, sizes in several formats, and milliseconds of forward passes.

    Raises:
        UsageError: if the network, the experiment or its data cannot be found, or if the file cannot be written.
        ExportFailed: if the format cannot hold the network, if the file gives other outputs than the network, or if the
            network's metric differs from the value that its trial reported. The file at `path` is then not changed.
    """
    import torch

    from tune_sparsity.tuner.results.inference_cost import sizes
    from tune_sparsity.tuner.results.networks import agrees

    network = read_network(study, name, given)
    val, objective = network.data.val, network.objective
    try:
        measured = network.experiment.validated(network.model, network.data)
    except Exception as error:  # an error in the user's code
        raise ExportFailed(f"{name} cannot be measured on the validation data: {one_line(error)}") from error
    if measured is not None and not agrees(network.experiment, measured, network.val_value, val):
        raise ExportFailed(
            f"{name} has a validation {objective.name} of {measured:.4f} on these data, but its trial reported "
            f"{network.val_value:.4f}: are these the study's data?"
        )
    with replacing(path) as temporary:
        write_as(network, kind, temporary)
        try:
            difference, value = _compare(network, reader_of(network, kind, temporary))
        except Exception as error:  # an error in the library that reads the format
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
    """Return {"packed": size of the packed file in bytes}, or an empty dict if the packed format cannot hold the
    network."""
    with suppress(ValueError):
        return {"packed": len(network.packed)}
    return {}


def _latencies(network: Network) -> list[Latency]:
    from tune_sparsity.tuner.results.forms import latencies

    return latencies(network.timed_weights)


def read_network(study: EndedStudy, name: str, given: tuple[Experiment, Data] | None = None) -> Network:
    """Return one network of a study.

    Args:
        study: the study.
        name: the network's folder in the study's folder, such as "best".
        given: the experiment and its data, if the caller already has them.

    Raises:
        UsageError: if the network cannot be read, or if the experiment or its data cannot be found.
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
    """Return a context manager that yields the path of a temporary file, which its block must write. At the end of the
    block, this file replaces the file at `path`. If the block raises an exception, the temporary file is removed.

    Raises:
        UsageError: if the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.umask(mask := os.umask(0o077))
        temporary.chmod(0o666 & ~mask)  # because safetensors writes files that only the owner can read
        temporary.replace(path)
    except OSError as error:
        raise UsageError(f"--out {path}: cannot be written ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_as(network: Network, kind: str, path: Path) -> None:
    """Write a network in one of the formats.

    Raises:
        ExportFailed: if the format cannot hold the network, or if the library that writes the format fails.
        OSError: if the file cannot be written.
    """
    try:
        _write(network, kind, path)
    except OSError:
        raise
    except Exception as error:
        raise ExportFailed(f"the network cannot be written as {kind}: {one_line(error)}") from error


def _write(network: Network, kind: str, path: Path) -> None:
    from tune_sparsity.tuner.results import export_formats as formats

    if kind == "onnx":
        example = network.data.val.first(2).x
        model, codes = network.model, network.codes
        if network.removes_neurons and not codes:
            model = network.without_neurons(model)
        formats.save_onnx(model, network.experiment.outputs, example, path, codes)
    elif kind == "packed":
        path.write_bytes(network.packed)
    elif kind == "csr":
        formats.save_csr(network.tensors, network.prunable, path)
    elif kind == "torch":
        formats.save_torch(network.tensors, path)
    else:
        formats.save_safetensors(network.coded, path)


def reader_of(network: Network, kind: str, path: Path) -> Callable[[Any], Tensor]:
    """Return a function (inputs as in the data set) -> outputs, which uses the network in an exported file. The
    function prepares the inputs. The file is read with the functions that users call to read it.

    Args:
        network: the study's network. It is needed to prepare inputs and to build the model, except for "onnx".
        kind: the format of the file, a key of `SUFFIXES`.
        path: the file.

    Raises:
        ExportFailed: if onnxruntime cannot read an ONNX file.
    """
    import torch

    from tune_sparsity.sparsity.cost.writer import load
    from tune_sparsity.tuner.results import export_formats as formats

    if kind == "onnx":
        try:
            return formats.onnx_function(path)
        except Exception as error:  # for example for an LSTM with projections
            raise ExportFailed(f"onnxruntime cannot read the file that torch has written: {one_line(error)}") from error
    tensors = {
        "packed": lambda: load(path.read_bytes()),
        "safetensors": lambda: formats.load_safetensors(path),
        "torch": lambda: torch.load(path, weights_only=True),
        "csr": lambda: formats.load_csr(path),
    }[kind]()
    return partial(network.experiment.outputs, network.experiment.network_with(tensors))


def _compare(network: Network, exported: Callable[[Any], Tensor]) -> tuple[tuple[float, float], float | None]:
    """Compare the exported file with the network on the validation data.

    For a user's own training loop, the data are the inputs of its first forward pass, and there is no metric.

    Returns:
        ((largest absolute difference of outputs, largest absolute output), the exported file's metric or None).
    """
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
    """Return the largest accepted difference of an ONNX file's outputs, as a fraction of the network's largest output.
    A difference is expected, because other programs round sums differently."""
    import torch

    steps = [torch.finfo(one.dtype).eps for one in network.tensors.values() if one.is_floating_point()]
    return max(1e-3, 4 * max(steps, default=0.0))
