"""Check the data: their values, their classes, and whether validation or test examples also occur in the training
data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from tune_sparsity.experiments.checks.shapes import is_classification
from tune_sparsity.experiments.checks.suite import Check, Problem, Subject, count, not_checked, same, warning
from tune_sparsity.experiments.examples import Loaded, length, tensors_in
from tune_sparsity.experiments.metrics import ACCURACY
from tune_sparsity.experiments.random_numbers import same_random_numbers
from tune_sparsity.experiments.user_reads import Reader, watching

# A split has a leak if at least this share of its examples also occurs in the training split. The exception is a
# training split that repeats its own examples about as often.
_MANY = 0.1
_UNBALANCED = 0.9
_FEW = 16  # inputs to compare first, since a comparison of all inputs needs as much memory as the inputs


def varied(subject: Subject) -> Iterator[Problem]:
    inputs = tensors_in(subject.seen("train").x)
    for x in inputs:
        if x.is_floating_point() and x.numel() and (largest := float(torch.stack(torch.aminmax(x)).abs().max())) > 1000:
            yield warning(
                f"the inputs reach {largest:g}: standardise them, because networks learn best from numbers near 1"
            )
    if len(inputs[0]) > 1 and all(bool((part == x[:1]).all()) for x in inputs for part in (x[:_FEW], x)):
        yield Problem("all training inputs are equal: there is nothing to learn from")


def loads_the_same(subject: Subject) -> Iterator[Problem]:
    other = (torch.initial_seed() + 1) % 2**32  # as in a process with another seed
    with same_random_numbers(other), watching(Reader.DATA):
        again = subject.experiment.load(subject.data_dir)
    for name in ("train", "val", "test"):
        one, other = (getattr(data, name) for data in (subject.data, again))
        if isinstance(one, Loaded):  # compared by the checksum below
            continue
        for part, first, second in zip("xy", one, other, strict=True):
            if not same(first, second):
                yield Problem(
                    f"two calls of load return different {part} of the {name} split: draw random numbers from a "
                    "generator with a seed, and read files in sorted order"
                )
                return
    if again.checksum() != subject.data.checksum():
        yield Problem(
            "two calls of load return data with different checksums: draw random numbers from a generator with a seed"
        )


def no_leak(subject: Subject) -> Iterator[Problem]:
    if not subject.data.in_memory:
        yield not_checked("the data are not in memory")
        return
    train = _hashes(subject.data.train.x)
    known = set(train)
    twins = 1 - len(known) / len(train)
    for name in ("val", "test"):
        mine = _hashes(getattr(subject.data, name).x)
        shared = sum(one in known for one in mine)
        if not shared:
            continue
        share = shared / len(mine)
        told = f"{shared:,} of the {count(len(mine), 'example')} in the {name} split also occur in the training split"
        if share >= _MANY and share > 1.5 * twins:
            yield Problem(f"{told}: the accuracy on this split is misleading. Split the data without overlap")
        else:
            yield warning(f"{told}. If you made the split, leave these examples out of it")


def _hashes(x: Any) -> list[bytes]:
    """Return a hash of the bytes of each example."""
    rows = [tensor.contiguous().reshape(len(tensor), -1).numpy() for tensor in tensors_in(x)]
    return [_hash(*(part[i] for part in rows)) for i in range(length(x))]


def _hash(*parts: np.ndarray) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part.data)
    return digest.digest()


def balanced(subject: Subject) -> Iterator[Problem]:
    if not is_classification(subject):
        return
    if not subject.data.in_memory:
        yield not_checked("the data are not in memory")
        return
    splits = {name: getattr(subject.data, name).y for name in ("train", "val", "test")}
    by_accuracy = subject.experiment.metric_name == ACCURACY
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
        if by_accuracy and float(sizes[most]) / len(labels) >= _UNBALANCED:
            kind = _class(subject, int(kinds[most]))
            told = f"{float(sizes[most]) / len(labels):.0%} of the {name} split belong to class {kind}"
            yield warning(
                f"{told}: a network that always predicts this class has this accuracy. Consider a balanced metric"
            )


def _class(subject: Subject, number: int) -> str:
    names = subject.data.classes
    return repr(names[number]) if 0 <= number < len(names) else str(number)


CHECKS = (
    Check("inputs", "the inputs are not all equal, and their scale suits networks", varied, ("data",), told=True),
    Check("loading", "loading twice gives the same data", loads_the_same, ("data",)),
    Check("leaks", "no validation or test example is a training example", no_leak, ("data",)),
    Check(
        "classes",
        "every class is in all splits, and no class has almost all examples",
        balanced,
        ("outputs", "metric", "labels"),
    ),
)
