"""Runs trials in a worker process of Ray, one after another, in one thread. A report to the driver may contain the
metrics of several epochs."""

from __future__ import annotations

import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import tune
from torch import Tensor

from tune_sparsity.experiments import Data, Experiment, Loaded, LoopError, OwnLoop, OwnTraining, Split, Training
from tune_sparsity.experiments.examples import mapped
from tune_sparsity.experiments.ranks import Disconnected, Ranks
from tune_sparsity.experiments.training import NotFinite
from tune_sparsity.sparsity.cost.multiply_adds import Uses
from tune_sparsity.sparsity.torch_internals import leave_compiler_out, tree_map
from tune_sparsity.tuner.errors import disk_error, one_line
from tune_sparsity.tuner.storage.places import Place
from tune_sparsity.tuner.storage.s3 import StoreError
from tune_sparsity.tuner.study.layout import weights_file
from tune_sparsity.tuner.study.trial import Epoch
from tune_sparsity.tuner.worker import checkpoints
from tune_sparsity.tuner.worker.ranks import Build, LeadingTraining, Others, RankPlan
from tune_sparsity.tuner.worker.report import Report
from tune_sparsity.tuner.worker.shipping import Parcel
from tune_sparsity.tuner.worker.sizes import ByteLimit, network_cost, spiking_cost
from tune_sparsity.tuner.worker.weights import packed_weights, save_weights

TOGETHER = 0.25  # seconds between two reports, at least, except at rungs and at the end: a report takes milliseconds


def make_quick() -> None:
    """Configure torch for fast training in a worker process: with one thread, without torch.compile, without subnormal
    numbers.

    The momentum of a weight whose input is always zero becomes subnormal. A computation with a subnormal number takes
    about a hundred times as long. So torch replaces these numbers by 0.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    leave_compiler_out()


@dataclass(frozen=True)
class TrialSetup:
    """Holds settings that are the same for all trials of a study. Each worker receives this object once."""

    experiment: Experiment
    epochs: int
    seed: int
    device: str  # "cpu" or "cuda"
    weights_folder: Path | None  # the folder for trained networks; None: the last report contains the network
    source: str = ""  # the value of --experiment, by which its code is found and sent to the workers
    checkpoints: Place | None = None  # the folder of checkpoints, which exists; None: trials write no checkpoints
    rungs: tuple[int, ...] = ()  # the epochs after which early stopping judges a trial
    loads: bool = False  # whether workers load the data themselves
    limit: ByteLimit | None = None  # the limit of the network's packed file
    spread: bool = False  # whether the standard deviation of each averaged weight over training steps is measured
    uses: Uses | None = None  # how often the network uses each weight in one example; None if unknown
    ranks: RankPlan | None = None  # the processes of a trial; None: one process trains a trial

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "experiment": Parcel(self.experiment, self.source, loads=self.loads)}


def shared_arrays(data: Data) -> dict[str, Any]:
    """Return the training and validation data as (nested) NumPy arrays. Workers read these arrays from Ray's object
    store without a copy. Workers never have the test data."""
    parts = {"train_x": data.train.x, "train_y": data.train.y, "val_x": data.val.x, "val_y": data.val.y}
    return {name: mapped(Tensor.numpy, nest) for name, nest in parts.items()}


@dataclass(frozen=True)
class LoadedThere:
    """Makes each worker load the data itself. The workers get this object instead of the result of `shared_arrays` if
    the driver does not hold the data in memory.

    Attributes:
        folder: the value of --data-dir, which is the same on every machine.
        checksum: the checksum of the driver's data. A worker's data must have the same checksum.
    """

    folder: Path | None
    checksum: str

    def load(self, experiment: Experiment) -> Data:
        """Load and return the experiment's data. Raise ValueError if they differ from the driver's data."""
        data = experiment.load(self.folder)
        if data.checksum() != self.checksum:
            where = f"{self.folder or 'the default folder'} on {platform.node()}"
            raise ValueError(f"the data in {where} differ from the driver's data")
        return data


def trial_seed(study_seed: int, number: int) -> int:
    """Return the seed of a trial, which depends only on the study's seed and the trial's number."""
    return int(np.random.SeedSequence([study_seed, number]).generate_state(1)[0])


class TrialTrainable(tune.Trainable):
    """Runs trials for Ray Tune. The config of a trial contains its "number", "method" and "params".

    A trial continues from its newest valid checkpoint, if there is one. If a trial fails, its last report contains the
    error. Most errors are not passed to Ray as exceptions, because Ray would then end this process, and the next trial
    would wait seconds for a new process.
    """

    _training: Training | OwnTraining | None = None  # made in the first step, where an error is reported like any other
    _writer: checkpoints.Writer | None = None

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], shared: TrialSetup, arrays: Any
    ) -> None:
        make_quick()
        self._shared, self._arrays = shared, arrays
        self._splits: tuple[Split | Loaded, Split | Loaded] | None = None
        self._others: Others | None = None
        if shared.checkpoints is not None:
            self._writer = checkpoints.Writer(shared.checkpoints)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Remove all data of the last trial, and begin another trial in this process."""
        self._trial, self._past, self._short_of_memory = new_config, list[Epoch](), False
        try:
            self._let_go()
        except LoopError:  # the earlier trial's loop does not end, so this process ends, and Ray starts a new process
            os._exit(1)
        if self._writer is not None:
            self._writer.begin()
        return True

    @property
    def _data(self) -> tuple[Split | Loaded, Split | Loaded]:
        """Return the training and validation data. They are loaded in a trial's step, so that an error makes the trial
        fail."""
        if self._splits is None:
            self._splits = _splits(self._shared, self._arrays)
        return self._splits

    def _new_training(self) -> Training | OwnTraining:
        if self._shared.ranks is not None and self._others is None:
            self._others = Others(self._shared.ranks, rank_builder, self._arrays)
        return _training(self._shared, lambda: self._data, self._trial, self._others)

    def _let_go(self) -> None:
        """Free the memory of the training. Raise LoopError if the user's own training loop does not end."""
        training, self._training, self._sizes = self._training, None, dict[str, float]()
        if training is not None:
            training.close()
        if self._shared.device != "cpu":
            torch.cuda.empty_cache()

    def step(self) -> dict[str, Any]:
        return self._step().to_dict()

    def _step(self) -> Report:
        done: list[Epoch] = []
        try:
            return self._train(done)
        except torch.AcceleratorError:
            raise  # this process can no longer use the device: let Ray end the process
        except Disconnected:
            self._let_go()  # so that `cleanup` writes no checkpoint in the middle of an epoch
            raise  # let Ray end this process and the trial's other processes
        except (Exception, SystemExit) as error:  # the user's code may call sys.exit
            again = out_of_memory(error) and not self._short_of_memory
            reason, full = one_line(error), disk_error(error)
        self._let_go()  # after the except block, because the exception refers to the training's tensors
        if full:
            return Report(disk=reason)
        if again:
            self._short_of_memory = True
            return self._step()
        return Report(tuple(done), failure=f"{reason} (twice)" if self._short_of_memory else reason)

    def _train(self, done: list[Epoch]) -> Report:
        """Train several epochs and return their report. Each epoch is added to `done` at once, so that it is known even
        after an error. If the trial continues from a checkpoint, the first report has the epochs of the checkpoint."""
        if self._training is None:
            self._training, self._past = self._begun()
            if self._past:
                return self._reported(self._past, again=True)
        training, until = self._training, time.monotonic() + TOGETHER
        while True:
            metrics = {**training.epoch(), **self._sizes_of(training)}
            for name, value in metrics.items():
                if not math.isfinite(value):
                    raise NotFinite(f"{name} is {value} after epoch {training.epochs_done}")
            done.append(Epoch(training.epochs_done, metrics))
            self._past.append(done[-1])
            if training.finished:
                if self._writer is not None:
                    self._writer.finish()
                return self._reported(done, finished=True, weights=self._left(training))
            if self._writer is not None and self._writer.due:
                self._writer.write(self._trial["number"], training.epochs_done, self._state(training))
            if training.epochs_done in self._shared.rungs or time.monotonic() >= until:
                return self._reported(done)

    def _sizes_of(self, training: Training | OwnTraining) -> dict[str, float]:
        """Return the costs of the network: none while the mask may change, then `network_cost`, and after the last
        epoch also `spiking_cost`."""
        if training.sparse.fixed and not self._sizes:
            self._sizes = network_cost(training, self._shared.uses)
        return self._sizes | (spiking_cost(training, self._sizes.get("macs")) if training.finished else {})

    def _reported(self, epochs: list[Epoch], **more: Any) -> Report:
        assert self._training is not None
        return Report(tuple(epochs), final_sparsity=self._training.sparse.final_sparsity, **more)

    def _left(self, training: Training | OwnTraining) -> bytes | None:
        """Write the trained network to its file and return None. If there is no folder for the file, return the
        network."""
        folder = self._shared.weights_folder
        if folder is None:
            return packed_weights(training)
        save_weights(training, weights_file(folder, self._trial["number"]))
        return None

    def _begun(self) -> tuple[Training | OwnTraining, list[Epoch]]:
        """Return the training and its past epochs from this trial's newest valid checkpoint, or else a new training."""
        if self._shared.checkpoints is not None:
            for state in _states(self._shared.checkpoints, self._trial["number"]):
                if state["trial"] != self._identity():
                    continue
                training = self._new_training()
                with suppress(KeyError, ValueError, RuntimeError):  # the user has changed the network meanwhile
                    training.load_state_dict(state["training"])
                    return training, [Epoch(*epoch) for epoch in state["past"]]
                training.close()
        return self._new_training(), []

    def _state(self, training: Training | OwnTraining) -> dict[str, Any]:
        past = [(epoch.number, epoch.metrics) for epoch in self._past]
        return {"trial": self._identity(), "training": training.state_dict(), "past": past}

    def _identity(self) -> dict[str, Any]:
        """Return the properties of this trial. A checkpoint is used only if it has equal properties."""
        shared = self._shared
        about = {"experiment": shared.experiment.name, "epochs": shared.epochs, "seed": shared.seed}
        return {**about, **{name: self._trial[name] for name in ("number", "method", "params")}}

    def cleanup(self) -> None:
        """Write a checkpoint if the trial has not ended. Ray calls this method before it ends this process."""
        training, place = self._training, self._shared.checkpoints
        if training is None or training.finished or self._writer is None or place is None:
            return
        with suppress(OSError, TypeError, checkpoints.SafetensorError):
            self._writer.begin()
            checkpoints.write(
                place, self._trial["number"], training.epochs_done, checkpoints.pack(self._state(training))
            )


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that there was not enough memory. If so, the trial is tried once more, because
    another trial may have used the memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def train_to_the_end(shared: TrialSetup, arrays: Any, job: dict[str, Any]) -> bytes:
    """Train a network in a worker, without reports to the driver. Return the network as bytes (see `packed_weights`).

    Args:
        shared: the settings of the study.
        arrays: the training and validation data, from `tuner.cluster.node_data.for_workers`.
        job: a trial's config, as in TrialTrainable.
    """
    make_quick()
    others = None if shared.ranks is None else Others(shared.ranks, rank_builder, arrays)
    with closing(_training(shared, lambda: _splits(shared, arrays), job, others)) as training:
        while not training.finished:
            training.train()
        return packed_weights(training)


def _splits(shared: TrialSetup, arrays: Any) -> tuple[Split | Loaded, Split | Loaded]:
    """Return the training and the validation data on the study's device, from the result of
    tuner.cluster.node_data.for_workers."""
    if isinstance(arrays, LoadedThere):
        data = arrays.load(shared.experiment)
        return data.train.to(shared.device), data.val.to(shared.device)
    arrays = arrays if isinstance(arrays, dict) else arrays.here()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of read-only arrays, but no code writes to these
        x, y, val_x, val_y = (
            tree_map(lambda array: torch.from_numpy(array).to(shared.device), arrays[name])
            for name in ("train_x", "train_y", "val_x", "val_y")
        )
    return Split(x, y), Split(val_x, val_y)


def rank_builder(shared: TrialSetup, arrays: Any) -> Build:
    """Prepare this process to train networks together with other processes. Return a function that makes the Training
    object of a trial in this process, from the trial's config and the connections to the other processes."""
    make_quick()
    splits = cache(lambda: _splits(shared, arrays))  # loaded by the first training, where an error fails the trial
    return lambda config, ranks: _training(shared, splits, config, ranks)


def _training(
    shared: TrialSetup,
    splits: Callable[[], tuple[Split | Loaded, Split | Loaded]],
    config: dict[str, Any],
    together: Others | Ranks | None = None,
) -> Training | OwnTraining:
    """Return the training for a trial's config.

    Args:
        shared: the settings of the study.
        splits: a function that returns the training and validation data. It is not called for a user's own training
            loop.
        config: the trial's config, as in TrialTrainable.
        together: for training in several processes, Others in the first and Ranks in another process; otherwise None.
    """
    experiment = shared.experiment
    if shared.limit is not None:
        config = {**config, "params": shared.limit.met_by(config["method"], config["params"])}
    tried = (config["method"], config["params"])
    options: dict[str, Any] = {
        "epochs": shared.epochs,
        "seed": trial_seed(shared.seed, config["number"]),
        "device": shared.device,
    }
    if isinstance(experiment, OwnLoop):
        return OwnTraining(experiment, *tried, **options, begun=partial(_set_up, shared, config["method"]))
    make: Callable[..., Training] = Training
    if isinstance(together, Others):
        make = partial(LeadingTraining, together, config)
    elif together is not None:
        make = partial(Training, ranks=together)
    training = make(experiment, *splits(), *tried, **options)
    _set_up(shared, config["method"], training)
    return training


def _set_up(shared: TrialSetup, method: str, training: Training | OwnTraining) -> None:
    """Prepare a training before its first step: apply the limit of bytes, and measure standard deviations of averaged
    weights if the study needs them."""
    if shared.limit is not None:
        shared.limit.hold(method, training)
    if shared.spread and training.sparse.average is not None:
        training.sparse.average.keep_spread()


def _states(place: Place, number: int) -> Iterator[Any]:
    """Yield the states in a trial's valid checkpoints. If the object store does not answer, yield nothing."""
    with suppress(StoreError):
        yield from checkpoints.newest(place, number)
