"""One trial as Ray runs it: a worker process that is kept and reused, one thread, one report an epoch."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import tune
from safetensors.torch import save_file
from torch import Tensor

from experiments import Data, Experiment, Split, Training
from experiments.training import NotFinite
from tuner.travel import Parcel

METRICS = "metrics"  # in a report: what Training.epoch measured
FINAL_SPARSITY = "final_sparsity"  # in a report: the sparsity that the trial is to end on
FINAL = "final"  # in a report: the trial has trained all its epochs; without it a trial that ends was stopped
FAILURE = "failure"  # in a report, instead of all these: why the trial failed, in one line


@dataclass(frozen=True)
class TrialSetup:
    """What all trials of a study share; sent to every worker once."""

    experiment: Experiment
    epochs: int
    seed: int
    device: str  # "cpu" or "cuda"
    weights_folder: Path
    source: str = ""  # the name that the experiment was found by, from which its code travels to the workers

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "experiment": Parcel(self.experiment, self.source)}


def shared_arrays(data: Data) -> dict[str, np.ndarray]:
    """Training and validation data as arrays, which Ray's object store hands to workers without a copy. The test data
    never leaves the driver."""
    arrays = {"train_x": data.train.x, "train_y": data.train.y, "val_x": data.val.x, "val_y": data.val.y}
    return {name: tensor.numpy() for name, tensor in arrays.items()}


def trial_seed(study_seed: int, number: int) -> int:
    """A trial's own seed: different for every trial, the same whenever the study is run again."""
    return int(np.random.SeedSequence([study_seed, number]).generate_state(1)[0])


def weights_file(folder: Path, number: int) -> Path:
    """Where trial `number` leaves its trained network until the driver has judged it."""
    return folder / f"{number}.safetensors"


class TrialTrainable(tune.Trainable):
    """Ray's view of a Training: `config` holds a trial's number, method and params.

    A trial that fails says so in its last report. Raised to Ray, the exception would end this process, and the next
    trial would wait seconds for a new one.
    """

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], shared: TrialSetup, arrays: dict[str, np.ndarray]
    ) -> None:
        torch.set_num_threads(1)
        self._shared = shared
        self._data = _splits(shared, arrays)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begins another trial in this process, with nothing left of the one before."""
        self._trial, self._training = new_config, None
        if self._shared.device != "cpu":
            torch.cuda.empty_cache()
        return True

    _training: Training | None = None  # built by the first step, so that building it may fail like any other step

    def step(self) -> dict[str, Any]:
        try:
            return self._epoch()
        except torch.AcceleratorError:
            raise  # the device is in an undefined state for this process: let Ray end it
        except Exception as error:
            self._training = None
            return {FAILURE: one_line(error), "done": True}

    def _epoch(self) -> dict[str, Any]:
        if self._training is None:
            self._training = _training(self._shared, self._data, self._trial)
        training = self._training
        metrics = training.epoch()
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise NotFinite(f"{name} is {value} after epoch {training.epochs_done}")
        report: dict[str, Any] = {METRICS: metrics, FINAL_SPARSITY: training.sparse.final_sparsity}
        if training.finished:
            save_weights(training, weights_file(self._shared.weights_folder, self._trial["number"]))
            report |= {FINAL: True, "done": True}
        return report


def one_line(error: BaseException) -> str:
    """An exception as a trial's reason: its type and the first line of what it says."""
    text = " ".join((str(error).splitlines() or [""])[0].split())
    return f"{type(error).__name__}: {text}"[:300]


def train_to_the_end(shared: TrialSetup, arrays: dict[str, np.ndarray], job: dict[str, Any]) -> dict[str, np.ndarray]:
    """One training without reports, for a worker: `job` is a trial's config. Returns the network's tensors."""
    torch.set_num_threads(1)
    training = _training(shared, _splits(shared, arrays), job)
    while not training.finished:
        training.train()
    return {name: tensor.detach().cpu().numpy() for name, tensor in training.model.state_dict().items()}


def _splits(shared: TrialSetup, arrays: dict[str, np.ndarray]) -> tuple[Split, Split]:
    """The training and the validation data, on the device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the arrays are read-only, and nobody writes to them
        tensors = {name: torch.from_numpy(array).to(shared.device) for name, array in arrays.items()}
    return Split(tensors["train_x"], tensors["train_y"]), Split(tensors["val_x"], tensors["val_y"])


def _training(shared: TrialSetup, data: tuple[Split, Split], config: dict[str, Any]) -> Training:
    return Training(
        shared.experiment,
        *data,
        config["method"],
        config["params"],
        epochs=shared.epochs,
        seed=trial_seed(shared.seed, config["number"]),
        device=shared.device,
    )


def save_weights(training: Training, path: Path) -> None:
    """The network's tensors and, under NAME.mask, its masks, as a safetensors file that appears whole or not at all."""
    tensors: dict[str, Tensor] = {
        # Copies: networks may share tensors, and safetensors refuses those.
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in training.model.state_dict().items()
    }
    for layer, mask in zip(training.sparse.layers, training.sparse.masks, strict=True):
        tensors[f"{layer.name}.mask"] = mask.cpu().bool()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    save_file(tensors, temporary)
    temporary.replace(path)
