"""Checks of the data: their numbers, their classes, and whether the examples that judge are among those that train."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from tune_sparsity.experiments.checks.shapes import is_classification
from tune_sparsity.experiments.checks.suite import Check, Problem, Subject, count, same_random_numbers, warning
from tune_sparsity.experiments.user_reads import watching

_MANY = 0.1  # of a split's examples in the training split too: a leak, unless the data are full of twins anyway
_UNBALANCED = 0.9
_FEW = 16  # inputs that are compared before all are, which takes as much memory again


def varied(subject: Subject) -> Iterator[Problem]:
    x = subject.data.train.x
    if x.is_floating_point() and (largest := float(torch.stack(torch.aminmax(x)).abs().max())) > 1000:
        yield warning(f"the inputs reach {largest:g}: networks learn from numbers near 1, standardise them")
    flat = x.reshape(len(x), -1)
    if len(flat) > 1 and all(bool((part == flat[:1]).all()) for part in (flat[:_FEW], flat)):
        yield Problem("all training inputs are equal: there is nothing to learn from")


def loads_the_same(subject: Subject) -> Iterator[Problem]:
    other = (torch.initial_seed() + 1) % 2**32  # as in a process that was seeded otherwise
    with same_random_numbers(other), watching(False):
        again = subject.experiment.load(subject.data_dir)
    for name in ("train", "val", "test"):
        for part, first, second in zip("xy", getattr(subject.data, name), getattr(again, name), strict=True):
            if first.shape != second.shape or not torch.equal(first.nan_to_num(), second.nan_to_num()):
                yield Problem(
                    f"loaded twice, {part} of the {name} split differs: take random numbers from a generator with a "
                    "seed, and files in sorted order"
                )
                return
    if again.checksum() != subject.data.checksum():
        yield Problem("loaded twice, the data's checksum differs")


def no_leak(subject: Subject) -> Iterator[Problem]:
    train = _hashes(subject.data.train.x)
    known = set(train)
    twins = 1 - len(known) / len(train)
    for name in ("val", "test"):
        mine = _hashes(getattr(subject.data, name).x)
        shared = sum(one in known for one in mine)
        if not shared:
            continue
        share = shared / len(mine)
        told = f"{shared:,} of the {count(len(mine), 'example')} of the {name} split are training examples too"
        if share >= _MANY and share > 1.5 * twins:
            yield Problem(f"{told}: accuracies on it would say nothing, split the data without overlap")
        else:
            yield warning(f"{told}, exact copies: leave them out where the data are your own")


def _hashes(x: Tensor) -> list[bytes]:
    """Of each example's bytes."""
    rows = x.contiguous().flatten(1).numpy() if x.dim() > 1 else x.contiguous().numpy()[:, None]
    return [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]


def balanced(subject: Subject) -> Iterator[Problem]:
    if not is_classification(subject):
        return
    splits = {name: getattr(subject.data, name).y for name in ("train", "val", "test")}
    present = set(splits["train"].unique().tolist())
    for name, labels in splits.items():
        strange = sorted(set(labels.unique().tolist()) - present)
        if strange:
            yield warning(f"class {_class(subject, strange[0])} of the {name} split is not in the training split")
        elif name != "train" and (missing := sorted(present - set(labels.unique().tolist()))):
            yield warning(
                f"class {_class(subject, missing[0])} has no example in the {name} split: stratify the splits"
            )
        kinds, sizes = labels.unique(return_counts=True)
        most = int(sizes.argmax())
        if float(sizes[most]) / len(labels) >= _UNBALANCED:
            told = f"{float(sizes[most]) / len(labels):.0%} of the {name} split are {_class(subject, int(kinds[most]))}"
            yield warning(
                f"{told}: a network that always says so has that accuracy, a balanced metric may serve better"
            )


def _class(subject: Subject, number: int) -> str:
    names = subject.data.classes
    return repr(names[number]) if 0 <= number < len(names) else str(number)


CHECKS = (
    Check("inputs", "the inputs differ, and are of a size that networks learn from", varied, ("data",), told=True),
    Check("loading", "loading twice gives the same data", loads_the_same, ("data",)),
    Check("leaks", "no example that judges is a training example", no_leak, ("data",)),
    Check("classes", "the classes are in all splits, and none outweighs the others", balanced, ("outputs", "labels")),
)
