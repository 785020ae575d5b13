"""Lock open files and folders, so that only one process on this machine uses them.

The operating system releases a lock when the process that has it ends, even after a crash. The package filelock is not
used, because it takes 70 ms to import, asks 20 times a second for a lock instead of waiting for it, and needs an extra
file for each lock.
"""

from __future__ import annotations

import fcntl


def lock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open file or folder until it is closed.

    Args:
        descriptor: the file descriptor.
        wait: whether to wait until no other process has the lock.

    Returns:
        True if this process now has the lock, or if the file system has no locks. False if another process has the
        lock, and `wait` is False.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True
