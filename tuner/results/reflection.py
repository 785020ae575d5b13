"""Train the large network of a group again on the errors of the small network (after arXiv 1901.02433).

The errors are out-of-fold errors: a network that was not trained on an example predicts its class. The published
procedure uses the errors of a network on its own training data instead. There are few such errors, and the procedure is
less accurate.
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
"""How often an example counts whose class is impossible for the network that judges it. A certain one counts once."""
AS_LARGE = 1.01
"""How many times the plain group's bytes a group may have: the same number of weights takes a little more or less."""
NAME = "group-reflected"
_RETRAINED = -1  # as a trial's number


class Reflected(TrialRecord):
    """The record of a trial that was trained again for a group."""

    @property
    def name(self) -> str:
        return f"{super().name}-reflected"


@dataclass(frozen=True)
class StudyRecipe:
    """Describes how to train trials of a study again.

    Attributes:
        seed: the seed of the study.
        uses: how often the network uses its weights.
    """

    experiment: Experiment
    data: Data
    epochs: int
    seed: int
    device: str
    uses: Uses | None

    def train(self, record: TrialRecord, examples: Split | Loaded) -> Training:
        """Train a trial again on other examples, from its first to its last epoch. Return the training."""
        options: dict[str, Any] = {"seed": trial_seed(self.seed, record.number), "device": self.device}
        splits = examples, self.data.val
        training = Training(self.experiment, *splits, record.method, record.params, epochs=self.epochs, **options)
        while not training.finished:
            training.train()
        return training

    def record(self, of: TrialRecord, training: Training) -> TrialRecord:
        """Return the record of a trial that was trained again here."""
        value = evaluate(self.experiment, training.model, training.val_split)
        measures = {**training.sparse.measures(), **network_cost(training, self.uses), of.objective.val: value}
        record = Reflected(of.number, of.method, of.params, TrialState.COMPLETED, objective=of.objective)
        record.add(Epoch(self.epochs, measures))
        return record


@dataclass(frozen=True)
class Reflection:
    """Holds a large network that was trained again, and the predictions that chose its examples.

    Attributes:
        sure: the out-of-fold probability of the true class of each training example.
        examples: the indices of the examples of an epoch. Examples on which the small network is unsure are repeated.
    """

    training: Training
    record: TrialRecord
    sure: Tensor
    examples: Tensor


def some(split: Split | Loaded, numbers: Tensor) -> Split | Loaded:
    """Return the examples of a split at these indices, as a split of the same kind."""
    if isinstance(split, Split):
        return split.at(numbers)
    return replace(split, dataset=Subset(split.dataset, numbers.tolist()))


def folds(examples: int, seed: int) -> list[Tensor]:
    """Return the indices of all examples, divided at random into FOLDS parts of about equal size."""
    return list(torch.randperm(examples, generator=Generator().manual_seed(seed)).tensor_split(FOLDS))


def out_of_fold(examples: int, seed: int, judge: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return a value for each example, from a model that was not trained on this example.

    Args:
        judge: a function that trains a model and applies it: (indices of the training examples, indices of other
            examples) -> a value for each of the other examples.
    """
    found, parts = torch.full((examples,), torch.nan, dtype=torch.float64), folds(examples, seed)
    for own in parts:
        found[own] = judge(torch.cat([part for part in parts if part is not own]), own)
    return found


def repeated(sure: Tensor, seed: int) -> Tensor:
    """Return the indices of all examples. The index of an example occurs at least once, and 1 + (MOST - 1) (1 - sure)
    times on average.

    Args:
        sure: the predicted probability of each example's true class.
    """
    weights = 1 + (MOST - 1) * (1 - sure)
    drawn = torch.rand(len(sure), generator=Generator().manual_seed(seed), dtype=torch.float64)
    return torch.arange(len(sure)).repeat_interleave((weights.floor() + (drawn < weights.frac())).long())


@torch.no_grad()
def probabilities(experiment: Experiment, model: nn.Module, split: Split | Loaded) -> Tensor:
    """Return the probability that a network predicts for the true class of each example, shape (n,), float64."""
    pairs = outputs_of(experiment, model, split)
    return torch.cat([out.double().softmax(1).gather(1, y[:, None])[:, 0].cpu() for out, y in pairs])


def reflect(recipe: StudyRecipe, small: TrialRecord, large: TrialRecord) -> Reflection:
    """Train a large network again on all examples. An example occurs up to MOST times in an epoch. It occurs often if
    the small network, trained again without this example, is unsure about it."""
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
    """Choose the threshold for a small and a large network. Return the group that is most accurate on the validation
    data. It must not have more multiply-adds than the group `plain`, nor clearly more bytes. Return None if there is no
    such group.

    Args:
        plain: the other group, as in result.json.
        answers: the answers of both networks on the validation data.
        records: the trials of both networks.
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
    """Train the large network of a study's recommended group again. If the group with the new network is better, return
    `group` of result.json with this group added, and the new network. Otherwise return `group` of result.json without
    it, and None.

    Args:
        document: the result of `tune_sparsity.tuner.results.cascade.group_document`.
        networks: the name of each kept network's trial -> the trial and its file.
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
    """Within it torch computes as it does for trials: with one thread, and without subnormal numbers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
