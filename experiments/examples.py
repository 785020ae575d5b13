"""The examples of a split: tensors in memory, or a data set that gives them when they are needed."""

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

_FETCHED_NUMBERS = 1 << 18  # at once: a megabyte of float32, which processors keep at hand
_ASKED_NUMBERS = 1 << 22  # inputs' numbers in one batch: a wide residual net makes 16 to 64 times as many of them
_HASHED = 64  # examples of a data set that is not in memory


def tensors_in(nest: Any) -> list[Tensor]:
    """Return the tensors of a nest of dicts, tuples and lists, in order."""
    return [nest] if isinstance(nest, Tensor) else [leaf for leaf in tree_leaves(nest) if isinstance(leaf, Tensor)]


def mapped(function: Callable[[Tensor], Any], nest: Any) -> Any:
    """Return the nest with `function` applied to each tensor in it."""
    if isinstance(nest, Tensor):
        return function(nest)
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, nest)


def copied(nest: Any) -> Any:
    """Return the nest with copies of its tensors."""
    return mapped(Tensor.clone, nest)


def named(nest: Any) -> dict[str, Tensor]:
    """Return the tensors of a nest by their names: the keys and places on the way to each, joined by dots. A tensor
    that is no nest has the name ""."""
    return {".".join(path): leaf for path, leaf in tree_paths(nest) if isinstance(leaf, Tensor)}


def length(nest: Any) -> int:
    """Return the size of the tensors' first dimension."""
    return len(tensors_in(nest)[0])


class Split(NamedTuple):
    """Examples in memory: inputs, of which Experiment.prepare makes what the network takes, and targets.

    Each is a tensor of shape (n, ...), or a dict, tuple or list of such tensors, all with the same n.

    >>> Split(torch.zeros(3, 8), torch.tensor([0, 1, 1])).x.shape
    torch.Size([3, 8])
    """

    x: Any
    y: Any

    @property
    def examples(self) -> int:
        return length(self.x)

    def at(self, indices: Tensor) -> Split:
        """Return copies of the examples with these numbers."""
        return mapped(lambda part: part[indices.to(part.device)], self)

    def first(self, count: int) -> Split:
        return mapped(lambda part: part[:count], self)

    def to(self, device: str | torch.device) -> Split:
        return mapped(lambda part: part.to(device), self)

    def batches(self, size: int) -> Iterator[Split]:
        """Yield all examples in order."""
        return map(Split, parts(self.x, size), parts(self.y, size))

    def shuffled(self, size: int, order: Generator, *, count: int, epoch: int) -> Iterator[Split]:
        """Yield `count` examples in a fresh order. Small examples are fetched for several batches at once."""
        several = max(1, _FETCHED_NUMBERS // (size * max(1, numbers(self.first(1).x))))
        places = torch.randperm(self.examples, generator=order)[:count].to(tensors_in(self.x)[0].device)
        for some in places.split(size * several):
            # index_select is twice as quick as an index on a CPU.
            fetched = [mapped(lambda part, at=some: torch.index_select(part, 0, at), nest) for nest in self]  # type: ignore[misc]
            yield from Split(*fetched).batches(size)

    def seed(self, order: Generator) -> int | None:
        """None: an epoch draws no random numbers but the generator's."""
        return None

    def add_to(self, digest: Any) -> None:
        """Feed all bytes, shapes and types to a hash."""
        for tensor in tensors_in(self):
            digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.contiguous().cpu().numpy().data)


def numbers(nest: Any) -> int:
    """Return how many numbers there are in all tensors together."""
    return sum(tensor.numel() for tensor in tensors_in(nest))


def at_once(nest: Any) -> int:
    """Return how many examples like these a network is asked about at once: 4096, and fewer where they are large."""
    return max(1, min(4096, _ASKED_NUMBERS * length(nest) // max(1, numbers(nest))))


def parts(nest: Any, size: int) -> Iterator[Any]:
    """Yield a nest's tensors in parts of `size` along their first dimension."""
    if isinstance(nest, Tensor):
        return iter(nest.split(size))
    starts = range(0, length(nest), size)
    return (mapped(lambda part, at=start: part[at : at + size], nest) for start in starts)  # type: ignore[misc]


@dataclass(frozen=True)
class Loaded:
    """A torch data set whose examples are loaded when they are needed, by a DataLoader.

    Attributes:
        dataset: map-style, with `__getitem__` and `__len__`; or an IterableDataset with `__len__`, the number of
            examples of an epoch, which is told the epoch by its `set_epoch` if it has one.
        collate: makes (inputs, targets) of a list of examples; torch's default_collate unless given.
        workers: processes that load for a training; 0: the training process loads.
        device: where batches go.

    Raises:
        ValueError: if the data set does not know its length, or is empty.
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
        """Return the examples with these numbers; of an IterableDataset as many of the first ones."""
        with same_random_numbers(0):
            if self.iterable:
                found = next(self._batches(batch_size=len(indices)), None)
                if found is None:
                    raise ValueError(f"{type(self.dataset).__name__} gives no example, of {self.examples} that it has")
                return found
            return self._here((self.collate or default_collate)([self.dataset[i] for i in indices.tolist()]))

    def first(self, count: int) -> Split:
        return self.at(torch.arange(min(count, self.examples)))

    def to(self, device: str | torch.device) -> Loaded:
        return replace(self, device=device)

    def batches(self, size: int) -> Iterator[Split]:
        """Yield all examples in order."""
        return islice(self._batches(batch_size=size, workers=self.workers), -(-self.examples // size))

    def shuffled(self, size: int, order: Generator, *, count: int, epoch: int) -> Iterator[Split]:
        """Yield `count` examples in a fresh order; an IterableDataset's in its own, and no more batches than that."""
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
        """Yield batches of the examples with these numbers.

        Args:
            seed: of the random numbers that processes of a map-style data set draw.
        """
        return self._batches(batch_sampler=[some.tolist() for some in batches], workers=self.workers, seed=seed)

    def seed(self, order: Generator) -> int:
        """Draw the seed of the random numbers that the data set itself may draw in an epoch."""
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
            cause = str(error).strip().splitlines()[-1]  # below the traceback, which torch puts into the message
            raise RuntimeError(f"a process that loads data failed: {cause}") from error

    def _here(self, batch: Any) -> Split:
        """Return a batch as inputs and targets, on the device."""
        if not isinstance(batch, Sequence) or len(batch) != 2:
            raise ValueError(
                f"a batch of {type(self.dataset).__name__} is a {type(batch).__name__}: give Data(collate=...) that "
                "makes (inputs, targets) of a list of examples"
            )
        pair = Split(*(dict(part) if isinstance(part, Mapping) else part for part in batch))
        return mapped(lambda part: part.to(self.device, non_blocking=True), pair)

    def add_to(self, digest: Any) -> None:
        """Feed length and some examples, from all over the set, to a hash: to read all may take hours."""
        digest.update(f"{type(self.dataset).__name__}{self.examples}".encode())
        self.at(spread_over(self.examples, _HASHED)).add_to(digest)


def is_data_set(value: Any) -> bool:
    """Return whether this is a torch data set, or an object that behaves like a map-style one."""
    plain = isinstance(value, tuple | list | str | Mapping | Tensor | np.ndarray)
    return isinstance(value, Dataset) or (hasattr(value, "__getitem__") and hasattr(value, "__len__") and not plain)


def spread_over(examples: int, count: int) -> Tensor:
    """Return the numbers of up to `count` examples from all over a set, which may be sorted by class."""
    return torch.linspace(0, examples - 1, min(count, examples)).round().long()
