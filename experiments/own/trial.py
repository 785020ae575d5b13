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
    """Report, in one line, that a training loop uses its trial wrongly, so that the search cannot run the loop."""


class Stopped(BaseException):
    """Ends a loop whose trial was stopped. This class is not a subclass of Exception, so that an `except Exception` in
    the loop does not catch it."""


class Trial(ABC):
    """One training of a search, as a user's training loop sees it.

    The loop gets its optimizer and its epochs from the trial, and reports the metric of each epoch::

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

    The trial seeds the global random generators of Python, NumPy and torch. A trial that continues from a checkpoint
    restores their states.

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
        """Return the optimizer of the trial's method and parameters. It is a torch optimizer.

        Args:
            model: the network, on the device.
            total_steps: the number of calls of `step()` in all epochs of the loop. If the study trains another number
                of epochs, the schedules are stretched to it.

        Raises:
            LoopError: at the second call, if `model` is no torch.nn.Module, or if `total_steps` is no whole number >=
                1.
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
        """Return the optimizer of a network."""

    def begin(self, epochs: int) -> int:
        """Begin to train. Call this method only for trainers that have their own loop, such as Lightning's. Otherwise
        use `epochs`, which calls this method.

        Args:
            epochs: the number of epochs in the loop.

        Returns:
            The number of epochs that are left to train. The study's number of epochs replaces the loop's. The epochs
            that a checkpoint already contains are subtracted.

        Raises:
            LoopError: if `sparsify` was not called before.
        """
        if self.sparse is None:
            raise LoopError("the loop begins without an optimizer: call trial.sparsify(model, total_steps=...) first")
        return self._left(epochs)

    @abstractmethod
    def _left(self, epochs: int) -> int:
        """Return how many epochs are left to train."""

    @abstractmethod
    def epochs(self, epochs: int) -> Iterator[int]:
        """Yield the numbers of the epochs to train, from 0 on.

        If a trial continues from a checkpoint, the first number is that of the first remaining epoch. The iterator ends
        early if the search stops the trial.

        Args:
            epochs: the number of epochs in the loop. The study's number replaces it.

        Raises:
            LoopError: if `sparsify` was not called before, or if an epoch ends without `report`.
        """

    @abstractmethod
    def report(self, value: float | Callable[[], float], **others: float) -> None:
        """End an epoch with the metric on the validation data.

        Args:
            value: a function without arguments that measures the network and returns the metric. It is called for the
                current network. While masks change, it is called again while the network is pruned to its final
                sparsity. Afterwards the network's mode and the states of random generators are restored. A number is
                also accepted: measure it within `projected`.
            others: further finite numbers of the epoch, such as train_loss.

        Raises:
            LoopError: if no epoch is being trained.
        """

    def keep(self, name: str, thing: T) -> T:
        """Return `thing` and add its state to the checkpoints. If the trial continues from a checkpoint, its
        load_state_dict is called with the saved state.

        Args:
            name: a name that no other object has.
            thing: an object with state_dict and load_state_dict, such as a scheduler or a GradScaler.

        Raises:
            LoopError: if the name is taken, or if `thing` lacks one of the two methods.
        """
        if name in self.kept:
            raise LoopError(f"trial.keep has a {name!r} already")
        if not (callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None))):
            raise LoopError(f"trial.keep needs a state_dict and a load_state_dict, but {name!r} lacks one of them")
        self.kept[name] = thing
        return thing

    @abstractmethod
    def projected(self) -> AbstractContextManager[None]:
        """Within this block, the network is pruned to its final sparsity. Afterwards its weights are restored."""

    @property
    @abstractmethod
    def over(self) -> bool:
        """Return whether the last epoch has ended, or the search has stopped the trial."""
