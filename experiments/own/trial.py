"""What a loop of one's own is given, and what it asks of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from torch import nn

from tune_sparsity.sparsity import SparseTraining

T = TypeVar("T")


class LoopError(ValueError):
    """A loop of one's own uses its trial in a way that cannot be followed; the message is one line."""


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

    device: str
    data_dir: Path | None
    seed: int

    @abstractmethod
    def sparsify(self, model: nn.Module, total_steps: int) -> SparseTraining:
        """Return what takes the optimizer's place: a torch optimizer, made of the trial's method and parameters.

        Args:
            model: the network, on the device.
            total_steps: how many times `step()` is called in all epochs of the loop's own number. If the study trains
                another number of epochs, the schedules are stretched to it.

        Raises:
            LoopError: at the second call.
        """

    @abstractmethod
    def begin(self, epochs: int) -> int:
        """Begin to train; for trainers that have the loop. Else use `epochs`, which calls it.

        Args:
            epochs: the loop's own number.

        Returns:
            How many epochs are left to train: the study's number, if it gives one, without those that a checkpoint
            has.
        """

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

    @abstractmethod
    def keep(self, name: str, thing: T) -> T:
        """Return `thing`, and put what its state_dict() gives into the checkpoints; a resume calls its load_state_dict.

        Args:
            name: no other one's.
            thing: a scheduler, a GradScaler, an average of weights, ...
        """

    @abstractmethod
    def projected(self) -> AbstractContextManager[None]:
        """Within it the network is as it would be at its final sparsity."""

    @property
    @abstractmethod
    def over(self) -> bool:
        """Return whether the last epoch has ended, or the search has stopped the trial."""
