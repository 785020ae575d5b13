"""What a loop of one's own is given, and what it asks of it."""

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
    """The trial was stopped, and the loop goes on all the same. It is no Exception, so that loops let it through."""


class Trial(ABC):
    """One training of a search, seen from a loop of one's own.

    A loop asks it for the optimizer, for the epochs, and tells it how good the network is::

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

    Every generator of global random numbers (Python's, NumPy's, torch's) is seeded by the trial. A trial that goes on
    from a checkpoint has them as they were.

    Attributes:
        device: "cpu" or "cuda".
        data_dir: what --data-dir gives; None without it.
        seed: the trial's own.
    """

    def __init__(self, device: str, data_dir: Path | None, seed: int) -> None:
        self.device, self.data_dir, self.seed = device, data_dir, seed
        self.model: nn.Module | None = None
        self.sparse: SparseTraining | None = None
        self.kept: dict[str, Any] = {}

    def sparsify(self, model: nn.Module, total_steps: int) -> SparseTraining:
        """Return what takes the optimizer's place: a torch optimizer, made of the trial's method and parameters.

        Args:
            model: the network, on the device.
            total_steps: how many times `step()` is called in all epochs of the loop's own number. If the study trains
                another number of epochs, the schedules are stretched to it.

        Raises:
            LoopError: at the second call, and for what is no network or no number of steps.
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
        """Begin to train; for trainers that have the loop. Else use `epochs`, which calls it.

        Args:
            epochs: the loop's own number.

        Returns:
            How many epochs are left to train: the study's number, if it gives one, without those that a checkpoint
            has.

        Raises:
            LoopError: without an optimizer.
        """
        if self.sparse is None:
            raise LoopError("the loop begins without an optimizer: call trial.sparsify(model, total_steps=...) first")
        return self._left(epochs)

    @abstractmethod
    def _left(self, epochs: int) -> int:
        """Return how many epochs are left to train."""

    @abstractmethod
    def epochs(self, epochs: int) -> Iterator[int]:
        """Yield the number of each epoch from 0 on; after a resume, from the first one that is left. It ends early when
        the search stops the trial.

        Args:
            epochs: the loop's own number, which the study's takes the place of.
        """

    @abstractmethod
    def report(self, value: float | Callable[[], float], **others: float) -> None:
        """End an epoch with the metric on the validation data.

        Args:
            value: measures the network. It is called as the network stands; and, while masks move, once more as the
                network would be at its final sparsity. The network's mode and the random numbers stay as they are. A
                number is taken as it is: measure it within `projected`.
            others: further finite numbers of the epoch, such as train_loss.
        """

    def keep(self, name: str, thing: T) -> T:
        """Return `thing`, and put what its state_dict() gives into the checkpoints; a resume calls its load_state_dict.

        Args:
            name: no other one's.
            thing: a scheduler, a GradScaler, an average of weights, ...

        Raises:
            LoopError: if the name is taken, or the thing has no state.
        """
        if name in self.kept:
            raise LoopError(f"trial.keep has a {name!r} already")
        if not (callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None))):
            raise LoopError(f"trial.keep needs a state_dict and a load_state_dict, and {name!r} has not both")
        self.kept[name] = thing
        return thing

    @abstractmethod
    def projected(self) -> AbstractContextManager[None]:
        """Within it the network is as it would be at its final sparsity."""

    @property
    @abstractmethod
    def over(self) -> bool:
        """Return whether the last epoch has ended, or the search has stopped the trial."""
