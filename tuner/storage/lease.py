"""Claim a study in an object store with a lease, because an object store has no locks. The lease is an object in the
store. The driver (the process that runs the study) rewrites this object about every 10 seconds. The object contains the
token of its driver: a random text.

A second driver sees that the object changes, and refuses to start. If a driver finds the token of another driver in the
object, it ends its trials and sends no more files to the store. Two drivers can train at the same time only in one
case: the first driver cannot reach the store for more than 40 seconds (the constant TTL). A second driver may then
start. The first driver stops as soon as it reaches the store again.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.storage.s3 import S3Prefix

OWNER = ".owner.json"
MARK = ".owner"  # a file in the working folder with the token of the last driver that wrote there
BEAT = 10.0  # seconds between two renewals
TTL = 40.0  # seconds without a renewal after which the driver counts as dead
_LOOK = 2.0  # seconds between two checks whether another driver still renews its lease
_SETTLE = 1.0  # seconds between writing and reading: if several drivers write, all then read the token of the last one


class TakenOver(Exception):
    """An error: another driver has taken over the study. The message names the machine of the other driver."""


class Lease:
    """The claim of this process on a study in an object store.

    Args:
        study: the study's prefix in the store.
        folder: the folder in which this process works on the study.
    """

    def __init__(self, study: S3Prefix, folder: Path) -> None:
        self._study, self._folder = study, folder
        self._token, self._beat, self._next = secrets.token_hex(16), 0, 0.0

    def take(self) -> bool:
        """Claim the study for this process.

        Returns:
            True if the last driver worked in another folder. The store may then have newer files than this folder.

        Raises:
            UsageError: if another driver runs the study.
            OSError: if the store cannot be read or written.
        """
        before = self._read()
        if before is not None and not before.get("ended") and not _is_gone(before):
            self._wait_for(before)
        mark = self._folder / MARK
        here = mark.read_text() if mark.is_file() else ""
        self._write(ended=False)
        time.sleep(_SETTLE)
        now = self._read() or {}
        if now.get("token") != self._token:
            raise UsageError(_taken(self._study, now))
        return before is not None and here != before.get("token")

    def mark(self) -> None:
        """Write this driver's token into a file in the folder. A later driver compares the token in the folder with the
        token in the store. If they are equal, the folder has the study's newest files. Raise OSError if writing
        fails."""
        (self._folder / MARK).write_text(self._token)

    @property
    def due(self) -> bool:
        """Return whether it is time to renew the claim."""
        return time.monotonic() >= self._next

    def renew(self) -> None:
        """Check that no other driver has taken over the study. Renew the claim if a renewal is due.

        Raises:
            TakenOver: if another driver has taken over the study.
            OSError: if the store cannot be read or written.
        """
        now = self._read() or {}
        if now.get("token", self._token) != self._token:
            raise TakenOver(_taken(self._study, now))
        if self.due:
            self._write(ended=False)

    def release(self) -> None:
        """End the claim. Raise OSError if the store cannot be written."""
        self._write(ended=True)

    def _wait_for(self, before: dict[str, Any]) -> None:
        host = before.get("host", "another machine")
        message = f"Checking whether {host} still runs the study. This takes at most {TTL:.0f} seconds."
        print(message, file=sys.stderr, flush=True)
        end = time.monotonic() + TTL
        while time.monotonic() < end:
            time.sleep(_LOOK)
            now = self._read() or before
            if now.get("ended"):
                return
            if (now.get("token"), now.get("beat")) != (before.get("token"), before.get("beat")):
                raise UsageError(_taken(self._study, now))

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self._study.read(OWNER))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, *, ended: bool) -> None:
        self._beat += 1
        process = {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid()}
        about = {"token": self._token, "beat": self._beat, "ended": ended, **process, "started": _started(os.getpid())}
        self._study.write(OWNER, json.dumps(about).encode())
        self._next = time.monotonic() + BEAT


def _taken(study: S3Prefix, by: dict[str, Any]) -> str:
    name = study.prefix.rpartition("/")[2]
    host = by.get("host", "another machine")
    return f"study {name!r} is being run by another process, on {host}: wait for it, or end it"


def _machine() -> str:
    """Return a name for the running system, within which process ids are unique. A reboot changes the name, and each
    container has another name. Return "" if the name cannot be read."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def _is_gone(owner: dict[str, Any]) -> bool:
    """Return whether the driver that wrote this object ran on this machine and has ended. Return False if this cannot
    be known."""
    if not _machine() or owner.get("machine") != _machine():
        return False
    started = _started(owner.get("pid", 0))
    return started is None or abs(started - (owner.get("started") or 0)) > 1
