"""Define the checks of a user's own training loop. The checks let the loop train one or two epochs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from tune_sparsity.experiments.checks import files, shapes
from tune_sparsity.experiments.checks.suite import PARAMS, Check, Problem, first_difference, not_checked, warning
from tune_sparsity.experiments.checks.training import LAST_UNKNOWN
from tune_sparsity.experiments.examples import copied, tensors_in
from tune_sparsity.experiments.own.first_look import looked_at
from tune_sparsity.experiments.own.loop import OwnLoop
from tune_sparsity.experiments.own.training import OwnTraining
from tune_sparsity.experiments.user_code import described
from tune_sparsity.sparsity.wrappers import plain_state

_EPOCHS = 2


class LoopSubject:
    """Holds a user's training loop for its checks. Makes the networks and the OwnTraining objects for these checks.

    Args:
        experiment: the training loop to check, as an OwnLoop.
        data_dir: the folder that the loop gets as `trial.data_dir`.
    """

    def __init__(self, experiment: OwnLoop, data_dir: Path | None = None) -> None:
        self._given, self.data_dir = experiment, data_dir

    @cached_property
    def experiment(self) -> OwnLoop:
        return looked_at(self._given, self.data_dir)

    def model(self) -> nn.Module:
        return self.experiment.network()

    def training(self) -> OwnTraining:
        return OwnTraining(self.experiment, "lpss", PARAMS["lpss"], epochs=_EPOCHS, seed=0, careful=True)

    @cached_property
    def first_epoch(self) -> tuple[OwnTraining, dict[str, Any]]:
        """Return an OwnTraining that has trained one epoch, and a copy of its state at that time."""
        training = self.training()
        training.epoch()
        return training, copied(training.state_dict())

    @cached_property
    def ended(self) -> OwnTraining:
        training = self.first_epoch[0]
        training.epoch()
        return training


def looks(subject: LoopSubject) -> Iterator[Problem]:
    if not any(one.numel() for one in tensors_in(subject.experiment.load(None).train.x)):
        yield warning(
            "the first epoch begins without a forward pass, so the network's inputs are not known: exported files "
            "cannot be tested"
        )
    rules = subject.experiment.layers
    if rules.off_sphere is None and rules.last is None:
        yield LAST_UNKNOWN


def trains(subject: LoopSubject) -> Iterator[Problem]:
    training = subject.ended
    error = training.close()
    if error is not None:
        yield Problem(f"the loop fails after its last epoch: {described(error)}")
    made, announced = training.sparse.steps, training.sparse.total_steps
    if made != announced:
        yield warning(
            f"{_EPOCHS} epochs took {made} steps, but {announced} follow from trial.sparsify(total_steps=...): give "
            "the number of steps in all epochs"
        )


def repeats(subject: LoopSubject) -> Iterator[Problem]:
    with closing(subject.training()) as again:
        again.epoch()
        name = first_difference(subject.first_epoch[1]["model"], plain_state(again.model))
    if name is not None:
        yield Problem(
            f"two epochs with the same seed end with different values of {name}: draw all random numbers from "
            "Python's, NumPy's or torch's global generators, and keep no state from one network to the next"
        )


def resumes(subject: LoopSubject) -> Iterator[Problem]:
    try:
        with closing(subject.training()) as resumed:
            resumed.load_state_dict(subject.first_epoch[1])
            resumed.epoch()
            name = first_difference(plain_state(subject.ended.model), plain_state(resumed.model))
    except ValueError as error:
        yield Problem(f"the state that was saved after an epoch cannot be loaded: {described(error)}")
        return
    if name is not None:
        yield Problem(
            f"a training that is saved and loaded ends with other values of {name} than one without interruption: give "
            "every other object with a state, such as a scheduler, to trial.keep(name, object)"
        )


def rebuilds(subject: LoopSubject) -> Iterator[Problem]:
    name = subject.experiment.name
    if not subject.experiment.rebuilt:
        yield warning(f"MLflow gets no model: give {name}.model, a function that makes the network")


def tests(subject: LoopSubject) -> Iterator[Problem]:
    experiment = subject.experiment
    if experiment.tests is None:
        yield not_checked(
            f"the test metric is not measured: give {experiment.name}.test, a function of (network, data_dir)"
        )
        return
    experiment.tested(experiment.network_with(plain_state(subject.ended.model)), experiment.load(None))


def declares(subject: LoopSubject) -> Iterator[Problem]:
    subject.model()
    yield from files.undeclared(subject.experiment, subject.data_dir)


CHECKS = (
    Check("loop", "the loop runs up to its first step", looks, (), True),
    replace(shapes.PRUNABLE, needs=("loop",)),
    Check("epochs", "each epoch ends with trial.report, and total_steps is correct", trains, ("loop",)),
    Check("repetition", "a repeated epoch gives the same result bit for bit", repeats, ("epochs",)),
    Check(
        "resumption", "an epoch after saving and loading gives the same result bit for bit", resumes, ("repetition",)
    ),
    Check("model", "a new network can be made", rebuilds, ("loop",)),
    Check("test", "the metric on the test data is a number", tests, ("epochs",)),
    Check(files.NAME, files.HOLDS, declares, ("loop",), True),
)
