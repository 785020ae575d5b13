"""One trial as Ray runs it: a worker process that is kept and reused, one thread, epochs reported a few at a time."""

from __future__ import annotations

import json
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
from safetensors.torch import save
from torch import Tensor

from tune_sparsity.experiments import Data, Experiment, Loaded, LoopError, OwnLoop, OwnTraining, Split, Training
from tune_sparsity.experiments.examples import mapped
from tune_sparsity.experiments.ranks import Disconnected, Ranks
from tune_sparsity.experiments.training import NotFinite
from tune_sparsity.sparsity.cost.multiply_adds import Uses
from tune_sparsity.sparsity.few_bits import ALL_BITS
from tune_sparsity.sparsity.orientation import STANDARD
from tune_sparsity.sparsity.torch_internals import leave_compiler_out, tree_map
from tune_sparsity.sparsity.wrappers import plain_state
from tune_sparsity.tuner.errors import disk_error, one_line
from tune_sparsity.tuner.storage.places import Place
from tune_sparsity.tuner.storage.s3 import StoreError
from tune_sparsity.tuner.study.layout import ORIENTATIONS, PRECISION, SPREAD, weights_file
from tune_sparsity.tuner.study.trial import Epoch
from tune_sparsity.tuner.system import files
from tune_sparsity.tuner.worker import checkpoints
from tune_sparsity.tuner.worker.ranks import Build, LeadingTraining, Others, RankPlan
from tune_sparsity.tuner.worker.report import Report
from tune_sparsity.tuner.worker.shipping import Parcel
from tune_sparsity.tuner.worker.sizes import ByteLimit, network_cost, precision_of, spiking_cost

TOGETHER = 0.25  # seconds of epochs that are reported at once, up to a rung: a report costs milliseconds


def make_quick() -> None:
    """Settles how torch computes in a process for trials. One thread. Numbers below the smallest normal one are 0: the
    momentum of a weight whose input is always zero decays into them for good, and each costs as much as a hundred."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    leave_compiler_out()


@dataclass(frozen=True)
class TrialSetup:
    """What all trials of a study share; sent to every worker once."""

    experiment: Experiment
    epochs: int
    seed: int
    device: str  # "cpu" or "cuda"
    weights_folder: Path | None  # None: a trial's last report brings its network
    source: str = ""  # the name that the experiment was found by, from which its code travels to the workers
    checkpoints: Place | None = None  # where they are, which is there; None: no trial is ever resumed
    rungs: tuple[int, ...] = ()  # the epochs after which trials are judged
    loads: bool = False  # whether workers load the data themselves
    limit: ByteLimit | None = None  # of a network's packed file
    spread: bool = False  # whether averages of weights also tell how far the samples are from them
    uses: Uses | None = None  # how often the network uses its weights; None where that is not known
    ranks: RankPlan | None = None  # None: one process trains a trial

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "experiment": Parcel(self.experiment, self.source, loads=self.loads)}


def shared_arrays(data: Data) -> dict[str, Any]:
    """Training and validation data as nests of arrays, which Ray's object store hands to workers without a copy. The
    test data never leaves the driver."""
    parts = {"train_x": data.train.x, "train_y": data.train.y, "val_x": data.val.x, "val_y": data.val.y}
    return {name: mapped(Tensor.numpy, nest) for name, nest in parts.items()}


@dataclass(frozen=True)
class LoadedThere:
    """Data that are not in memory, which every worker loads by itself.

    Attributes:
        folder: --data-dir, on every machine.
        checksum: of the driver's data, which the worker's must equal.
    """

    folder: Path | None
    checksum: str

    def load(self, experiment: Experiment) -> Data:
        """Raises ValueError if they are other data."""
        data = experiment.load(self.folder)
        if data.checksum() != self.checksum:
            raise ValueError(f"the data in {self.folder or 'the default folder'} on {platform.node()} are not the same")
        return data


def trial_seed(study_seed: int, number: int) -> int:
    """Return a trial's own seed: different for every trial, the same whenever the study is run again."""
    return int(np.random.SeedSequence([study_seed, number]).generate_state(1)[0])


class TrialTrainable(tune.Trainable):
    """Ray's view of a Training: `config` holds a trial's number, method and params.

    A trial that fails says so in its last report. Raised to Ray, the exception would end this process, and the next
    trial would wait seconds for a new one. A trial that has checkpoints goes on from the newest sound one.
    """

    _training: Training | OwnTraining | None = None  # built by the first step: building it may fail like any other
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
        """Begins another trial in this process, with nothing left of the one before."""
        self._trial, self._past, self._short_of_memory = new_config, list[Epoch](), False
        try:
            self._let_go()
        except LoopError:  # nobody can end the loop but with its process; the trial begins in another one
            os._exit(1)
        if self._writer is not None:
            self._writer.begin()
        return True

    @property
    def _data(self) -> tuple[Split | Loaded, Split | Loaded]:
        """Training and validation data: made once, in a step, so that a trial fails where they cannot be had."""
        if self._splits is None:
            self._splits = _splits(self._shared, self._arrays)
        return self._splits

    def _new_training(self) -> Training | OwnTraining:
        if self._shared.ranks is not None and self._others is None:
            self._others = Others(self._shared.ranks, rank_builder, self._arrays)
        return _training(self._shared, lambda: self._data, self._trial, self._others)

    def _let_go(self) -> None:
        """Gives back the training's memory. Raises LoopError if it is a loop that does not end."""
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
            raise  # the device is in an undefined state for this process: let Ray end it
        except Disconnected:
            self._let_go()  # in the middle of an epoch it makes no checkpoint
            raise  # let Ray end this process, and with it the trial's others
        except Exception as error:
            again = out_of_memory(error) and not self._short_of_memory
            reason, full = one_line(error), disk_error(error)
        self._let_go()  # here, where the exception no longer holds what was in use
        if full:
            return Report(disk=reason)
        if again:
            self._short_of_memory = True
            return self._step()
        return Report(tuple(done), failure=f"{reason} (twice)" if self._short_of_memory else reason)

    def _train(self, done: list[Epoch]) -> Report:
        """Train some more epochs, which are in `done` as soon as they are trained. Where the trial has a checkpoint,
        report those first that it had before."""
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
        """Return what the network costs: nothing before its mask is fixed, from then on always the same, and at the end
        also what its spikes cost."""
        if training.sparse.fixed and not self._sizes:
            self._sizes = network_cost(training, self._shared.uses)
        return self._sizes | (spiking_cost(training, self._sizes.get("macs")) if training.finished else {})

    def _reported(self, epochs: list[Epoch], **more: Any) -> Report:
        assert self._training is not None
        return Report(tuple(epochs), final_sparsity=self._training.sparse.final_sparsity, **more)

    def _left(self, training: Training | OwnTraining) -> bytes | None:
        """Leave the trained network in its file, or return it for the report."""
        folder = self._shared.weights_folder
        if folder is None:
            return packed_weights(training)
        save_weights(training, weights_file(folder, self._trial["number"]))
        return None

    def _begun(self) -> tuple[Training | OwnTraining, list[Epoch]]:
        """Return the training and its history. Both come from the newest undamaged checkpoint of this trial. Without
        one, the training begins at the first epoch."""
        if self._shared.checkpoints is not None:
            for state in _states(self._shared.checkpoints, self._trial["number"]):
                if state["trial"] != self._identity():
                    continue
                training = self._new_training()
                with suppress(KeyError, ValueError, RuntimeError):  # of a network that was changed since
                    training.load_state_dict(state["training"])
                    return training, [Epoch(*epoch) for epoch in state["past"]]
                training.close()
        return self._new_training(), []

    def _state(self, training: Training | OwnTraining) -> dict[str, Any]:
        past = [(epoch.number, epoch.metrics) for epoch in self._past]
        return {"trial": self._identity(), "training": training.state_dict(), "past": past}

    def _identity(self) -> dict[str, Any]:
        """Return the parts of a trial that a checkpoint must agree with."""
        shared = self._shared
        about = {"experiment": shared.experiment.name, "epochs": shared.epochs, "seed": shared.seed}
        return {**about, **{name: self._trial[name] for name in ("number", "method", "params")}}

    def cleanup(self) -> None:
        """Ray ends this process. A trial that has not ended is kept as it stands, for whoever resumes it."""
        training, place = self._training, self._shared.checkpoints
        if training is None or training.finished or self._writer is None or place is None:
            return
        with suppress(OSError, TypeError, checkpoints.SafetensorError):
            self._writer.begin()
            checkpoints.write(
                place, self._trial["number"], training.epochs_done, checkpoints.pack(self._state(training))
            )


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory was short, which may have been another trial's doing: it is worth another try."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def train_to_the_end(shared: TrialSetup, arrays: Any, job: dict[str, Any]) -> bytes:
    """Train without reports, in a worker. Return the network as `packed_weights` does.

    Args:
        job: a trial's config.
    """
    make_quick()
    others = None if shared.ranks is None else Others(shared.ranks, rank_builder, arrays)
    with closing(_training(shared, lambda: _splits(shared, arrays), job, others)) as training:
        while not training.finished:
            training.train()
        return packed_weights(training)


def _splits(shared: TrialSetup, arrays: Any) -> tuple[Split | Loaded, Split | Loaded]:
    """Return the training and the validation data, on the device.

    Args:
        arrays: as tuner.cluster.node_data.for_workers gives them.
    """
    if isinstance(arrays, LoadedThere):
        data = arrays.load(shared.experiment)
        return data.train.to(shared.device), data.val.to(shared.device)
    arrays = arrays if isinstance(arrays, dict) else arrays.here()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the arrays are read-only, and nobody writes to them
        x, y, val_x, val_y = (
            tree_map(lambda array: torch.from_numpy(array).to(shared.device), arrays[name])
            for name in ("train_x", "train_y", "val_x", "val_y")
        )
    return Split(x, y), Split(val_x, val_y)


def rank_builder(shared: TrialSetup, arrays: Any) -> Build:
    """Prepare a process to train with others. Return what makes its training of a trial's config."""
    make_quick()
    splits = cache(lambda: _splits(shared, arrays))  # made by the first training, which may fail as any other
    return lambda config, ranks: _training(shared, splits, config, ranks)


def _training(
    shared: TrialSetup,
    splits: Callable[[], tuple[Split | Loaded, Split | Loaded]],
    config: dict[str, Any],
    together: Others | Ranks | None = None,
) -> Training | OwnTraining:
    """Return the training of a trial's config.

    Args:
        splits: gives the data; not asked by a loop of one's own.
        together: the other processes that it leads; or, in one of those, the ranks that it is one of.
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
    """Tell a training what its study wants beside the parameters; before its first step."""
    if shared.limit is not None:
        shared.limit.hold(method, training)
    if shared.spread and training.sparse.average is not None:
        training.sparse.average.keep_spread()


def _states(place: Place, number: int) -> Iterator[Any]:
    """Yield a trial's sound checkpoints; none where an object store does not answer: then it begins anew."""
    with suppress(StoreError):
        yield from checkpoints.newest(place, number)


def save_weights(training: Training | OwnTraining, path: Path) -> None:
    """Writes `packed_weights` into a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, packed_weights(training))


def packed_weights(training: Training | OwnTraining) -> bytes:
    """Return the network's tensors and, under NAME.mask, its masks, in the safetensors format. Its metadata have the
    orientations of weights whose neurons are not their first dimension. Of an average whose spread was measured, it has
    that under NAME.spread."""
    state = plain_state(training.model)
    tensors: dict[str, Tensor] = {
        # Copies: networks may share tensors, and safetensors refuses those.
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in state.items()
    }
    for layer, mask in zip(training.sparse.layers, training.sparse.masks, strict=True):
        tensors[f"{layer.name}.mask"] = mask.cpu().bool().contiguous()
    spread = {} if training.sparse.average is None else {p.data_ptr(): s for p, s in training.sparse.average.spread()}
    for name, tensor in state.items():
        if tensor.data_ptr() in spread and tensor.numel():
            tensors[f"{name}{SPREAD}"] = spread[tensor.data_ptr()].cpu().contiguous().clone()
    turned = {layer.name: layer.orientation for layer in training.sparse.layers if layer.orientation != STANDARD}
    about = {ORIENTATIONS: json.dumps(turned)} if turned else {}
    if training.sparse.weight_bits != ALL_BITS:
        precision = precision_of(training.model, training.sparse.layers, training.sparse.weight_bits)
        about[PRECISION] = json.dumps(precision, default=dict)
    return save(tensors, about or None)
