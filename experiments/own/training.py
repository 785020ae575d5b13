"""A loop of one's own with the face of a Training: epoch by epoch, with its whole state to save and to load."""

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

_PATIENCE = 30.0  # seconds that a loop has to end after its trial was stopped


class OwnTraining:
    """One network in training by a loop of one's own, with one method and its parameters.

    The loop runs in a thread that waits whenever nobody asks for the next epoch.

    Args:
        experiment: the loop, which has been looked at.
        method: a name in sparsity.METHODS.
        params: the method's parameters.
        epochs: how many; the loop's own number is another matter.
        seed: of all global random numbers in the loop, and of the masks.
        device: "cpu", "cuda", ...
        begun: is called when the loop has its optimizer, before the first step.
        careful: whether each measuring is looked at: it must not change the network.
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
        self._said: queue.Queue[Any] = queue.Queue()  # what the loop hands over
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
        """Let the loop train an epoch.

        Returns:
            What Training.epoch returns, without what only the loop knows.

        Raises:
            NotFinite: if a weight or the metric is no longer a number.
            LoopError: if the loop ends, or reports what it must not.
            Exception: what the loop raises.
        """
        self._ready()
        start = time.perf_counter()
        metrics = self._until_told()
        return {**metrics, "epoch_seconds": time.perf_counter() - start}

    def train(self) -> None:
        """Let the loop train an epoch."""
        self.epoch()

    def _ready(self) -> None:
        """Let the loop run to where its epochs begin."""
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
        """In the loop's thread: give what was measured, and wait."""
        self._random = random_state()
        self._said.put(said)
        self._go.acquire()
        set_random_state(self._random)

    def _run(self) -> None:
        """In the thread: the loop, from its first line to its last."""
        loop = self.experiment.loop
        assert loop is not None
        seed_all(self._trial.seed)
        try:
            loop(self._trial)
        except Stopped:
            return
        except BaseException as error:  # told where the next epoch is waited for
            self._said.put(error)
            return
        if not self._trial.over:
            self._said.put(LoopError(f"the loop ended after {self.epochs_done} of {self.epochs} epochs"))

    def close(self) -> BaseException | None:
        """Let the loop end: its trial has ended, or was stopped.

        Returns:
            What the loop raised after its last epoch.

        Raises:
            LoopError: if it goes on all the same.
        """
        self._trial.stopped = not self.finished
        if self._thread.ident is None:
            return None
        self._go.release()
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            raise LoopError(f"the loop goes on {_PATIENCE:g} s after its trial was stopped: end it with trial.epochs")
        return None if self._said.empty() else self._said.get()

    def state_dict(self) -> dict[str, Any]:
        """Return all that the loop needs to go on: network, method, what it keeps, random numbers, epochs done."""
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
        """Let the loop run to where its epochs begin, and go on from there as it was saved.

        Raises:
            ValueError: if the loop keeps other things now. What the parts raise when they load is raised too.
        """
        self._ready()
        trial = self._trial
        if set(state["kept"]) != set(trial.kept):
            raise ValueError("the loop keeps other things than before")
        load_plain(trial.model, state["model"])  # type: ignore[arg-type]
        self.sparse.load_state_dict(state["sparse"])
        trial.order.set_state(state["order"])
        for name, thing in trial.kept.items():
            thing.load_state_dict(state["kept"][name])
        self._random = state["random"]
        trial.done = state["epochs_done"]
