"""Work on a GPU that is recorded once and replayed from then on: a CUDA graph.

A step of a small network is hundreds of kernels of a few microseconds each, and to start them one by one takes a
processor longer than they take the GPU. A recording starts all of them at once. What it has of the program is the
kernels and the addresses of their memory; numbers that change from step to step have to stand in memory of the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from tune_sparsity.sparsity.optim.lpsgd import LpSGD

_MOVING = ("lr", "gain_lr")  # what the schedules change in an optimizer's groups, and what nothing changes:
_KEPT = ("momentum", "nesterov", "weight_decay", "gain", "orientation", "dampening", "maximize")
_BEFORE = 2  # calls that are not recorded: libraries make ready in them what may not be made within a recording


def can_be_recorded(params: Iterable[Tensor]) -> bool:
    """Return whether work on these parameters can be: they are all on the GPU that is torch's current one. What is done
    on another is no part of a recording."""
    devices = {param.device for param in params}
    return (
        len(devices) == 1 and (device := devices.pop()).type == "cuda" and device.index == torch.cuda.current_device()
    )


def _side() -> torch.cuda.Stream:
    return _side_of(torch.cuda.current_device())


@cache
def _side_of(device: int) -> torch.cuda.Stream:
    """On which everything is recorded: libraries keep memory for every stream that they have ever worked on."""
    return torch.cuda.Stream(device)


def _free_generator() -> None:
    """After a recording that broke off: the device's random numbers are for that one until another is whole."""
    with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=_side()):
        torch.zeros(1, device="cuda")


class Recorded:
    """Work that is done as it is at its first calls, then recorded, and from then on replayed, for as long as the key
    is the same. The key has to tell whatever the work depends on but the contents of its memory."""

    def __init__(self) -> None:
        self.key: Hashable = None
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Tensor | None = None
        self._refused = False

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, which has other memory: nothing is recorded in it."""
        return {**vars(self), "key": None, "_calls": 0, "_graph": None, "_result": None}

    @property
    def is_made(self) -> bool:
        return self._graph is not None

    def forget(self) -> None:
        """Gives the recording up, and the memory of what lay between its input and its result."""
        self.key, self._calls, self._graph, self._result = None, 0, None, None

    def __call__(self, work: Callable[[], Tensor | None], key: Hashable) -> Tensor | None:
        """Does the work; its result, which the next call overwrites."""
        if key != self.key:
            self.forget()
            self.key = key
        self._calls += 1
        if self._graph is not None:
            self._graph.replay()
        elif self._calls <= _BEFORE or self._refused:
            return self._aside(work)
        else:
            return self._record(work)
        return self._result

    def _record(self, work: Callable[[], Tensor | None]) -> Tensor | None:
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, stream=_side(), capture_error_mode="thread_local"):
                result = work()
        except RuntimeError:  # something in it waits for the GPU
            self._refused = True
            _free_generator()
            torch.cuda.set_stream(here)  # which torch does only where a recording is whole
            return self._aside(work)
        self._graph, self._result = graph, result
        graph.replay()
        return result

    def _aside(self, work: Callable[[], Tensor | None]) -> Tensor | None:
        """The work on the stream on which it is recorded, where libraries are made ready for it."""
        side, here = _side(), torch.cuda.current_stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            result = work()
        here.wait_stream(side)
        return result


class DeviceScalars:
    """Settings of an optimizer's groups that change from step to step, as numbers in the device's memory.

    Args:
        groups: the optimizer's.
        names: of the settings; a group may lack some.
        device, dtype: of the numbers.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], names: Iterable[str], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.groups, self._count = groups, len(groups)
        pairs = [(group, name) for name in names for group in groups if group.get(name) is not None]
        self._numbers = [(*pair, torch.zeros((), device=device, dtype=dtype)) for pair in pairs]
        self._values: list[float | None] = [None] * len(pairs)

    def belongs_to(self, groups: Sequence[dict[str, Any]]) -> bool:
        """Return whether these are the groups: an optimizer whose state is loaded has new ones."""
        return self.groups is groups and self._count == len(groups)

    def follow(self) -> None:
        """Brings the numbers to what the groups say now."""
        for index, (group, name, number) in enumerate(self._numbers):
            if self._values[index] != group[name]:
                number.fill_(group[name])
                self._values[index] = group[name]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within it the groups hold the numbers in the device's memory."""
        plain = [(group, name, group[name]) for group, name, _ in self._numbers]
        try:
            for group, name, number in self._numbers:
                group[name] = number
            yield
        finally:
            for group, name, value in plain:
                group[name] = value


class RecordedSteps:
    """The steps of a training on a GPU, recorded apart from what gives the gradients.

    Args:
        optimizer: LpSGD, or SGD that torch makes a kernel of ("fused"): others do not take the learning rate from the
            device's memory, and are not recorded.
        p_moves: whether the exponents of LpSGD's groups change from step to step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, p_moves: bool) -> None:
        self._optimizer, self._p_moves, self._recorded = optimizer, p_moves, Recorded()
        self._copies: list[Tensor] = []
        self._moving: DeviceScalars | None = None

    def __call__(self, learn: Callable[[], None], fixed: bool) -> bool:
        """Does what `learn()` does with the gradients at hand, if that can be recorded. They may lie elsewhere at every
        step: it is recorded on copies of them.

        Args:
            fixed: whether the masks are: what there is to do depends on it.

        Returns:
            False if it cannot be recorded: nothing was done.
        """
        if not self._can_record():
            return False
        params = [param for param in self._params() if param.grad is not None]
        grads = [cast("Tensor", param.grad) for param in params]
        moving = self._moving_settings()
        key = (moving, fixed, *self._state(), tuple(map(id, params)))
        if key != self._recorded.key:
            self._copies = [torch.empty_like(grad) for grad in grads]
        torch._foreach_copy_(self._copies, grads)
        moving.follow()

        def work() -> None:
            _give(params, self._copies)
            try:
                learn()
            finally:
                _give(params, grads)

        with moving.in_use():
            self._recorded(work, key)
        return True

    def _params(self) -> list[Tensor]:
        return [param for group in self._optimizer.param_groups for param in group["params"]]

    def _can_record(self) -> bool:
        if not can_be_recorded(self._params()):
            return False
        if isinstance(self._optimizer, LpSGD):
            return not self._optimizer.hooked and not any(group["adamw"] for group in self._optimizer.param_groups)
        return isinstance(self._optimizer, torch.optim.SGD) and all(
            group.get("fused") for group in self._optimizer.param_groups
        )

    def _moving_settings(self) -> DeviceScalars:
        groups = self._optimizer.param_groups
        if self._moving is None or not self._moving.belongs_to(groups):
            # In double precision what LpSGD makes of a rate is no rounder than what it makes of a number.
            dtype = torch.float64 if isinstance(self._optimizer, LpSGD) else torch.float32
            names = (*_MOVING, "p") if self._p_moves else _MOVING
            self._moving = DeviceScalars(groups, names, groups[0]["params"][0].device, dtype)
        return self._moving

    def _state(self) -> tuple[Hashable, ...]:
        """Return everything that a step depends on besides numbers in the device's memory."""
        kept = _KEPT if self._p_moves else (*_KEPT, "p")
        return (
            getattr(self._optimizer, "arrangement", 0),
            tuple(tuple(group.get(name) for name in kept) for group in self._optimizer.param_groups),
            tuple(param.data_ptr() for param in self._params()),
        )


class RecordedPasses:
    """The passes of a training on a GPU, forward and backward, recorded.

    Args:
        params: of the network.
    """

    def __init__(self, params: Iterable[Tensor]) -> None:
        self._params, self._recorded = list(params), Recorded()
        self._grads: list[Tensor | None] = []

    def __call__(self, passes: Callable[[], Tensor]) -> Tensor:
        """Does what `passes()` does, which drops all gradients, puts new ones where they belong, and returns the loss.
        It has to do the same operations at every call, on the same memory.

        Returns:
            the loss, in memory that the next call may overwrite.
        """
        replayed = self._recorded.is_made
        loss = self._recorded(passes, "passes")
        if replayed:
            _give(self._params, self._grads)  # which others have dropped meanwhile, as passes on a smaller batch do
        elif self._recorded.is_made:
            self._grads = [param.grad for param in self._params]
        assert loss is not None
        return loss


def _give(params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
