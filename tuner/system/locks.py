"""Lock open files and folders between processes of one machine.

The operating system releases such a lock when its process ends for any reason. The package filelock uses the same
system call, but takes 70 ms to import, polls 20 times a second instead of waiting, and needs a file for each lock. This
module locks the study's folder and its outbox directly.
"""

from __future__ import annotations

import fcntl


def lock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open file or folder until it is closed.

    Args:
        descriptor: the file descriptor.
        wait: whether to wait until no other process has the lock.

    Returns:
        False if another process has the lock. True if this process now has the lock, or if the file system has no
        locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True
