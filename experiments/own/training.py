"""Run a user's training loop epoch by epoch. `OwnTraining` has the same methods as `Training`."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from tune_sparsity.experiments.base import NotFinite
from tune_sparsity.experiments.own.loop import OwnLoop
from tune_sparsity.experiments.own.running import RunningTrial
from tune_sparsity.experiments.own.trial import LoopError, Stopped
from tune_sparsity.experiments.random_numbers import random_state, seed_all, set_random_state
from tune_sparsity.sparsity import SparseTraining
from tune_sparsity.sparsity.wrappers import load_plain, plain_state

_PATIENCE = 30.0  # seconds for a loop to end after its trial was stopped


class OwnTraining:
    """Trains one network with a user's training loop, with one method and its parameters.

    The loop runs in a thread. Between two epochs the thread waits for the next call of `epoch`.

    Args:
        experiment: the training loop. It must be an OwnLoop that the function `looked_at` has returned.
        method: the name of a method that makes networks sparse, a key of sparsity.METHODS.
        params: the method's parameters.
        epochs: the number of epochs to train. It may differ from the number in the loop's code.
        seed: the seed of the masks and of all global random generators in the loop.
        device: "cpu", "cuda", ...
        careful: whether to raise LoopError if the function given to `Trial.report` changes the network.
        begun: a function that takes this object. It is called when the loop begins its epochs, before the first step.
    """

    def __init__(
        self,
        experiment: OwnLoop,
        method: str,
        params: dict[str, Any],
        *,
        epochs: int,
        seed: int,
        device: str = "cpu",
        careful: bool = False,
        begun: Callable[[OwnTraining], object] = bool,
    ) -> None:
        self.experiment, self.epochs = experiment, epochs
        self._said: queue.Queue[Any] = queue.Queue()  # the loop's messages
        self._go = threading.Semaphore(0)
        self._random: Any = None  # the loop's random numbers, while it waits
        self._trial = RunningTrial(
            experiment, method, params, epochs=epochs, seed=seed, device=device, hand_over=self._hand_over
        )
        self._trial.careful = careful
        self._begun = begun
        self._thread = threading.Thread(target=self._run, name=f"loop {experiment.name}", daemon=True)

    @property
    def sparse(self) -> SparseTraining:
        assert self._trial.sparse is not None
        return self._trial.sparse

    @property
    def model(self) -> Any:
        return self._trial.model

    @property
    def epochs_done(self) -> int:
        return self._trial.done

    @property
    def finished(self) -> bool:
        return self.epochs_done >= self.epochs

    def epoch(self) -> dict[str, float]:
        """Let the loop train an epoch, and return the measures of the epoch, as a dict from names to values.

        Returns:
            The measures that `Training.epoch` also returns: the validation metric as val_NAME and val_NAME_at_target
            (NAME is the metric's name), the measures of the sparsity, and epoch_seconds. Two more measures are steps,
            the number of optimizer steps so far, and steps_announced, the number of steps in all epochs (see
            `Trial.sparsify`). Other measures, such as train_loss, are present only if the loop gives them to
            `Trial.report`.

        Raises:
            NotFinite: if a weight is NaN or infinite.
            LoopError: if the loop ends too early or calls a method of its trial at a wrong time.
            Exception: any other exception of the loop.
        """
        self._ready()
        start = time.perf_counter()
        metrics = self._until_told()
        return {**metrics, "epoch_seconds": time.perf_counter() - start}

    def train(self) -> None:
        """Let the loop train an epoch. Unlike `epoch`, return nothing."""
        self.epoch()

    def _ready(self) -> None:
        """Start the loop if it has not started, and wait until its epochs begin."""
        if self._thread.ident is None:
            self._thread.start()
            self._said_next()
            self._begun(self)

    def _until_told(self) -> dict[str, float]:
        self._go.release()
        return self._said_next()

    def _said_next(self) -> Any:
        said = self._said.get()
        if isinstance(said, FloatingPointError):
            raise NotFinite(f"{said} in epoch {self.epochs_done + 1}") from said
        if isinstance(said, BaseException):
            raise said
        return said

    def _hand_over(self, said: dict[str, float] | None) -> None:
        """Pass the measures of an epoch to the thread that called `epoch`. Wait for the next call of `epoch`. This
        method runs in the loop's thread."""
        self._random = random_state()
        self._said.put(said)
        self._go.acquire()
        set_random_state(self._random)

    def _run(self) -> None:
        """Call the user's loop function, and pass its exceptions to the thread that called `epoch`. This method runs in
        the loop's thread."""
        loop = self.experiment.loop
        assert loop is not None
        seed_all(self._trial.seed)
        try:
            loop(self._trial)
        except Stopped:
            return
        except BaseException as error:  # raised by _said_next in the other thread
            self._said.put(error)
            return
        if not self._trial.over:
            self._said.put(LoopError(f"the loop ended after {self.epochs_done} of {self.epochs} epochs"))

    def close(self) -> BaseException | None:
        """Let the loop's thread end. Call this method after the last epoch, or earlier to stop the training.

        Returns:
            The exception that the loop raised after its last epoch, or None if it raised none.

        Raises:
            LoopError: if the loop does not end within 30 seconds.
        """
        self._trial.stopped = not self.finished
        if self._thread.ident is None:
            return None
        self._go.release()
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            raise LoopError(
                f"the loop still runs {_PATIENCE:g} s after the trial was stopped: it must end when trial.epochs ends"
            )
        return None if self._said.empty() else self._said.get()

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state of the training: network, optimizer, masks, objects given to `Trial.keep`, random
        generators and the number of epochs done."""
        trial = self._trial
        assert trial.model is not None
        return {
            "model": plain_state(trial.model),
            "sparse": self.sparse.state_beside_network(),
            "order": trial.order.get_state(),
            "kept": {name: thing.state_dict() for name, thing in trial.kept.items()},
            "random": self._random,
            "epochs_done": trial.done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start the loop, wait until its epochs begin, and load a saved state.

        Raises:
            ValueError: if the loop gives other names to `Trial.keep` than when the state was saved.
            Exception: any exception in the load_state_dict of an object given to `Trial.keep`.
        """
        self._ready()
        trial = self._trial
        if set(state["kept"]) != set(trial.kept):
            raise ValueError("the loop gives other names to trial.keep than when the state was saved")
        load_plain(trial.model, state["model"])  # type: ignore[arg-type]
        self.sparse.load_state_dict(state["sparse"])
        trial.order.set_state(state["order"])
        for name, thing in trial.kept.items():
            thing.load_state_dict(state["kept"][name])
        self._random = state["random"]
        trial.done = state["epochs_done"]
