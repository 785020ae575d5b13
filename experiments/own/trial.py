"""Define the trial that a user's training loop gets as its argument."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from tune_sparsity.sparsity import SparseTraining
from tune_sparsity.sparsity.wrappers import on_one_device

T = TypeVar("T")


class LoopError(ValueError):
    """Report that a user's training loop uses its trial wrongly. The search cannot run this loop. The message is one
    line."""


class Stopped(BaseException):
    """Ends a loop when the search stops the loop's trial. This class is not a subclass of Exception, so that an
    `except Exception` in the loop does not catch it."""


class Trial(ABC):
    """Connects a user's training loop with a search. The search calls the loop for each trial, with a Trial object.

    The loop gets its optimizer and its epochs from this object, and reports the metric of each epoch::

        def train(trial):
            model = network().to(trial.device)
            training, validation = loaders(trial.data_dir)
            sparse = trial.sparsify(model, total_steps=EPOCHS * len(training))
            for epoch in trial.epochs(EPOCHS):
                for x, y in training:
                    sparse.zero_grad()
                    loss(model(x), y).backward()
                    sparse.step()
                trial.report(lambda: accuracy(model, validation))

    The search seeds the global random generators of Python, NumPy and torch before it calls the loop. When a trial
    continues from a checkpoint, the search restores their states.

    Attributes:
        device: "cpu" or "cuda".
        data_dir: the folder that --data-dir gives, or None.
        seed: the seed of this trial.
    """

    def __init__(self, device: str, data_dir: Path | None, seed: int) -> None:
        self.device, self.data_dir, self.seed = device, data_dir, seed
        self.model: nn.Module | None = None
        self.sparse: SparseTraining | None = None
        self.kept: dict[str, Any] = {}

    def sparsify(self, model: nn.Module, total_steps: int) -> SparseTraining:
        """Return a torch optimizer that trains the network and makes it sparse, with the trial's method and parameters.

        Args:
            model: the network, already on `device`.
            total_steps: the number of calls of `step()` in all epochs that the loop's code asks for. If the study
                trains another number of epochs, this number is scaled accordingly.

        Raises:
            LoopError: if this method is called twice, if `model` is not a torch.nn.Module, or if `total_steps` is not
                a whole number >= 1.
        """
        if self.sparse is not None:
            raise LoopError("trial.sparsify is called twice: a trial trains one network")
        if not isinstance(model, nn.Module):
            raise LoopError(f"trial.sparsify needs a torch.nn.Module, got a {type(model).__name__}")
        if not isinstance(total_steps, int) or isinstance(total_steps, bool) or total_steps < 1:
            raise LoopError(
                f"trial.sparsify needs total_steps, the steps of all epochs, at least 1; got {total_steps!r}"
            )
        self.model = on_one_device(model)
        self.sparse = self._made(self.model, total_steps)
        return self.sparse

    @abstractmethod
    def _made(self, model: nn.Module, total_steps: int) -> SparseTraining:
        """Return the optimizer for the network. `sparsify` has checked the arguments."""

    def begin(self, epochs: int) -> int:
        """Return the number of epochs to train. Call this method once before the first epoch if another library runs
        the epochs, for example Lightning. Otherwise use `epochs`, which calls this method.

        Args:
            epochs: the number of epochs that the loop's code asks for.

        Returns:
            The study's number of epochs, or the number of remaining epochs if the trial continues from a checkpoint.

        Raises:
            LoopError: if `sparsify` was not called before, if `epochs` is not a whole number >= 1, or if the search has
                called the training loop before and `epochs` was another number then.
        """
        if self.sparse is None:
            raise LoopError("the loop begins without an optimizer: call trial.sparsify(model, total_steps=...) first")
        return self._left(epochs)

    @abstractmethod
    def _left(self, epochs: int) -> int:
        """Return the number of epochs that are left to train. See `begin`."""

    @abstractmethod
    def epochs(self, epochs: int) -> Iterator[int]:
        """Yield the number of each epoch to train: 0, 1, ...

        If a trial continues from a checkpoint, the first number is the number of the first remaining epoch. The
        iterator ends early if the search stops the trial.

        Args:
            epochs: the number of epochs that the loop's code asks for. If the study has another number of epochs, the
                study's number is used.

        Raises:
            LoopError: if an epoch ends without `report`, and for the reasons that `begin` names.
        """

    @abstractmethod
    def report(self, value: float | Callable[[], float], **others: float) -> None:
        """End an epoch, and report the metric on the validation data.

        Args:
            value: a function without arguments that measures the network and returns the metric. It is called for the
                current network. While masks still change, it is called a second time, with the network pruned to its
                final sparsity. Afterwards, the network's mode and the states of random generators are restored.
                Instead of a function, `value` may be a number: the metric of the network, pruned to its final
                sparsity. Measure this number in a block `with trial.projected():`, in which the network is pruned.
            others: further measures of the epoch, finite numbers such as train_loss.

        Raises:
            LoopError: if no epoch is being trained, if a measure is no number, or if the trial measures it itself.
            ValueError: if the metric is outside [0, 1], but must lie there.
        """

    def keep(self, name: str, thing: T) -> T:
        """Add the state of an object to the trial's checkpoints, and return the object. If the trial continues from a
        checkpoint, the object's load_state_dict is called with the saved state.

        Args:
            name: the name of the object in the checkpoint. No two objects may have the same name.
            thing: an object with state_dict and load_state_dict, for example a scheduler or a GradScaler.

        Raises:
            LoopError: if another object has this name, or if `thing` lacks one of the two methods.
        """
        if name in self.kept:
            raise LoopError(f"trial.keep already has an object with the name {name!r}: give another name")
        if not (callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None))):
            raise LoopError(f"the object {name!r} given to trial.keep lacks state_dict or load_state_dict")
        self.kept[name] = thing
        return thing

    @abstractmethod
    def projected(self) -> AbstractContextManager[None]:
        """Return a context manager. In its block, the network is pruned to the final sparsity. After the block, the
        network's weights are restored, except in the last epoch: then the network stays pruned."""

    @property
    @abstractmethod
    def over(self) -> bool:
        """Return whether the loop must end: the last epoch has ended, or the search has stopped the trial."""
