"""The processes that train one network together, each on its part of every batch: a training's ranks."""

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

TIMEOUT = timedelta(minutes=5)  # that a rank waits for another one, whose machine may be gone


class Disconnected(RuntimeError):
    """Another rank has ended, or has left the training because of an error of its own."""


class RanksDiffer(RuntimeError):
    """The ranks do not hold the same network any more."""


class Share(NamedTuple):
    """Holds what a rank trains on of a batch.

    Attributes:
        batch: the examples.
        whole: how many examples the whole batch has.
        parts: how many shares of this size the whole batch has, which need not be a whole number.
    """

    batch: Split
    whole: int
    parts: float


class OneRank:
    """The only process of a training. It does nothing of what ranks do together."""

    def shares(self, data: Split | Loaded, size: int, order: Generator, *, count: int, epoch: int) -> Iterator[Share]:
        """Yield this rank's share of each batch of an epoch. The arguments are those of `shuffled`."""
        for batch in data.shuffled(size, order, count=count, epoch=epoch):
            yield Share(batch, length(batch.x), 1)

    def own_noise(self) -> AbstractContextManager[None]:
        """Let each rank draw its own global random numbers within the block, as for dropout."""
        return nullcontext()

    def own_generator(self, order: Generator) -> Generator:
        """Return the generator for this rank's augmentation in an epoch, which may be `order` itself."""
        return order

    def add_gradients(self, params: Iterable[Tensor]) -> None:
        """Replace each gradient by its sum over the ranks. What has a gradient on one rank has one on all."""

    def total(self, *values: float) -> list[float]:
        """Return the sum of each value over the ranks."""
        return list(values)

    def share_buffers(self, model: nn.Module) -> None:
        """Give all ranks the buffers of the first one, as the running statistics of batch normalisation."""

    def check_same(self, tensors: Iterable[Tensor], what: str) -> None:
        """Raise RanksDiffer unless the tensors have the same bytes on all ranks.

        Args:
            what: the tensors' name in the message.
        """


ONE_RANK = OneRank()


class Ranks(OneRank):
    """One of several processes that train together.

    All ranks must begin with the same seed. Each then holds the same network, and draws the same order of examples. It
    trains on its share of each batch, and all make the same step on the gradient of the whole batch. What one process
    would train is trained, but for what depends on the other examples of a batch (batch normalisation) or is drawn at
    random for each example (dropout, augmentation).

    Every method raises Disconnected if another rank has ended or left.

    Args:
        rank: this process's number, from 0.
        size: how many ranks there are, at least 2.
        store: where the ranks find each other. A store serves once.
        device: "cpu", or "cuda": then each rank must have a GPU of its own.
    """

    def __init__(self, rank: int, size: int, store: dist.Store, device: str = "cpu") -> None:
        self.rank, self.size, self._device = rank, size, device
        backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
        self._do(dist.init_process_group, backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        self.connected = True

    def leave(self) -> None:
        """Disconnect. A rank that waits for this one then raises Disconnected."""
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
        if isinstance(data, Loaded):  # in a process that draws the same random numbers on every rank
            data = replace(data, workers=max(1, data.workers))
        for batch in data.shuffled(size, order, count=count, epoch=epoch):
            whole = length(batch.x)
            place = self._place(whole)
            yield Share(mapped(lambda part, at=place: part[at], batch), whole, self._parts(whole))  # type: ignore[misc]

    def _place(self, whole: int) -> slice:
        """Return where in a batch this rank's share is. A batch too small to be divided is every rank's: each has at
        least two examples, without which batch normalisation cannot train."""
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
        """Do so for parameters of one type: their gradients are added as one tensor, and with them how many ranks have
        each."""
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
            raise Disconnected(f"a worker of the trial has lost the others: {error}") from error
