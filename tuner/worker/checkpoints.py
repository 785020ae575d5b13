"""Checkpoints of running trials: tensors and JSON in one safetensors file, written whole or not at all, never code.

A file's name ends in the SHA-256 of its bytes, so one that was cut short or has flipped bits is noticed and passed
over: the one before it is used, or the trial starts anew. Two are kept for each running trial, none for ended ones.
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
SHARE = 0.01  # of a trial's time that checkpoints may take: where writing is slow there are fewer
KEPT = 2  # checkpoints of a running trial: the last, and the one before it should the last be damaged
EVERY_VARIABLE = "TUNE_SPARSITY_CHECKPOINT_SECONDS"  # in the place of EVERY
_STATE = "state"
_NAME = re.compile(r"t(\d+)-(\d+)-([0-9a-f]{64})\.safetensors")


class Damaged(Exception):
    """A checkpoint is not what was written, or not of this trial."""


def pack(state: Any) -> tuple[dict[str, Tensor], str]:
    """Return a state as tensors, copied to the CPU, and JSON that names them.

    Args:
        state: of dicts, lists, tuples, tensors, numbers, text and None.

    Raises:
        TypeError: if there is anything else in it.
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
    if isinstance(value, dict):  # as pairs: JSON has no numbers as keys
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
    """Writes a checkpoint of trial `number` after `epoch` epochs; only the last KEPT stay. Returns the file's name.
    Raises OSError."""
    tensors, text = packed
    content = save(tensors, {_STATE: text})
    name = f"t{number:04d}-{epoch}-{hashlib.sha256(content).hexdigest()}.safetensors"
    place.write(name, content)
    for _, old in sorted(_of(place, number), reverse=True)[KEPT:]:
        place.remove(old)
    return name


def read(place: Place, name: str) -> Any:
    """Return a checkpoint's state. Raises Damaged, or OSError."""
    match, content = _NAME.fullmatch(name), place.read(name)
    if match is None or hashlib.sha256(content).hexdigest() != match[3]:
        raise Damaged(f"{name} is not what was written")
    try:
        tensors = load(content)  # checks the header, which is read once more for the text in it
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return _decoded(json.loads(header["__metadata__"][_STATE]), tensors)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:  # whole, and yet no checkpoint of ours
        raise Damaged(f"{name} is no checkpoint") from error


def newest(place: Place, number: int) -> Iterator[Any]:
    """Yield the states of trial `number`'s sound checkpoints, the newest first. Damaged ones are removed."""
    for _, name in sorted(_of(place, number), reverse=True):
        try:
            yield read(place, name)
        except Damaged:
            place.remove(name)
        except FileNotFoundError:
            continue


def sweep(place: Place, running: Collection[int]) -> None:
    """Removes all checkpoints but those of the trials that run.

    Args:
        running: looked at after the files are, so that another thread may add to it meanwhile.
    """
    for name in place.names():
        match = _NAME.fullmatch(name)
        if name.endswith(".safetensors") and (match is None or int(match[1]) not in running):
            place.remove(name)


def _of(place: Place, number: int) -> list[tuple[int, str]]:
    """(epoch, name) of the trial's checkpoints."""
    found = ((_NAME.fullmatch(name), name) for name in place.names())
    return [(int(match[2]), name) for match, name in found if match is not None and int(match[1]) == number]


class Writer:
    """Writes checkpoints in a thread of its own, one at a time and as seldom as EVERY and SHARE say.

    Args:
        place: of checkpoints, which is there; in an object store, one that cannot be written now is left out.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._every = float(os.environ.get(EVERY_VARIABLE, EVERY))
        # One thread for all: new ones would each be given a part of the process's memory, and leave it grown behind.
        self._executor = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None
        self._error: OSError | None = None
        self._next = time.monotonic() + self._every

    def begin(self) -> None:
        """Another trial begins: nothing of the one before is being written any more."""
        self._join()
        self._error, self._next = None, time.monotonic() + self._every

    @property
    def due(self) -> bool:
        """Return whether it is time for a checkpoint. Raises OSError if the last one could not be written."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return time.monotonic() >= self._next and (self._written is None or self._written.done())

    def write(self, number: int, epoch: int, state: Any) -> None:
        """Copies the state and has it written while training goes on. What cannot be kept is not."""
        start = time.monotonic()
        try:
            packed = pack(state)
        except TypeError:  # in a network of the user's: its trials start anew
            self._next = float("inf")
            return
        self._next = float("inf")  # until it is known how long it takes
        self._written = self._executor.submit(self._write, start, number, epoch, packed)

    def finish(self) -> None:
        """Waits for the last write. Raises OSError."""
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
        except StoreError:  # it may answer again: the study goes on, with an older checkpoint
            pass
        except OSError as error:
            self._error = error
        except (SafetensorError, KeyError, ValueError):  # a type of number that safetensors does not know
            return
        now = time.monotonic()
        self._next = now + max(self._every, (now - start) / SHARE)
