"""Define checks of an experiment and their findings, and run checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tune_sparsity.experiments.base import Data, DataUnavailable, Experiment, in_evaluation
from tune_sparsity.experiments.examples import Loaded, Split, copied, spread_over, tensors_in
from tune_sparsity.experiments.random_numbers import same_random_numbers
from tune_sparsity.experiments.training import Training
from tune_sparsity.experiments.user_code import described
from tune_sparsity.experiments.user_reads import Reader, watching

_STEPS, _BATCH, _VALIDATED = 3, 16, 32  # a check's training: steps per epoch, examples per batch, validation examples
_LOADED = 64  # examples to check of a data set that is not in memory


class Level(StrEnum):
    """Defines the possible levels of a finding. Only FAILED means that the experiment has a mistake."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """Holds the outcome of one check.

    Attributes:
        check: the name of the check.
        level: whether the check has passed, gives a warning, has failed or was skipped.
        text: one line. It states the property that the check has confirmed, the problem and a remedy, or the reason why
            the check was skipped.
    """

    check: str
    level: Level
    text: str


@dataclass(frozen=True)
class Problem:
    """Holds a problem that a check has found. The text is one line."""

    text: str
    level: Level = Level.FAILED


def warning(text: str) -> Problem:
    return Problem(text, Level.WARNING)


def not_checked(text: str) -> Problem:
    return Problem(text, Level.SKIPPED)


class Subject:
    """Holds an experiment and its data for the checks. Makes the networks and the Training objects for these checks.

    Args:
        experiment: the experiment to check.
        data_dir: the argument of `experiment.load`.
        data: the data if they are already loaded. If None, this class loads the data when a check needs them.
    """

    def __init__(self, experiment: Experiment, data_dir: Path | None = None, data: Data | None = None) -> None:
        self.experiment, self.data_dir = experiment, data_dir
        if data is not None:
            self.data = data

    @cached_property
    def data(self) -> Data:
        with watching(Reader.DATA):
            return self.experiment.load(self.data_dir)

    def model(self, seed: int = 0) -> nn.Module:
        """Return a new network. Its initial weights are those of a trial with this seed. torch.compile is removed."""
        torch.manual_seed(seed)
        return self.experiment.network()

    def raw(self, count: int) -> Split:
        """Return copies of up to `count` training examples, which `prepare` has not converted. They are evenly spaced,
        because the split may be sorted by class."""
        return spread(self.data.train, count)

    def seen(self, name: str) -> Split:
        """Return a split for a check of its values: the whole split if it is in memory, otherwise a sample.

        Args:
            name: "train", "val" or "test".
        """
        split = getattr(self.data, name)
        return spread(split, _LOADED) if isinstance(split, Loaded) else split

    def batch(self, count: int) -> tuple[Any, Any]:
        """Return (inputs, targets) of up to `count` training examples. `prepare` has converted the inputs."""
        x, y = self.raw(count)
        return self.experiment.prepare(x), y

    def outputs(self, model: nn.Module, count: int) -> Tensor:
        """Return the network's outputs for up to `count` training examples, in evaluation mode."""
        with torch.no_grad():
            return self.experiment.forward(in_evaluation(model), self.batch(count)[0])

    def training(self, method: str = "lpss", *, epochs: int = 2, seed: int = 0) -> Training:
        """Return a Training with few examples and few steps in each epoch. Its first epoch has not begun."""
        size = min(self.experiment.recipe.batch_size, _BATCH)
        small = replace(self.experiment, recipe=replace(self.experiment.recipe, epochs=epochs, batch_size=size))
        train, val = self.raw(size * _STEPS), spread(self.data.val, _VALIDATED)
        return Training(small, train, val, method, PARAMS[method], epochs=epochs, seed=seed)

    @cached_property
    def trained(self) -> Training:
        """Return a Training that has trained its only epoch."""
        training = self.training(epochs=1)
        training.epoch()
        return training

    @cached_property
    def twice(self) -> tuple[Training, Training]:
        """Return two Training objects with the same seed. Each has trained the first of two epochs. Their networks are
        equal if the experiment has no mistake. Two checks use these objects: `repeats`, and after it `resumes`, which
        trains the first one further."""
        first, second = self.training(), self.training()
        first.epoch()
        # Other code in the process may also draw random numbers and copy the weights.
        torch.rand(3), copied(first.model.state_dict())
        second.epoch()
        return first, second


# One method with weights on the sphere and one without. Both update their masks in every step.
PARAMS: dict[str, dict[str, Any]] = {
    "lpss": {"final_sparsity": 0.5, "p": 1.4, "sphere_lr": 0.01, "lr": 0.01, "threshold_interval": 1},
    "rigl": {"final_sparsity": 0.5, "lr": 0.01, "interval": 1},
}


def spread(split: Split | Loaded, count: int) -> Split:
    return split.at(spread_over(split.examples, count))


@dataclass(frozen=True)
class Check:
    """Describes one property that an experiment must have.

    Attributes:
        name: a short and unique name.
        holds: the property, as a sentence for users.
        problems: (Subject or LoopSubject) -> the problems that the check finds. Any exception in this function except
            DataUnavailable also counts as a problem of the experiment.
        needs: the names of other checks. This check is skipped if one of them has failed or was skipped.
        quick: whether every study runs this check at its beginning, because the check takes little time. If the check
            fails, the study ends with an error.
        told: whether a study also runs this check at its beginning. If the check fails, the study prints the problem as
            a warning and continues.
    """

    name: str
    holds: str
    problems: Callable[[Any], Iterable[Problem]]
    needs: tuple[str, ...] = ()
    quick: bool = False
    told: bool = False


def run(checks: Sequence[Check], subject: Any) -> Iterator[Finding]:
    """Run checks in order, and yield the finding of each check when the check ends. Afterwards, the global random
    generators have the same states as before.

    Args:
        checks: the checks.
        subject: the argument of their functions, a Subject or a LoopSubject.

    Raises:
        DataUnavailable: if the experiment cannot load its data.
    """
    fallen: set[str] = set()
    for check in checks:
        broken = [name for name in check.needs if name in fallen]
        if broken:
            fallen.add(check.name)
            yield Finding(check.name, Level.SKIPPED, f"not checked, since {broken[0]!r} failed")
            continue
        with same_random_numbers():
            problems = _problems(check, subject)
        failed = [problem for problem in problems if problem.level is Level.FAILED]
        if failed:
            fallen.add(check.name)
        told = (failed or problems)[:1]
        yield Finding(check.name, told[0].level, told[0].text) if told else Finding(check.name, Level.OK, check.holds)


def _problems(check: Check, subject: Any) -> list[Problem]:
    try:
        with watching():
            return list(check.problems(subject))
    except DataUnavailable:
        raise
    except (Exception, SystemExit) as error:
        return [Problem(described(error))]


def count(number: int, what: str) -> str:
    """Return a number with a noun in the right form, such as "1 example" or "2,000 examples"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def same(first: Any, second: Any) -> bool:
    """Return whether two nested structures of tensors have equal types, shapes and values. NaN equals NaN."""
    pairs = list(zip(tensors_in(first), tensors_in(second), strict=True))
    return all(a.dtype == b.dtype and torch.equal(_comparable(a), _comparable(b)) for a, b in pairs)


def _comparable(x: Tensor) -> Tensor:
    """Return a tensor that torch.equal can compare: a number replaces each NaN, and 8-bit types become uint8."""
    x = x.detach()
    return x.view(torch.uint8) if x.dtype.itemsize == 1 else x.nan_to_num()


def first_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> str | None:
    """Return the name of the first tensor that differs between two state_dicts, or None if all are equal."""
    for name in [*first, *second]:
        if name not in first or name not in second or not _alike(first[name], second[name]):
            return name
    return None


def _alike(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and same(first, second)
    return bool(first == second)
