"""Writes and reads checkpoints of running trials. A checkpoint is a safetensors file with tensors and JSON, and without
code.

A file appears as a whole or not at all. Its name ends in the SHA-256 hash of its content, so damage is noticed. If the
newest checkpoint is damaged, the trial continues from the previous one, or starts again. A running trial has at most
two checkpoints, and an ended trial has none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tune_sparsity.tuner.storage.places import Place
from tune_sparsity.tuner.storage.s3 import StoreError

EVERY = 5.0  # seconds between two checkpoints of a trial, at least
SHARE = 0.01  # the largest share of a trial's time for checkpoints: slow writes make them rarer
KEPT = 2  # checkpoints of a running trial: the last one, and the one before it in case the last one is damaged
EVERY_VARIABLE = "TUNE_SPARSITY_CHECKPOINT_SECONDS"  # this environment variable overrides EVERY
_STATE = "state"
_NAME = re.compile(r"t(\d+)-(\d+)-([0-9a-f]{64})\.safetensors")


class Damaged(Exception):
    """Reports that a file is not a valid checkpoint, or that its content has changed since it was written."""


def pack(state: Any) -> tuple[dict[str, Tensor], str]:
    """Convert a trial's state into two parts. The first part is a dict from names to copies of the tensors on the CPU.
    The second part is the state as a JSON text, with these names in place of the tensors.

    Args:
        state: a nested structure of dicts, lists, tuples, tensors, numbers, strings and None.

    Raises:
        TypeError: if the state contains any other type.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, json.dumps(_encoded(state, tensors))


def _encoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A copy, because training goes on while the file is written.
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, dict):  # as pairs, because keys in JSON cannot be numbers
        return {"dict": [[_encoded(key, tensors), _encoded(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encoded(item, tensors) for item in value]}
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def _decoded(value: Any, tensors: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {_decoded(key, tensors): _decoded(item, tensors) for key, item in content}
    items = [_decoded(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def write(place: Place, number: int, epoch: int, packed: tuple[dict[str, Tensor], str]) -> str:
    """Write a checkpoint of a trial. Keep the newest of the older checkpoints of this trial, and remove the others.
    Return the file's name.

    Args:
        place: the folder of checkpoints.
        number: the number of the trial.
        epoch: the number of epochs that the trial has trained.
        packed: the result of `pack`.

    Raises:
        OSError: if the file cannot be written.
    """
    tensors, text = packed
    content = save(tensors, {_STATE: text})
    name = f"t{number:04d}-{epoch}-{hashlib.sha256(content).hexdigest()}.safetensors"
    place.write(name, content)
    for _, old in sorted(_of(place, number), reverse=True)[KEPT:]:
        place.remove(old)
    return name


def read(place: Place, name: str) -> Any:
    """Return the state in a checkpoint.

    Args:
        place: the folder of checkpoints.
        name: the file's name.

    Raises:
        Damaged: if the file is not a valid checkpoint, or if its content has changed.
        OSError: if the file cannot be read.
    """
    match, content = _NAME.fullmatch(name), place.read(name)
    if match is None or hashlib.sha256(content).hexdigest() != match[3]:
        raise Damaged(f"{name} has changed since it was written")
    try:
        tensors = load(content)  # checks the header, but does not return its metadata
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return _decoded(json.loads(header["__metadata__"][_STATE]), tensors)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:  # the bytes are unchanged, but not a checkpoint
        raise Damaged(f"{name} is no checkpoint") from error


def newest(place: Place, number: int) -> Iterator[Any]:
    """Yield the states in the valid checkpoints of trial `number`, the newest first. Damaged checkpoints are
    removed."""
    for _, name in sorted(_of(place, number), reverse=True):
        try:
            yield read(place, name)
        except Damaged:
            place.remove(name)
        except FileNotFoundError:
            continue


def sweep(place: Place, running: Collection[int]) -> None:
    """Remove all checkpoints except those of running trials.

    Args:
        place: the folder of checkpoints.
        running: the numbers of the running trials. Another thread may add a trial to this collection during the call.
            The checkpoints of this trial stay: this function lists the files before it reads the collection.
    """
    for name in place.names():
        match = _NAME.fullmatch(name)
        if name.endswith(".safetensors") and (match is None or int(match[1]) not in running):
            place.remove(name)


def _of(place: Place, number: int) -> list[tuple[int, str]]:
    """Return (epoch, file name) of each checkpoint of trial `number`."""
    found = ((_NAME.fullmatch(name), name) for name in place.names())
    return [(int(match[2]), name) for match, name in found if match is not None and int(match[1]) == number]


class Writer:
    """Writes the checkpoints of a worker's trials in a thread, one at a time. There are at least 5 seconds (the
    constant EVERY) between two checkpoints of a trial. If a checkpoint takes long to write, this pause is longer, so
    that checkpoints take at most 1 % of the time (the constant SHARE).

    Args:
        place: the place for checkpoints: a folder that exists, or a prefix in an object store. If an object store does
            not answer, the checkpoint is skipped.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._every = float(os.environ.get(EVERY_VARIABLE, EVERY))
        # One thread for all trials: malloc gives each new thread its own memory, which the process would keep.
        self._executor = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None
        self._error: OSError | None = None
        self._next = time.monotonic() + self._every

    def begin(self) -> None:
        """Prepare for the next trial: wait until the previous trial's newest checkpoint is written, and forget the
        errors of the previous trial."""
        self._join()
        self._error, self._next = None, time.monotonic() + self._every

    @property
    def due(self) -> bool:
        """Return whether it is time to write a checkpoint.

        Raises:
            OSError: if the last checkpoint could not be written.
        """
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return time.monotonic() >= self._next and (self._written is None or self._written.done())

    def write(self, number: int, epoch: int, state: Any) -> None:
        """Copy the state, and write it as a checkpoint in the thread of this Writer while training continues.

        If the state contains a type that `pack` does not know, the trial gets no checkpoints.

        Args:
            number: the number of the trial.
            epoch: the number of epochs that the trial has trained.
            state: the state, as in `pack`.
        """
        start = time.monotonic()
        try:
            packed = pack(state)
        except TypeError:  # the user's network has state of another type: a lost trial starts at its first epoch
            self._next = float("inf")
            return
        self._next = float("inf")  # the thread sets it when the duration of the write is known
        self._written = self._executor.submit(self._write, start, number, epoch, packed)

    def finish(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            OSError: if a checkpoint could not be written.
        """
        self._join()
        if self._error is not None:
            raise self._error

    def _join(self) -> None:
        if self._written is not None:
            wait([self._written])
            self._written = None

    def _write(self, start: float, number: int, epoch: int, packed: tuple[dict[str, Tensor], str]) -> None:
        try:
            write(self._place, number, epoch, packed)
        except StoreError:  # the object store may answer again later: the study goes on with an older checkpoint
            pass
        except OSError as error:
            self._error = error
        except (SafetensorError, KeyError, ValueError):  # a dtype that safetensors does not know
            return
        now = time.monotonic()
        self._next = now + max(self._every, (now - start) / SHARE)
