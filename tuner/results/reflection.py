"""Train the large network of a group again, with repetitions of the examples that are hard for the small network (after
arXiv 1901.02433).

Whether an example is hard is decided out of fold: by a small network that was not trained on this example. The
procedure of arXiv 1901.02433 instead uses the errors of a network on its own training data. A network makes few such
errors, and on digits the whole published procedure is less accurate than a single network (docs/cascade.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils.data import Subset

from tune_sparsity.experiments import Data, Experiment, Loaded, Split, Training
from tune_sparsity.experiments.base import evaluate, outputs_of
from tune_sparsity.sparsity.cost.multiply_adds import Uses
from tune_sparsity.tuner.results.cascade import (
    Answers,
    Group,
    answered,
    answers_of,
    candidates,
    described,
    main_group,
    passed_pairs,
)
from tune_sparsity.tuner.study.trial import Epoch, TrialRecord, TrialState
from tune_sparsity.tuner.worker.sizes import network_cost
from tune_sparsity.tuner.worker.trainable import trial_seed

FOLDS = 5
MOST = 5.0
"""How often an example occurs in an epoch if its class has the probability 0. With probability 1, it occurs once."""
AS_LARGE = 1.01
"""The new group may need at most this many times the bytes of the old group. Equal numbers of nonzero weights may need
slightly different numbers of bytes."""
NAME = "group-reflected"
_RETRAINED = -1  # the number of the network that was trained again: no trial has it


class Reflected(TrialRecord):
    """The record of a trial whose network was trained again for a group."""

    @property
    def name(self) -> str:
        return f"{super().name}-reflected"


@dataclass(frozen=True)
class StudyRecipe:
    """Describes how to train trials of a study again.

    Attributes:
        experiment: the study's experiment.
        data: the study's data.
        epochs: the number of epochs.
        seed: the seed of the study.
        device: the device for the training.
        uses: an object that says how often the network uses each of its weights for one example (class Uses of
            tune_sparsity.sparsity.cost.multiply_adds). None if this is not known.
    """

    experiment: Experiment
    data: Data
    epochs: int
    seed: int
    device: str
    uses: Uses | None

    def train(self, record: TrialRecord, examples: Split | Loaded) -> Training:
        """Train a trial's network again from the beginning, on these training examples. Return the ended training,
        which has the network."""
        options: dict[str, Any] = {"seed": trial_seed(self.seed, record.number), "device": self.device}
        splits = examples, self.data.val
        training = Training(self.experiment, *splits, record.method, record.params, epochs=self.epochs, **options)
        while not training.finished:
            training.train()
        return training

    def record(self, of: TrialRecord, training: Training) -> TrialRecord:
        """Return the record of a trial that `train` has trained again."""
        value = evaluate(self.experiment, training.model, training.val_split)
        measures = {**training.sparse.measures(), **network_cost(training, self.uses), of.objective.val: value}
        record = Reflected(of.number, of.method, of.params, TrialState.COMPLETED, objective=of.objective)
        record.add(Epoch(self.epochs, measures))
        return record


@dataclass(frozen=True)
class Reflection:
    """Holds the new training of a large network, and how often each training example was repeated in it.

    Attributes:
        training: the new training of the large network.
        record: the record of this training.
        sure: for each training example, the probability that a small network gives to its true class. This network was
            not trained on the example. Shape (n,).
        examples: the indices of the examples in each epoch. The index of a hard example occurs several times.
    """

    training: Training
    record: TrialRecord
    sure: Tensor
    examples: Tensor


def some(split: Split | Loaded, numbers: Tensor) -> Split | Loaded:
    """Return the examples of a split at these indices, as a split of the same type."""
    if isinstance(split, Split):
        return split.at(numbers)
    return replace(split, dataset=Subset(split.dataset, numbers.tolist()))


def folds(examples: int, seed: int) -> list[Tensor]:
    """Return the indices of all examples, divided at random into FOLDS parts of about equal size."""
    return list(torch.randperm(examples, generator=Generator().manual_seed(seed)).tensor_split(FOLDS))


def out_of_fold(examples: int, seed: int, judge: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return a value for each example, from a model that was not trained on this example (as in cross-validation).

    Args:
        examples: the number of examples.
        seed: the seed of the random division into folds.
        judge: a function that trains a model and applies it: (indices of the training examples, indices of other
            examples) -> a value for each of the other examples.
    """
    found, parts = torch.full((examples,), torch.nan, dtype=torch.float64), folds(examples, seed)
    for own in parts:
        found[own] = judge(torch.cat([part for part in parts if part is not own]), own)
    return found


def repeated(sure: Tensor, seed: int) -> Tensor:
    """Return the indices of all examples, with repetitions of examples that are hard.

    Each index occurs at least once. The index of an example occurs 1 + (MOST - 1) (1 - s) times on average, where s is
    the predicted probability of the example's true class.

    Args:
        sure: the probability s of each example, shape (n,).
        seed: the seed of the random numbers that round the average number of an example's repetitions up or down.
    """
    weights = 1 + (MOST - 1) * (1 - sure)
    drawn = torch.rand(len(sure), generator=Generator().manual_seed(seed), dtype=torch.float64)
    return torch.arange(len(sure)).repeat_interleave((weights.floor() + (drawn < weights.frac())).long())


@torch.no_grad()
def probabilities(experiment: Experiment, model: nn.Module, split: Split | Loaded) -> Tensor:
    """Return the probability that a network predicts for the true class of each example of a split, shape (n,),
    float64."""
    pairs = outputs_of(experiment, model, split)
    return torch.cat([out.double().softmax(1).gather(1, y[:, None])[:, 0].cpu() for out, y in pairs])


def reflect(recipe: StudyRecipe, small: TrialRecord, large: TrialRecord) -> Reflection:
    """Train a large network again on all training examples. Hard examples occur up to MOST times in an epoch. An
    example is hard if the small network, trained again without it, predicts a low probability for its true class."""
    train = recipe.data.train

    def judge(seen: Tensor, asked: Tensor) -> Tensor:
        training = recipe.train(small, some(train, seen))
        return probabilities(recipe.experiment, training.model, some(train, asked))

    with _as_a_worker():
        sure = out_of_fold(train.examples, recipe.seed, judge)
        examples = repeated(sure, recipe.seed)
        training = recipe.train(large, some(train, examples))
    return Reflection(training, recipe.record(large, training), sure, examples)


def within(
    plain: Mapping[str, Any], answers: tuple[Answers, Answers], records: tuple[TrialRecord, TrialRecord]
) -> Group | None:
    """Choose the threshold for a group of a small and a large network, so that the group needs no more than another
    group. Return the group that is most accurate on the validation data. Return None if no threshold meets the limits,
    or if a number of bytes is not known.

    Args:
        plain: the other group, as in result.json. The new group may need at most as many multiply-adds as this group,
            and at most AS_LARGE times as many bytes.
        answers: the predictions of both networks for the validation data, the small network's first.
        records: the trials of both networks, the small network's first.
    """
    small, large = records
    if None in (small.size_bytes, large.size_bytes, plain["size_bytes"]):
        return None
    if (small.size_bytes or 0) + (large.size_bytes or 0) > AS_LARGE * plain["size_bytes"]:
        return None
    macs = {small.number: small.macs or 0, _RETRAINED: large.macs or 0}
    found = candidates(small.number, dict(zip(macs, answers, strict=True)), macs)
    cheap = (one for one in found if one.macs <= plain["expected_macs"])
    return max(cheap, key=lambda one: (one.value, -one.macs), default=None)


def with_reflection(
    recipe: StudyRecipe, document: Mapping[str, Any], networks: Mapping[str, tuple[TrialRecord, Path]]
) -> tuple[dict[str, Any], Reflection | None]:
    """Train the large network of a study's recommended group again, and compare the new group with the recommended one.

    Args:
        recipe: how trials of the study are trained again.
        document: the result of `tune_sparsity.tuner.results.cascade.group_document`.
        networks: the networks whose files exist, as a dict from the name of each trial to (trial, file of the network).

    Returns:
        The entry "group" of result.json, and the new training. If the new group is more accurate on the validation
        data, the entry contains the new group. Otherwise the entry does not, and the second value is None.
    """
    plain = main_group(document)
    if plain is None:
        return {**document, "kind": "reflect"}, None
    (small, file), (large, _) = (networks[plain[part]] for part in ("small", "large"))
    done = reflect(recipe, small, large)
    experiment, data, model = recipe.experiment, recipe.data, done.training.model
    pair = answers_of(experiment, file, data.val, recipe.device), answered(experiment, model, data.val)
    group, value = within(plain, pair, (small, done.record)), small.objective.val
    kept = group is not None and group.value > plain[value]
    told = {
        "against": plain["name"],
        "small": small.name,
        "large": done.record.name,
        "out_of_fold_probability": float(done.sure.mean()),
        "examples_an_epoch": len(done.examples),
        value: None if group is None else group.value,
        "kept": kept,
    }
    document = {**document, "kind": "reflect", "reflection": told}
    if group is None or not kept:
        return document, None
    best, best_file = networks[document["best"]]
    tests = {small.number: file, best.number: best_file}
    read = {number: answers_of(experiment, one, data.test, recipe.device) for number, one in tests.items()}
    read[_RETRAINED] = answered(experiment, model, data.test)
    records = {small.number: small, best.number: best, _RETRAINED: done.record}
    row = {"name": NAME, **described(group, records, read, best.number)}
    row["passed_pairs"] = passed_pairs(*pair, group.theta, data.classes)
    if group.value >= (best.value or 0.0) and group.macs < (best.macs or 0):
        document["as_good_as_best"] = NAME
    return {**document, "groups": [*document["groups"], row]}, done


@contextmanager
def _as_a_worker() -> Iterator[None]:
    """Return a context manager. In its block, torch computes as in a trial: with one thread, and with subnormal numbers
    replaced by 0."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
