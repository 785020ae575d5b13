"""Implement Trial, the argument of a user's training loop, for a loop that trains. (`first_look` has another Trial,
which ends the loop before the first step.)"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, nn

from tune_sparsity.experiments.batchnorm import moving, remeasure, remeasured
from tune_sparsity.experiments.examples import copied
from tune_sparsity.experiments.metrics import metric_of
from tune_sparsity.experiments.own.loop import OwnLoop
from tune_sparsity.experiments.own.trial import LoopError, Stopped, Trial
from tune_sparsity.experiments.random_numbers import same_random_numbers
from tune_sparsity.sparsity import METHODS, SparseTraining
from tune_sparsity.sparsity.output_layers import modes_kept
from tune_sparsity.sparsity.torch_internals import BatchNorm
from tune_sparsity.sparsity.wrappers import plain_state

_LAST_INPUTS = 8  # batches to keep, for the running statistics after weights were masked


class RunningTrial(Trial):
    """Implements Trial for a loop that trains, in a study or in a check.

    Args:
        experiment: the loop, from the function `looked_at`.
        method, params: the name of the method and its parameters in this trial.
        epochs: the number of epochs to train.
        seed: the seed of the trial.
        device: "cpu" or "cuda".
        hand_over: a function that is called after each epoch with the epoch's measures. It is also called with None
            when the loop begins its epochs. The loop waits until the function returns.
    """

    def __init__(
        self,
        experiment: OwnLoop,
        method: str,
        params: dict[str, Any],
        *,
        epochs: int,
        seed: int,
        device: str,
        hand_over: Callable[[dict[str, float] | None], None],
    ) -> None:
        super().__init__(device, experiment.data_dir, seed)
        self._experiment, self._method, self._params, self._total = experiment, method, params, epochs
        self._hand_over = hand_over
        self.order = Generator().manual_seed(seed)  # the generator for random masks
        self.done, self.stopped, self.careful = 0, False, False
        self._late = False  # whether the loop has reported outside of an epoch
        self._inputs: deque[Any] = deque(maxlen=_LAST_INPUTS)
        self._norms: list[BatchNorm] = []  # their running statistics may change in training
        self._moved: list[BatchNorm] = []  # those of them that the loop has in training mode

    def sparsify(self, model: nn.Module, total_steps: int) -> SparseTraining:
        self._check_stop()
        return super().sparsify(model, total_steps)

    def _made(self, model: nn.Module, total_steps: int) -> SparseTraining:
        own = self._experiment.recipe.epochs
        sparse = METHODS[self._method].build(
            model,
            self._params,
            total_steps=max(1, round(total_steps * self._total / own)),
            generator=self.order,
            rules=self._experiment.layers,
            epochs=self._total,
            trained=self._experiment.trained,
        )
        sparse.register_step_pre_hook(lambda *_: self._check_stop(late=self.done >= self._total))
        self._norms = moving(model)
        if self._norms:
            model.register_forward_pre_hook(self._remember, with_kwargs=True)
        return sparse

    def _remember(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        if model.training and self.sparse is not None and (not self.sparse.fixed or self.sparse.average is not None):
            self._inputs.append((args, kwargs))
            self._moved = [norm for norm in self._norms if norm.training]

    def _left(self, epochs: int) -> int:
        if epochs != self._experiment.recipe.epochs:
            was = self._experiment.recipe.epochs
            raise LoopError(
                f"the loop asks for {epochs} epochs now, but asked for {was} at first: always ask for the same number"
            )
        self._hand_over(None)
        return self._total - self.done

    def epochs(self, epochs: int) -> Iterator[int]:
        self.begin(epochs)
        while not self.over:
            epoch = self.done
            yield epoch
            if self.done == epoch and not self.stopped:
                raise LoopError(f"epoch {epoch} ended without trial.report(...)")

    @property
    def over(self) -> bool:
        return self.stopped or self.done >= self._total

    def report(self, value: float | Callable[[], float], **others: float) -> None:
        self._check_stop()
        if self.sparse is None or self.over:
            self._late = True
            raise LoopError("trial.report is called outside of an epoch: call it once in each epoch of trial.epochs")
        last = self.done + 1 == self._total
        if last:
            self._finish()
        now = at_target = self._measured(value)
        if callable(value) and not self.sparse.fixed:
            with self.projected():
                at_target = self._measured(value)
        self.done += 1
        metrics = self._metrics(now, at_target)
        if taken := sorted(others.keys() & metrics.keys()):
            raise LoopError(f"trial.report got {taken[0]}, which the trial measures itself: give it another name")
        self._hand_over({**{name: _number(name, one) for name, one in others.items()}, **metrics})

    def _metrics(self, now: float, at_target: float) -> dict[str, float]:
        sparse, name = self.sparse, self._experiment.metric_name
        assert sparse is not None
        sparse.check_finite()
        return {
            f"val_{name}": now,
            f"val_{name}_at_target": at_target,
            **sparse.measures(),
            "steps": sparse.steps,
            "steps_announced": sparse.total_steps,
        }

    def _measured(self, value: float | Callable[[], float]) -> float:
        """Return the reported metric. If `value` is a function, call it. Afterwards, the network's modes and the random
        generators have the same states as before."""
        metric = metric_of(self._experiment.metric)
        if not callable(value):
            measured = _number(metric.name, value)
        else:
            assert self.model is not None
            before = copied(plain_state(self.model)) if self.careful else None
            with modes_kept(self.model), same_random_numbers(), torch.no_grad():
                measured = _number(metric.name, value())
            if before is not None:
                self._compare(before)
        metric.check_range(measured)
        return measured

    def _compare(self, before: dict[str, Any]) -> None:
        assert self.model is not None
        after = plain_state(self.model)
        changed = next((name for name, one in before.items() if not torch.equal(one, after[name])), None)
        if changed is not None:
            raise LoopError(
                f"the function given to trial.report changes the network's {changed}: call model.eval() in this "
                "function"
            )

    @contextmanager
    def projected(self) -> Iterator[None]:
        sparse, model = self.sparse, self.model
        if sparse is None or model is None:
            raise LoopError("trial.projected is called before trial.sparsify")
        if self.done + 1 >= self._total:
            self._finish()
        if sparse.fixed:
            yield
            return
        with sparse.projected():
            if not self._inputs:
                yield
                return
            with remeasured(model, list(self._inputs), _called, self._moved):
                yield

    def _finish(self) -> None:
        """Prune the network to its final sparsity. If weights are averaged, the network gets the averaged weights, and
        new running statistics of batch normalisation for them."""
        sparse, model = self.sparse, self.model
        assert sparse is not None
        assert model is not None
        sparse.finish()
        if sparse.average is not None and sparse.average.taken:
            remeasure(model, list(self._inputs), _called, self._moved)
            self._inputs.clear()  # no longer needed

    def _check_stop(self, *, late: bool = False) -> None:
        if self.stopped or self._late or late:
            raise Stopped


def _called(model: nn.Module, call: tuple[Any, Any]) -> Any:
    return model(*call[0], **call[1])


def _number(name: str, value: Any) -> float:
    """Convert a reported measure to a float. Raise LoopError if it is no number."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several numbers
        raise LoopError(f"trial.report got {name} = {value!r}: give a number, or a function that returns one") from None
