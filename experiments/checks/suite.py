"""What a check is, what it looks at, and how checks are run."""

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

_STEPS, _BATCH, _VALIDATED = 3, 16, 32  # of the trainings that checks make: steps an epoch, and examples
_LOADED = 64  # examples that are looked at of a data set that is not in memory


class Level(StrEnum):
    """How a check ended. Only FAILED makes an experiment unsound."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """What one check found, in one line: that it holds, or what is wrong and how to mend it."""

    check: str
    level: Level
    text: str


@dataclass(frozen=True)
class Problem:
    """Something that a check found to be wrong."""

    text: str
    level: Level = Level.FAILED


def warning(text: str) -> Problem:
    return Problem(text, Level.WARNING)


def not_checked(text: str) -> Problem:
    return Problem(text, Level.SKIPPED)


class Subject:
    """An experiment under examination.

    Args:
        experiment: any.
        data_dir: handed to its loader.
        data: where it is loaded already.
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
        """Return a fresh network, as a trial with this seed would get it, but for torch.compile."""
        torch.manual_seed(seed)
        return self.experiment.network()

    def raw(self, count: int) -> Split:
        """Up to `count` training examples from all over the set, which may be sorted by class; copies."""
        return spread(self.data.train, count)

    def seen(self, name: str) -> Split:
        """Return a split: whole where it is in memory, else some examples from all over it."""
        split = getattr(self.data, name)
        return spread(split, _LOADED) if isinstance(split, Loaded) else split

    def batch(self, count: int) -> tuple[Any, Any]:
        """Inputs as the network takes them, and targets."""
        x, y = self.raw(count)
        return self.experiment.prepare(x), y

    def outputs(self, model: nn.Module, count: int) -> Tensor:
        """Return the network's outputs for training examples, in evaluation mode."""
        with torch.no_grad():
            return self.experiment.forward(in_evaluation(model), self.batch(count)[0])

    def training(self, method: str = "lpss", *, epochs: int = 2, seed: int = 0) -> Training:
        """Return a short training: a few steps an epoch, on few examples."""
        size = min(self.experiment.recipe.batch_size, _BATCH)
        small = replace(self.experiment, recipe=replace(self.experiment.recipe, epochs=epochs, batch_size=size))
        train, val = self.raw(size * _STEPS), spread(self.data.val, _VALIDATED)
        return Training(small, train, val, method, PARAMS[method], epochs=epochs, seed=seed)

    @cached_property
    def trained(self) -> Training:
        """Return a training of one epoch, which has ended."""
        training = self.training(epochs=1)
        training.epoch()
        return training

    @cached_property
    def twice(self) -> tuple[Training, Training]:
        """Return the same first epoch of two, twice; equal if the experiment is sound. Whoever goes on with them is the
        last to look."""
        first, second = self.training(), self.training()
        first.epoch()
        torch.rand(3), copied(first.model.state_dict())  # what other code of the process may do in between
        second.epoch()
        return first, second


# Of every kind of method: moves masks at every step, on the sphere and off it.
PARAMS: dict[str, dict[str, Any]] = {
    "lpss": {"final_sparsity": 0.5, "p": 1.4, "sphere_lr": 0.01, "lr": 0.01, "threshold_interval": 1},
    "rigl": {"final_sparsity": 0.5, "lr": 0.01, "interval": 1},
}


def spread(split: Split | Loaded, count: int) -> Split:
    return split.at(spread_over(split.examples, count))


@dataclass(frozen=True)
class Check:
    """One thing that must hold.

    Attributes:
        name: short, and unique.
        holds: what is so when nothing is wrong, for a person.
        problems: finds what is wrong with a Subject. An exception that it raises is the experiment's, and a problem as
            well.
        needs: names of checks that must not have failed for this one to make sense.
        quick: cheap enough to begin every study with, which does not begin where it fails.
        told: cheap as well: what it finds is told by a study, which begins all the same.
    """

    name: str
    holds: str
    problems: Callable[[Any], Iterable[Problem]]
    needs: tuple[str, ...] = ()
    quick: bool = False
    told: bool = False


def run(checks: Sequence[Check], subject: Any) -> Iterator[Finding]:
    """Yield one finding for each check, in the order of the checks, as soon as the check ends. The checks leave the
    state of the global random generators unchanged.

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
    """ "1 example", "2,000 examples"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def same(first: Any, second: Any) -> bool:
    """Return whether two nests of tensors are equal in types, shapes and every bit but NaN's."""
    pairs = list(zip(tensors_in(first), tensors_in(second), strict=True))
    return all(a.dtype == b.dtype and torch.equal(_comparable(a), _comparable(b)) for a, b in pairs)


def _comparable(x: Tensor) -> Tensor:
    """Return the tensor with a number in the place of NaN; of a type of 8 bits, these bits."""
    x = x.detach()
    return x.view(torch.uint8) if x.dtype.itemsize == 1 else x.nan_to_num()


def first_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> str | None:
    """Return the name of the first tensor that two state_dicts do not have alike; None if they are equal."""
    for name in [*first, *second]:
        if name not in first or name not in second or not _alike(first[name], second[name]):
            return name
    return None


def _alike(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and same(first, second)
    return bool(first == second)
