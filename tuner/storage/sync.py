"""Copy a study's files to an object store while the study runs, in a thread, so that no trial waits for the store.

At any time, the study can be resumed from the files in the store. To ensure this, each round of copying sends new
networks first. Then it sends Optuna's journal, which lists the trials of these networks. At the end it removes from the
store the networks that the study has removed from its folder. If the store does not answer, the thread tries again as
long as the study runs.
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
_SHARE = 10  # the pause after a round, as a multiple of the round's time
PATIENCE = 30.0  # seconds for the store to answer after the study has ended
AT_ONCE = 5.0  # seconds for the store to answer after an interrupt or an error
_FIRST = ("study.yaml", "tracking/outbox.jsonl", "tracking/sent.json")
_PASSING = (f"{WEIGHTS}/*", "best/*", "best-*/*", "front/*")  # files that a study may remove
Signature = tuple[int, int, int]


class Mirror:
    """Keeps a copy of a study's folder in the store. Use this object as a context manager. Within the `with` block, a
    thread sends the changed files again and again. Each of these rounds sends the files that have changed since the
    last round (see `round`).

    Args:
        study: the study's prefix in the store.
        folder: the study's folder. Only this process and the process that writes to MLflow write there.
        owner: the claim of this process on the study.
        arrived: the names of the files whose current contents the store already has. The first round does not send
            them.

    Attributes:
        also: a function that is called at the end of each complete round. The driver of a study replaces this attribute
            by a function that removes old checkpoints from the store. The default function does nothing.
        lost: the reason why this process may no longer write to the study, or "" if it may.
        complete: whether the last round has sent all changed files.
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
                f"{missing} files were not sent to {self.study}, because {self._why}. They are in {self._folder}. This "
                f"command sends them: tune-sparsity resume {self._folder.name} --storage {self.study.parent}",
                file=sys.stderr,
                flush=True,
            )

    def settle(self) -> None:
        """Send all current files, if the store answers. Call this method when the training has ended, before the study
        writes the folders of its best networks."""
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
        """Renew the claim on the study. If this fails, set `lost`, or store the reason."""
        try:
            with self._one:
                self._owner.renew()
        except TakenOver as error:
            self.lost = str(error)
        except OSError as error:
            self._why = str(error)

    def _try_round(self, *, last: bool = False) -> bool:
        """Renew the claim and run a round. Return whether all files have arrived.

        Args:
            last: whether to release the claim if all files have arrived.
        """
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
        """Send the new and changed files. Return True if the round is complete. Return False if the study removed a
        network from its folder before this method could send the network. The journal is then not sent before the next
        round, because it may list the trial of a network that the store does not have.

        Raises:
            OSError: if the store cannot be read or written.
        """
        files, journal = self._moment()
        # sent.json is read before the outbox: it must not refer to notes that the outbox in the store lacks.
        sent = self._content("tracking/sent.json")
        for name in _FIRST:
            self._send(name, files, sent if name == "tracking/sent.json" else None)
        weights = [name for name in files if name.startswith(f"{WEIGHTS}/")]
        if not all(self._send(name, files) for name in weights):
            return False
        self._send(JOURNAL, files, journal)
        for name in sorted(files, key=lambda name: (name == RESULT_JSON, name)):  # result.json comes last
            self._send(name, files)
        self._remove_stale(files)
        self.also()
        return True

    def _moment(self) -> tuple[dict[str, Signature], bytes | None]:
        """Return the study's files and the content of Optuna's journal, both from the same moment. The files then
        include each network that the journal requires, because a study removes networks only after it has written the
        journal."""
        for _ in range(20):
            journal, files = self._content(JOURNAL), self._files()
            if JOURNAL not in files or journal is None or files[JOURNAL][0] == len(journal):
                break
        return files, journal

    def _send(self, name: str, files: dict[str, Signature], content: bytes | None = None) -> bool:
        """Send a file if the store does not have its current version. Return False if the file no longer exists.

        Args:
            name: the file's name relative to the study's folder.
            files: the result of `_files`.
            content: the content to send. If None, the file is read.
        """
        if name not in files or self._sent.get(name) == files[name]:
            return True
        content = self._content(name) if content is None else content
        if content is None:
            return False
        if self._owner.due:  # a round with large networks may take longer than TTL
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
        """Return a dict from the names of the study's files to their signatures. A signature changes if the content of
        its file changes."""
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
