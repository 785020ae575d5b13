"""The file of the trainings of one method on one experiment.

It is a gzip file of JSON lines. Each `append` adds one gzip member, so earlier bytes never change. If the process is
killed during an `append`, the new member is incomplete, and the next `append` removes it.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("trainings")


@dataclass(frozen=True)
class Row:
    """One training.

    Attributes:
        index: the number of its configuration, see `points.point` and `points.INFILL`.
        seed: of the training.
        params: the searched parameters.
        at_target: after each epoch, the validation accuracy of the network while it is pruned to its final sparsity
            for this measurement. A training that diverged has fewer epochs than the others.
        val_loss: the mean loss on the validation data at the end; None if the training diverged.
        test: the test accuracy at the end; None if the training diverged. A search may not use it.
        seconds: the time of the training with its evaluations, on one thread. It depends on the machine and its load.
    """

    index: int
    seed: int
    params: dict[str, Any]
    at_target: list[float]
    val_loss: float | None
    test: float | None
    seconds: float


class Table:
    """The trainings of one method on one experiment, in a file."""

    def __init__(self, experiment: str, method: str, folder: Path = FOLDER) -> None:
        self.path = folder / f"{experiment}-{method}.jsonl.gz"

    def rows(self) -> list[Row]:
        """Return all trainings, in the order in which they were added."""
        return [Row(**json.loads(line)) for line in self._whole()[0].decode().splitlines()]

    def append(self, rows: Sequence[Row]) -> None:
        """Add trainings."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
        end = self._whole()[1]
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.truncate(end)
            file.seek(end)
            file.write(gzip.compress(lines.encode(), mtime=0))

    def _whole(self) -> tuple[bytes, int]:
        """Return the content of the complete gzip members, and the number of bytes that they have in the file."""
        left = self.path.read_bytes() if self.path.exists() else b""
        content, length = b"", len(left)
        while left:
            member = zlib.decompressobj(wbits=31)
            try:
                found = member.decompress(left)
            except zlib.error:
                break
            if not member.eof:
                break
            content, left = content + found, member.unused_data
        return content, length - len(left)
