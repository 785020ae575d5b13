"""Whose a study in an object store is: an object that its driver renews, since such a store has no locks.

What it can do: a second driver sees that the first one renews it, and is refused; a driver that finds another's mark in
the place of its own stops writing. What it cannot: a driver that could not reach the store for longer than TTL is
taken for dead; should it live, both may train for a while, until it reaches the store again and stops.
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
MARK = ".owner"  # in the working folder: the last driver that wrote there
BEAT = 10.0  # seconds between two renewals
TTL = 40.0  # seconds without one after which the driver is taken for dead
_LOOK = 2.0  # seconds between two looks at another's mark
_SETTLE = 1.0  # seconds after which the last one of several that took it at once is to be seen


class TakenOver(Exception):
    """Another driver runs the study now."""


class Lease:
    """This process as a study's driver.

    Args:
        study: its prefix in the store.
        folder: where this process works on it.
    """

    def __init__(self, study: S3Prefix, folder: Path) -> None:
        self._study, self._folder = study, folder
        self._token, self._beat, self._next = secrets.token_hex(16), 0, 0.0

    def take(self) -> bool:
        """Makes the study this process's.

        Returns:
            Whether the store may have more of it than the folder has: another driver, or none from here, was the last.

        Raises:
            UsageError: if another driver runs it.
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
        """Notes in the folder that it holds what this driver knows of the study. Raises OSError."""
        (self._folder / MARK).write_text(self._token)

    @property
    def due(self) -> bool:
        """Return whether it is time to renew."""
        return time.monotonic() >= self._next

    def renew(self) -> None:
        """Looks whether the study is still this process's, and renews that. Raises TakenOver, OSError."""
        now = self._read() or {}
        if now.get("token", self._token) != self._token:
            raise TakenOver(_taken(self._study, now))
        if self.due:
            self._write(ended=False)

    def release(self) -> None:
        """The study is nobody's. Raises OSError."""
        self._write(ended=True)

    def _wait_for(self, before: dict[str, Any]) -> None:
        host = before.get("host", "another machine")
        print(f"Looking whether {host} still runs the study, {TTL:.0f} seconds at most", file=sys.stderr, flush=True)
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
    return f"study {name!r} is being run by another process, on {by.get('host', 'another machine')}: wait, or end it"


def _machine() -> str:
    """Return the running system within which a process has its number: another after a reboot, and in each
    container."""
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
    """Return whether that driver ran on this machine, and does no more; False where that cannot be known."""
    if not _machine() or owner.get("machine") != _machine():
        return False
    started = _started(owner.get("pid", 0))
    return started is None or abs(started - (owner.get("started") or 0)) > 1
