"""Run the beginning of a user's training loop, to find the loop's network, the network's inputs and the number of
epochs."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, nn

from tune_sparsity.experiments.base import Data
from tune_sparsity.experiments.examples import Split, length, mapped, tensors_in
from tune_sparsity.experiments.own.loop import OwnLoop, as_inputs, call
from tune_sparsity.experiments.own.trial import LoopError, Trial
from tune_sparsity.experiments.random_numbers import same_random_numbers
from tune_sparsity.experiments.user_code import described
from tune_sparsity.experiments.user_reads import watching
from tune_sparsity.sparsity import METHODS, SparseTraining, with_last_layer
from tune_sparsity.sparsity.neurons.finding import with_neurons
from tune_sparsity.sparsity.output_layers import normalising
from tune_sparsity.sparsity.torch_internals import NormBase
from tune_sparsity.sparsity.wrappers import plain_state

_PATIENCE = 10.0  # seconds for a loop to end after the first look


class _Seen(BaseException):
    """Ends a loop when its network, inputs and epochs are known. This class is not a subclass of Exception, so that an
    `except Exception` in the loop does not catch it."""


class _Looking(Trial):
    """Implements Trial for a loop that is ended at its first forward pass. It records the network and the inputs."""

    def __init__(self, data_dir: Path | None) -> None:
        super().__init__("cpu", data_dir, seed=0)
        self.own_epochs = 0
        self.inputs: Any = None
        self.seen = threading.Event()
        # The normalisations in training mode at the first forward pass of the training. None before this pass.
        self.norms: list[NormBase] | None = None

    def _made(self, model: nn.Module, total_steps: int) -> SparseTraining:
        self._hook = model.register_forward_pre_hook(self._look, with_kwargs=True)
        sparse = METHODS["dense"].build(model, {"lr": 1e-3}, total_steps=total_steps, generator=Generator())
        sparse.register_step_pre_hook(lambda *_: self._end())
        return sparse

    def _look(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        if self.inputs is None:
            self.inputs = mapped(lambda one: one.detach().clone(), as_inputs(args, kwargs))
        if self.own_epochs:
            if model.training:
                self.norms = [norm for norm in normalising(model) if norm.training]
            self._end()

    def _end(self) -> None:
        self.seen.set()
        raise _Seen

    def _left(self, epochs: int) -> int:
        if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
            raise LoopError(f"trial.epochs needs the number of epochs, at least 1; got {epochs!r}")
        self.own_epochs = epochs
        return epochs

    def epochs(self, epochs: int) -> Iterator[int]:
        self.begin(epochs)
        yield 0
        self._end()

    def report(self, value: float | Callable[[], float], **others: float) -> None:
        if not self.own_epochs:
            raise LoopError("trial.report is called before the first epoch: call it in each epoch of trial.epochs(N)")
        self._end()

    @contextmanager
    def projected(self) -> Iterator[None]:
        yield

    @property
    def over(self) -> bool:
        return False

    def unhook(self) -> None:
        if self.model is not None:
            self._hook.remove()


def looked_at(experiment: OwnLoop, data_dir: Path | None) -> OwnLoop:
    """Return a copy of the experiment that also contains the number of epochs, the network, the names of the last
    layer's weights (see LayerRules), example inputs and `data_dir`.

    To find these values, this function runs the loop in this process up to the first forward pass of its first epoch.

    Args:
        experiment: the user's training loop.
        data_dir: the folder that the loop gets as `trial.data_dir`.

    Raises:
        LoopError: if the loop fails or uses its trial wrongly. The message is one line.
    """
    trial = _Looking(data_dir)
    assert experiment.loop is not None
    try:
        with same_random_numbers(0):
            _run(experiment.loop, trial)
    except _Seen:
        pass
    except LoopError as error:
        raise LoopError(f"{experiment.name}: {error}") from error
    except (Exception, SystemExit) as error:
        raise LoopError(f"{experiment.name} fails before its first step: {described(error)}") from error
    model = trial.model
    if model is None or trial.sparse is None:
        raise LoopError(f"{experiment.name} never calls trial.sparsify(model, total_steps=...)")
    if not trial.own_epochs:
        raise LoopError(f"{experiment.name} never calls trial.epochs: train in a loop `for epoch in trial.epochs(N)`")
    trial.unhook()
    if experiment.rebuilt:
        _check_model(experiment, model)
    model.zero_grad()
    return replace(
        experiment,
        recipe=replace(experiment.recipe, epochs=trial.own_epochs),
        model=experiment.model if experiment.rebuilt else lambda: copy.deepcopy(model),
        layers=_rules(experiment, model, trial),
        load=lambda _: _data(trial.inputs),
        data_dir=data_dir,
    )


def _run(loop: Callable[[Any], object], trial: _Looking) -> None:
    """Run the loop in a thread, and raise the loop's exceptions. If the thread does not end in time, leave it running
    and raise LoopError."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            with torch.enable_grad(), watching():  # both apply only to the current thread
                loop(trial)
        except BaseException as error:
            raised.append(error)
        finally:
            trial.seen.set()

    thread = threading.Thread(target=run, name="first look", daemon=True)
    thread.start()
    trial.seen.wait()
    thread.join(_PATIENCE)
    if thread.is_alive():
        raise LoopError(f"the loop still runs {_PATIENCE:g} s after it was ended: it must not catch BaseException")
    if raised:
        raise raised[0]


def _check_model(experiment: OwnLoop, model: nn.Module) -> None:
    """Raise LoopError if the loop's `model` function makes another network than the loop trains."""
    try:
        with same_random_numbers():
            made = {name: tuple(tensor.shape) for name, tensor in plain_state(experiment.network()).items()}
    except (Exception, SystemExit) as error:
        raise LoopError(f"{experiment.name}.model fails: {described(error)}") from error
    trained = {name: tuple(tensor.shape) for name, tensor in plain_state(model).items()}
    if made != trained:
        name = next(name for name in [*trained, *made] if made.get(name) != trained.get(name))
        raise LoopError(
            f"{experiment.name}.model makes another network than the loop trains: the shape of {name} is "
            f"{made.get(name, 'missing')} in {experiment.name}.model and {trained.get(name, 'missing')} in the loop"
        )


def _rules(experiment: OwnLoop, model: nn.Module, trial: _Looking) -> Any:
    """Return the experiment's rules for the layers to prune. If a forward pass finds the last layers, add them."""
    if trial.inputs is None:
        return experiment.layers
    try:
        rules = with_last_layer(experiment.layers, model, trial.inputs, call, trial.norms)
    except Exception:  # the user's network may need other arguments than the recorded inputs
        rules = experiment.layers
    return with_neurons(rules, model, trial.inputs, call)


def _data(inputs: Any) -> Data:
    """Return Data with the inputs of the first forward pass. Tests of exported files need inputs of these shapes."""
    x = torch.empty(1, 0) if inputs is None or not tensors_in(inputs) else inputs
    split = Split(x, torch.zeros(length(x)))
    return Data(split, split, split)
