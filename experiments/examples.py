"""Define classes for the examples of a split: `Split` holds tensors in memory, `Loaded` loads a torch data set.

A nest is a nested structure of tensors: a tensor, or a dict, tuple or list of nests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from tune_sparsity.experiments.random_numbers import same_random_numbers
from tune_sparsity.sparsity.torch_internals import tree_leaves, tree_map, tree_paths

_FETCHED_NUMBERS = 1 << 18  # to fetch at once: a megabyte of float32, which fits into a processor's cache
_ASKED_NUMBERS = 1 << 22  # in an evaluation batch: a wide residual net makes 16 to 64 times as many activations
_HASHED = 64  # examples in the checksum of a data set that is not in memory


def tensors_in(nest: Any) -> list[Tensor]:
    """Return all tensors of a nest as a list. A nest is a nested structure of tensors: a tensor, or a dict, tuple or
    list of nests."""
    return [nest] if isinstance(nest, Tensor) else [leaf for leaf in tree_leaves(nest) if isinstance(leaf, Tensor)]


def mapped(function: Callable[[Tensor], Any], nest: Any) -> Any:
    """Return a copy of nested lists, tuples and dicts in which function(tensor) replaces each tensor."""
    if isinstance(nest, Tensor):
        return function(nest)
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, nest)


def copied(nest: Any) -> Any:
    """Return a copy of a nest and its tensors."""
    return mapped(Tensor.clone, nest)


def named(nest: Any) -> dict[str, Tensor]:
    """Return the tensors of the nest, as a dict from names to tensors. A name consists of the keys and indices that
    lead to the tensor, with dots between them. If the nest itself is a tensor, the tensor's name is ""."""
    return {".".join(path): leaf for path, leaf in tree_paths(nest) if isinstance(leaf, Tensor)}


def length(nest: Any) -> int:
    """Return the number of examples in a nest. It is the size of the first dimension of each tensor."""
    return len(tensors_in(nest)[0])


class Split(NamedTuple):
    """Holds examples in memory: inputs x and targets y. Experiment.prepare converts the inputs for the network.

    x and y are tensors of shape (n, ...), or dicts, tuples or lists of such tensors. n is the number of examples.

    >>> Split(torch.zeros(3, 8), torch.tensor([0, 1, 1])).x.shape
    torch.Size([3, 8])
    """

    x: Any
    y: Any

    @property
    def examples(self) -> int:
        return length(self.x)

    def at(self, indices: Tensor) -> Split:
        """Return copies of the examples at these indices."""
        return mapped(lambda part: part[indices.to(part.device)], self)

    def first(self, count: int) -> Split:
        return mapped(lambda part: part[:count], self)

    def to(self, device: str | torch.device) -> Split:
        return mapped(lambda part: part.to(device), self)

    def batches(self, size: int) -> Iterator[Split]:
        """Yield all examples in order, in batches of `size`."""
        return map(Split, parts(self.x, size), parts(self.y, size))

    def shuffled(self, size: int, order: Generator, *, count: int, epoch: int) -> Iterator[Split]:
        """Yield `count` examples in a new random order, in batches of `size`.

        Args:
            size: the number of examples in a batch.
            order: the generator of the random order.
            count: the number of examples to yield, at most the number of all examples.
            epoch: the number of the epoch, from 0. It has no effect for examples in memory.
        """
        # If examples are small, one index_select fetches several batches.
        several = max(1, _FETCHED_NUMBERS // (size * max(1, numbers(self.first(1).x))))
        places = torch.randperm(self.examples, generator=order)[:count].to(tensors_in(self.x)[0].device)
        for some in places.split(size * several):
            # index_select is twice as quick as an index on a CPU.
            fetched = [mapped(lambda part, at=some: torch.index_select(part, 0, at), nest) for nest in self]  # type: ignore[misc]
            yield from Split(*fetched).batches(size)

    def seed(self, order: Generator) -> int | None:
        """Return None: examples in memory need no seed. `Loaded.seed` returns a seed for a torch data set."""
        return None

    def add_to(self, digest: Any) -> None:
        """Add the bytes, shapes and types of all examples to a hashlib object."""
        for tensor in tensors_in(self):
            digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.contiguous().cpu().numpy().data)


def numbers(nest: Any) -> int:
    """Return the number of elements in all tensors of a nest."""
    return sum(tensor.numel() for tensor in tensors_in(nest))


def at_once(nest: Any) -> int:
    """Return the batch size for an evaluation: 4096, or less if the examples are large.

    Args:
        nest: the nested tensors of one or more examples. Their number of elements decides how large an example is.
    """
    return max(1, min(4096, _ASKED_NUMBERS * length(nest) // max(1, numbers(nest))))


def parts(nest: Any, size: int) -> Iterator[Any]:
    """Yield parts of a nest: nests of the same structure, with up to `size` examples."""
    if isinstance(nest, Tensor):
        return iter(nest.split(size))
    starts = range(0, length(nest), size)
    return (mapped(lambda part, at=start: part[at : at + size], nest) for start in starts)  # type: ignore[misc]


@dataclass(frozen=True)
class Loaded:
    """Holds a torch data set. A DataLoader loads its examples when they are needed.

    Attributes:
        dataset: a map-style data set with `__getitem__` and `__len__`, or an IterableDataset. The `__len__` of an
            IterableDataset is the number of examples in an epoch. If an IterableDataset has a method `set_epoch`, it is
            called with the number of each epoch.
        collate: makes (inputs, targets) from a list of examples. The default is torch's default_collate.
        workers: the number of processes that load examples for each training. With 0, the training process loads them.
        device: the device of the batches.
        examples: the length of the data set.

    Raises:
        ValueError: if the data set has no length, or is empty.
    """

    dataset: Any
    collate: Callable[[list[Any]], Any] | None = None
    workers: int = 0
    device: str | torch.device = "cpu"
    examples: int = field(init=False)

    def __post_init__(self) -> None:
        try:
            examples = len(self.dataset)
        except TypeError:
            raise ValueError(
                f"the data set {type(self.dataset).__name__} has no length: give it __len__, the number of examples of "
                "an epoch"
            ) from None
        if not examples:
            raise ValueError(f"the data set {type(self.dataset).__name__} is empty")
        object.__setattr__(self, "examples", examples)

    @property
    def iterable(self) -> bool:
        return isinstance(self.dataset, IterableDataset)

    def at(self, indices: Tensor) -> Split:
        """Return the examples at these indices. An IterableDataset has no indices: it gives its first len(indices)
        examples."""
        with same_random_numbers(0):
            if self.iterable:
                found = next(self._batches(batch_size=len(indices)), None)
                if found is None:
                    raise ValueError(
                        f"{type(self.dataset).__name__} yields no example, but its length is {self.examples}"
                    )
                return found
            return self._here((self.collate or default_collate)([self.dataset[i] for i in indices.tolist()]))

    def first(self, count: int) -> Split:
        return self.at(torch.arange(min(count, self.examples)))

    def to(self, device: str | torch.device) -> Loaded:
        return replace(self, device=device)

    def batches(self, size: int) -> Iterator[Split]:
        """Yield all examples in order, in batches of `size`."""
        return islice(self._batches(batch_size=size, workers=self.workers), -(-self.examples // size))

    def shuffled(self, size: int, order: Generator, *, count: int, epoch: int) -> Iterator[Split]:
        """Yield `count` examples in a new random order, in batches of `size`. An IterableDataset yields examples in its
        own order, perhaps fewer than `count`. The arguments are those of `Split.shuffled`."""
        if not self.iterable:
            places = torch.randperm(self.examples, generator=order)[:count]
            yield from self.chosen(places.split(size), self.seed(order))
            return
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        options: dict[str, Any] = {"batch_size": size, "drop_last": count < self.examples}
        batches = self._batches(**options, workers=self.workers, seed=self.seed(order))
        yield from islice(batches, -(-count // size))

    def chosen(self, batches: Sequence[Tensor], seed: int) -> Iterator[Split]:
        """Yield a batch for each tensor of indices. The data set must be map-style.

        Args:
            seed: the seed of the random numbers in the processes that load examples.
        """
        return self._batches(batch_sampler=[some.tolist() for some in batches], workers=self.workers, seed=seed)

    def seed(self, order: Generator) -> int:
        """Return a seed for the data set's random numbers in an epoch. The generator `order`, which also shuffles the
        examples, draws the seed."""
        return int(torch.randint(2**31, (), generator=order))

    def _batches(self, *, workers: int = 0, seed: int = 0, **options: Any) -> Iterator[Split]:
        loader = DataLoader(
            self.dataset,
            **options,
            collate_fn=self.collate,
            num_workers=workers,
            pin_memory=torch.device(self.device).type == "cuda",
            generator=Generator().manual_seed(seed),  # of the workers' random numbers
        )
        try:
            for batch in loader:
                yield self._here(batch)
        except Exception as error:
            if "DataLoader worker process" not in str(error):
                raise
            cause = str(error).strip().splitlines()[-1]  # torch's message ends with the error, after the traceback
            raise RuntimeError(f"a process that loads data failed: {cause}") from error

    def _here(self, batch: Any) -> Split:
        """Convert a batch of the DataLoader to inputs and targets on the device."""
        if not isinstance(batch, Sequence) or len(batch) != 2:
            raise ValueError(
                f"a batch of {type(self.dataset).__name__} is a {type(batch).__name__}: give Data(collate=...), a "
                "function that makes (inputs, targets) from a list of examples"
            )
        pair = Split(*(dict(part) if isinstance(part, Mapping) else part for part in batch))
        return mapped(lambda part: part.to(self.device, non_blocking=True), pair)

    def add_to(self, digest: Any) -> None:
        """Add the length and a sample of the examples to a hashlib object. Reading all examples could take hours."""
        digest.update(f"{type(self.dataset).__name__}{self.examples}".encode())
        self.at(spread_over(self.examples, _HASHED)).add_to(digest)


def is_data_set(value: Any) -> bool:
    """Return whether the value is a torch data set, or another object with `__getitem__` and `__len__`. Lists, tuples,
    dicts, texts, tensors and arrays are not data sets."""
    plain = isinstance(value, tuple | list | str | Mapping | Tensor | np.ndarray)
    return isinstance(value, Dataset) or (hasattr(value, "__getitem__") and hasattr(value, "__len__") and not plain)


def spread_over(examples: int, count: int) -> Tensor:
    """Return up to `count` evenly spaced indices of examples. A data set may be sorted by class, so its first examples
    would not represent it."""
    return torch.linspace(0, examples - 1, min(count, examples)).round().long()
