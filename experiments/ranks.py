"""Train one network with several processes, called ranks. Each rank computes the gradient of a part of every batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn

from tune_sparsity.experiments.examples import Loaded, Split, length, mapped
from tune_sparsity.experiments.random_numbers import same_random_numbers
from tune_sparsity.sparsity.gradients import make_gradients_dense

TIMEOUT = timedelta(minutes=5)  # after which a rank gives up waiting for another rank


class Disconnected(RuntimeError):
    """Report that another rank (a process that trains the same network) has ended or disconnected."""


class RanksDiffer(RuntimeError):
    """Report that the ranks, the processes that train one network together, have different weights or masks."""


class Share(NamedTuple):
    """Holds the part of a batch on which one rank (one of several processes) trains.

    Attributes:
        batch: the examples of this part.
        whole: the number of examples in the whole batch.
        parts: the number by which this rank divides its loss, so that the sum over the ranks is the loss of the whole
            batch. It is `whole` divided by the number of examples in `batch`. If a batch is too small to be divided,
            every rank trains on the whole batch, and this number is the number of ranks.
    """

    batch: Split
    whole: int
    parts: float


class OneRank:
    """Implements the methods of `Ranks` for a training in one process, where no communication is needed."""

    def shares(self, data: Split | Loaded, size: int, order: Generator, *, count: int, epoch: int) -> Iterator[Share]:
        """Yield this rank's part of each batch of an epoch. The arguments are those of `Split.shuffled`."""
        for batch in data.shuffled(size, order, count=count, epoch=epoch):
            yield Share(batch, length(batch.x), 1)

    def own_noise(self) -> AbstractContextManager[None]:
        """Return a context manager. In its block, each rank draws other global random numbers than the other ranks, for
        example for dropout."""
        return nullcontext()

    def own_generator(self, order: Generator) -> Generator:
        """Return this rank's random generator for the augmentation of an epoch. A training in one process uses `order`,
        the generator that shuffles the examples."""
        return order

    def add_gradients(self, params: Iterable[Tensor]) -> None:
        """Replace each gradient by its sum over the ranks. If a rank has no gradient of a parameter, this rank adds 0.
        If no rank has a gradient of the parameter, the parameter stays without a gradient."""

    def total(self, *values: float) -> list[float]:
        """Return the sum of each value over the ranks."""
        return list(values)

    def share_buffers(self, model: nn.Module) -> None:
        """Copy the network's buffers, for example running statistics, from the first rank to all ranks."""

    def check_same(self, tensors: Iterable[Tensor], what: str) -> None:
        """Raise RanksDiffer if the tensors differ between ranks in at least one byte.

        Args:
            tensors: the tensors of this rank.
            what: the name of the tensors in the message.
        """


ONE_RANK = OneRank()


class Ranks(OneRank):
    """Connects this process with the other processes that train the same network. These processes are called ranks.

    All ranks must begin with the same seed. They then have equal networks and the same order of the examples. Each rank
    computes the gradient of its part of a batch. The sum of these gradients is the gradient of the whole batch, and all
    ranks take the same step with it. The result equals that of a training in one process, with two exceptions: batch
    normalisation uses the statistics of a rank's part of the batch, and each rank draws its own random numbers for
    dropout and augmentation.

    Every method that communicates raises Disconnected if another rank has ended or disconnected.

    Args:
        rank: the number of this process, from 0.
        size: the number of ranks, at least 2.
        store: a new torch.distributed store, through which the ranks connect.
        device: "cpu" or "cuda". With "cuda" each rank must have a GPU of its own.
    """

    def __init__(self, rank: int, size: int, store: dist.Store, device: str = "cpu") -> None:
        self.rank, self.size, self._device = rank, size, device
        backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
        self._do(dist.init_process_group, backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        self.connected = True

    def leave(self) -> None:
        """Disconnect from the other ranks. A rank that waits for this rank then raises Disconnected."""
        if self.connected:
            self.connected = False
            dist.destroy_process_group()

    def shares(self, data: Split | Loaded, size: int, order: Generator, *, count: int, epoch: int) -> Iterator[Share]:
        if isinstance(data, Loaded) and not data.iterable:
            batches = torch.randperm(data.examples, generator=order)[:count].split(size)
            own = [some[self._place(len(some))] for some in batches]
            loaded = data.chosen(own, data.seed(order) + self.rank)
            for batch, some in zip(loaded, batches, strict=True):
                yield Share(batch, len(some), self._parts(len(some)))
            return
        # All ranks must get the same batches. A data set may draw random numbers. In a process that loads data, these
        # are the same on every rank, but not in the rank's own process. So at least one process loads data.
        if isinstance(data, Loaded):
            data = replace(data, workers=max(1, data.workers))
        for batch in data.shuffled(size, order, count=count, epoch=epoch):
            whole = length(batch.x)
            place = self._place(whole)
            yield Share(mapped(lambda part, at=place: part[at], batch), whole, self._parts(whole))  # type: ignore[misc]

    def _place(self, whole: int) -> slice:
        """Return the part of a batch that this rank trains on, as a slice. The part has at least two examples, because
        batch normalisation cannot train on one. If the batch is too small, every rank trains on the whole batch."""
        if whole < 2 * self.size:
            return slice(0, whole)
        return slice(whole * self.rank // self.size, whole * (self.rank + 1) // self.size)

    def _parts(self, whole: int) -> float:
        place = self._place(whole)
        return self.size if whole < 2 * self.size else whole / (place.stop - place.start)

    def own_noise(self) -> AbstractContextManager[None]:
        return same_random_numbers(int(torch.randint(2**31, ())) + self.rank)

    def own_generator(self, order: Generator) -> Generator:
        return Generator().manual_seed(int(torch.randint(2**31, (), generator=order)) + self.rank)

    def add_gradients(self, params: Iterable[Tensor]) -> None:
        trained = [param for param in params if param.requires_grad]
        make_gradients_dense(trained)
        for dtype in dict.fromkeys(param.dtype for param in trained):
            self._add([param for param in trained if param.dtype == dtype])

    @torch.no_grad()
    def _add(self, params: list[Tensor]) -> None:
        """Replace the gradients of parameters, all of one type, by their sums over the ranks. One all_reduce adds the
        gradients, and counts the ranks that have a gradient of each parameter."""
        grads = [torch.zeros_like(param) if param.grad is None else param.grad for param in params]
        have = torch.tensor([param.grad is not None for param in params]).to(grads[0])
        flat = torch.cat([*(grad.reshape(-1) for grad in grads), have])
        self._do(dist.all_reduce, flat)
        *sums, have = flat.split([*(grad.numel() for grad in grads), len(grads)])
        for param, grad, total, ranks in zip(params, grads, sums, have.tolist(), strict=True):
            if ranks:
                param.grad = grad.copy_(total.view_as(grad))

    def total(self, *values: float) -> list[float]:
        sums = torch.tensor(values, dtype=torch.float64, device=self._device)
        self._do(dist.all_reduce, sums)
        return sums.tolist()

    def share_buffers(self, model: nn.Module) -> None:
        for buffer in model.buffers():
            self._do(dist.broadcast, buffer, 0)

    def check_same(self, tensors: Iterable[Tensor], what: str) -> None:
        digest = hashlib.blake2b(digest_size=8)
        for tensor in tensors:
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
        own = torch.tensor([int.from_bytes(digest.digest(), signed=True)], device=self._device)
        found = [torch.empty_like(own) for _ in range(self.size)]
        self._do(dist.all_gather, found, own)
        if len({int(one) for one in found}) > 1:
            raise RanksDiffer(f"{what} differ between the {self.size} workers of the trial")

    def _do(self, call: Callable[..., Any], *args: Any, **options: Any) -> None:
        try:
            call(*args, **options)
        except RuntimeError as error:
            raise Disconnected(f"a worker of the trial has lost contact with the others: {error}") from error
