"""Brings a study's files to an object store while the study runs, from a thread, so that no trial waits for it.

What is in the store can be resumed at any time: networks arrive before the journal that names their trials, and what
the journal no longer names goes after it. A store that does not answer is tried again, for as long as the study runs.
"""

from __future__ import annotations

import fnmatch
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

from tune_sparsity.tuner.storage.lease import Lease, TakenOver
from tune_sparsity.tuner.storage.local_copy import belongs
from tune_sparsity.tuner.storage.s3 import S3Prefix
from tune_sparsity.tuner.study.layout import JOURNAL, RESULT_JSON, WEIGHTS

EVERY = 3.0  # seconds between two rounds, at least
_SHARE = 10  # and so many times what the last round took
PATIENCE = 30.0  # seconds that a store has to answer when the study has ended
AT_ONCE = 5.0  # and when it was broken off
_FIRST = ("study.yaml", "tracking/outbox.jsonl", "tracking/sent.json")
_PASSING = (f"{WEIGHTS}/*", "best/*", "best-*/*", "front/*")  # what a study may remove of its files
Signature = tuple[int, int, int]


class Mirror:
    """The copy in the store of a study's folder. Use it as a context manager.

    Args:
        study: its prefix in the store.
        folder: the study's, which only this process's drivers and trackers write to.
        owner: which has the study.
        arrived: names of files that the store has as they are in the folder.

    Attributes:
        also: called in every round, for what else there is to do in the store.
        lost: why the study is no more this process's; "" while it is.
        complete: whether at the end all had arrived.
    """

    def __init__(self, study: S3Prefix, folder: Path, owner: Lease, arrived: Iterable[str] = ()) -> None:
        self.study, self._folder, self._owner = study, folder, owner
        self.also: Callable[[], object] = lambda: None
        self.lost, self.complete = "", False
        files = self._files()
        self._sent = {name: files[name] for name in arrived if name in files}
        self._there = {name for name in study.names() if belongs(name)}
        self._why = ""
        self._one = threading.Lock()  # one round at a time
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def __enter__(self) -> Mirror:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        end = time.monotonic() + (PATIENCE if kind is None else AT_ONCE)
        while not (self.lost or self._try_round(last=True)) and time.monotonic() < end:
            time.sleep(1.0)
        if self._why and not self.lost:
            missing = sum(self._sent.get(name) != signature for name, signature in self._files().items())
            print(
                f"Not in {self.study}: {missing} files, since {self._why}. They are in {self._folder}; "
                f"tune-sparsity resume {self._folder.name} --storage {self.study.parent} brings them",
                file=sys.stderr,
                flush=True,
            )

    def settle(self) -> None:
        """Sends all that there is now, if the store takes it: before a study rewrites its networks."""
        if not self.lost:
            self._try_round()

    def _work(self) -> None:
        following = 0.0
        while not self._ended.wait(EVERY) and not self.lost:
            start = time.monotonic()
            if start < following:
                self._try_renewal()
                continue
            self._try_round()
            now = time.monotonic()
            following = now if self._why else now + _SHARE * (now - start)

    def _try_renewal(self) -> None:
        """Between two rounds that are far apart."""
        try:
            with self._one:
                self._owner.renew()
        except TakenOver as error:
            self.lost = str(error)
        except OSError as error:
            self._why = str(error)

    def _try_round(self, *, last: bool = False) -> bool:
        """Return whether everything has arrived."""
        try:
            with self._one:
                self._owner.renew()
                self.complete = self.round()
                if self.complete and last:
                    self._owner.release()
            self._why = "" if self.complete else "files change all the time"
        except TakenOver as error:
            self.lost = str(error)
        except OSError as error:
            self.complete, self._why = False, str(error)
        return self.complete

    def round(self) -> bool:
        """Sends what is new. Returns False if the study changed so much meanwhile that its journal has to wait.

        Raises:
            OSError: if the store does not take it.
        """
        files, journal = self._moment()
        # Read before the outbox is: it must not speak of more than is there.
        sent = self._content("tracking/sent.json")
        for name in _FIRST:
            self._send(name, files, sent if name == "tracking/sent.json" else None)
        weights = [name for name in files if name.startswith(f"{WEIGHTS}/")]
        if not all(self._send(name, files) for name in weights):
            return False
        self._send(JOURNAL, files, journal)
        for name in sorted(files, key=lambda name: (name == RESULT_JSON, name)):  # where it is, all else is
            self._send(name, files)
        self._remove_stale(files)
        self.also()
        return True

    def _moment(self) -> tuple[dict[str, Signature], bytes | None]:
        """The files as they are at one moment of the journal: a study removes networks only after it was written."""
        for _ in range(20):
            journal, files = self._content(JOURNAL), self._files()
            if JOURNAL not in files or journal is None or files[JOURNAL][0] == len(journal):
                break
        return files, journal

    def _send(self, name: str, files: dict[str, Signature], content: bytes | None = None) -> bool:
        """Sends a file unless the store has it as it is. Returns False if it is gone."""
        if name not in files or self._sent.get(name) == files[name]:
            return True
        content = self._content(name) if content is None else content
        if content is None:
            return False
        if self._owner.due:  # a round with large networks takes longer than a driver may be silent
            self._owner.renew()
        self.study.write(name, content)
        self._sent[name] = files[name]
        self._there.add(name)
        return True

    def _remove_stale(self, files: dict[str, Signature]) -> None:
        for name in self._there - set(files):
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in _PASSING):
                self.study.remove(name)
            self._there.discard(name)
            self._sent.pop(name, None)

    def _content(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def _files(self) -> dict[str, Signature]:
        """Return the study's files and by what a change of each is seen."""
        found = {}
        for folder, _, names in os.walk(self._folder):
            for name in names:
                path = Path(folder, name)
                relative = path.relative_to(self._folder).as_posix()
                if belongs(relative) and not path.is_symlink():
                    try:
                        status = path.stat()
                    except FileNotFoundError:
                        continue
                    found[relative] = (status.st_size, status.st_mtime_ns, status.st_ino)
        return found
