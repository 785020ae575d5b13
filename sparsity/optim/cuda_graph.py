"""Record operations on a GPU once, as a CUDA graph, and replay them.

A step of a small network consists of hundreds of kernels that take a few microseconds each. The CPU needs longer to
start them one by one than the GPU needs to run them. The replay of a recording starts all of them at once. A replay
runs the same kernels on the same memory addresses. A number that changes from step to step must therefore be stored in
the memory of the GPU, where the kernels read its new value.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from tune_sparsity.sparsity.optim.lpsgd import LpSGD

_MOVING = ("lr", "gain_lr")  # settings of an optimizer's groups that schedules change
_KEPT = ("momentum", "nesterov", "weight_decay", "gain", "orientation", "dampening", "maximize")  # constant settings
_BEFORE = 2  # calls before a recording, in which libraries do preparations that a recording must not contain


def can_be_recorded(params: Iterable[Tensor]) -> bool:
    """Return whether work on these parameters can be recorded. They must all be on torch's current GPU, because a
    recording does not contain work on other devices."""
    devices = set[torch.device]()
    for param in params:
        if not param.is_cuda:  # a quick answer for CPUs, because this function is called in every step
            return False
        devices.add(param.device)
    return len(devices) == 1 and devices.pop().index == torch.cuda.current_device()


def _side() -> torch.cuda.Stream:
    return _side_of(torch.cuda.current_device())


@cache
def _side_of(device: int) -> torch.cuda.Stream:
    """Return the stream for all recordings on a device. All recordings share one stream, because libraries keep memory
    for every stream that they have used."""
    return torch.cuda.Stream(device)


def _free_generator() -> None:
    """Release the device's random generator after a recording that failed. The generator belongs to the failed
    recording until another recording succeeds."""
    with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=_side()):
        torch.zeros(1, device="cuda")


class Recorded:
    """Runs a function that does work on a GPU, such as a step. The first calls run the function normally, one call
    records its work, and later calls replay the recording. Each call also gets a key: everything that the work depends
    on, except numbers in the memory of the GPU. If the key changes, the work is recorded again. Work that cannot be
    recorded is run normally in every call."""

    def __init__(self) -> None:
        self.key: Hashable = None
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Tensor | None = None
        self._refused = False

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy. A copy has other memory, and therefore begins without a recording."""
        return {**vars(self), "key": None, "_calls": 0, "_graph": None, "_result": None}

    @property
    def is_made(self) -> bool:
        return self._graph is not None

    def forget(self) -> None:
        """Delete the recording and the memory of its intermediate results."""
        self.key, self._calls, self._graph, self._result = None, 0, None, None

    def __call__(self, work: Callable[[], Tensor | None], key: Hashable) -> Tensor | None:
        """Run `work()` or replay its recording, and return the result. The next call overwrites the result."""
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
        except RuntimeError:  # an operation waits for the GPU
            self._refused = True
            _free_generator()
            torch.cuda.set_stream(here)  # torch restores the stream only after a complete recording
            return self._aside(work)
        self._graph, self._result = graph, result
        graph.replay()
        return result

    def _aside(self, work: Callable[[], Tensor | None]) -> Tensor | None:
        """Run `work()` on the stream for recordings, without a recording, and return the result. Libraries then make
        their preparations for this stream before the recording."""
        side, here = _side(), torch.cuda.current_stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            result = work()
        here.wait_stream(side)
        return result


class DeviceScalars:
    """Stores settings of an optimizer's groups, such as the learning rate, in the memory of a device. Settings that
    change from step to step must be in this memory, because a replay does not read the groups themselves.

    Args:
        groups: the optimizer's groups.
        names: the names of the settings. A group need not have all of them.
        device, dtype: the device and the type of the stored settings.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], names: Iterable[str], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.groups, self._count = groups, len(groups)
        pairs = [(group, name) for name in names for group in groups if group.get(name) is not None]
        self._numbers = [(*pair, torch.zeros((), device=device, dtype=dtype)) for pair in pairs]
        self._values: list[float | None] = [None] * len(pairs)

    def belongs_to(self, groups: Sequence[dict[str, Any]]) -> bool:
        """Return whether this object was made for these groups. After an optimizer has loaded a state, it has new
        groups and needs a new object."""
        return self.groups is groups and self._count == len(groups)

    def follow(self) -> None:
        """Copy the current settings of the groups to the device."""
        for index, (group, name, number) in enumerate(self._numbers):
            if self._values[index] != group[name]:
                number.fill_(group[name])
                self._values[index] = group[name]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Return a context manager. In its `with` block, the optimizer's parameter groups contain tensors on the
        device instead of Python numbers, for example as learning rates."""
        plain = [(group, name, group[name]) for group, name, _ in self._numbers]
        try:
            for group, name, number in self._numbers:
                group[name] = number
            yield
        finally:
            for group, name, value in plain:
                group[name] = value


class RecordedSteps:
    """Records and replays the optimizer's steps of a training on a GPU. `RecordedPasses` records the passes that
    compute the gradients.

    Args:
        optimizer: any optimizer. The steps of LpSGD are recorded if no group uses AdamW, and the steps of torch's SGD
            if all groups use `fused`. The steps of other optimizers are not recorded, because they would not read the
            learning rate from the memory of the device.
        p_moves: whether the exponents of LpSGD's groups change from step to step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, p_moves: bool) -> None:
        self._optimizer, self._p_moves, self._recorded = optimizer, p_moves, Recorded()
        self._copies: list[Tensor] = []
        self._moving: DeviceScalars | None = None

    def __call__(self, learn: Callable[[], None], fixed: bool) -> bool:
        """Run `learn()` or replay its recording, if a recording is possible. The recording uses copies of the
        gradients, because the gradients may have a new address in every step.

        Args:
            learn: makes an optimizer step with the current gradients.
            fixed: whether the masks are fixed. `learn` does other work if they are.

        Returns:
            Whether the step was made. It is not made if it cannot be recorded.
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
            # LpSGD needs learning rates in double precision. A rate on the device is then as exact as a Python number.
            dtype = torch.float64 if isinstance(self._optimizer, LpSGD) else torch.float32
            names = (*_MOVING, "p") if self._p_moves else _MOVING
            self._moving = DeviceScalars(groups, names, groups[0]["params"][0].device, dtype)
        return self._moving

    def _state(self) -> tuple[Hashable, ...]:
        """Return everything that a step depends on, except numbers in the memory of the device."""
        kept = _KEPT if self._p_moves else (*_KEPT, "p")
        return (
            getattr(self._optimizer, "arrangement", 0),
            tuple(tuple(group.get(name) for name in kept) for group in self._optimizer.param_groups),
            tuple(param.data_ptr() for param in self._params()),
        )


class RecordedPasses:
    """Records and replays the forward and backward passes of a training on a GPU.

    Args:
        params: the parameters of the network.
    """

    def __init__(self, params: Iterable[Tensor]) -> None:
        self._params, self._recorded = list(params), Recorded()
        self._grads: list[Tensor | None] = []

    def __call__(self, passes: Callable[[], Tensor]) -> Tensor:
        """Run `passes()` or replay its recording. `passes` must drop all gradients, compute new ones and return the
        loss. It must do the same operations with the same memory at every call.

        Returns:
            The loss, in memory that the next call may overwrite.
        """
        replayed = self._recorded.is_made
        loss = self._recorded(passes, "passes")
        if replayed:
            _give(self._params, self._grads)  # other code, such as passes on a smaller batch, may have dropped them
        elif self._recorded.is_made:
            self._grads = [param.grad for param in self._params]
        assert loss is not None
        return loss


def _give(params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
