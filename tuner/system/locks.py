"""Locks between processes of one machine, on a file or folder that is open already.

The system lets go of such a lock however its process ends. The package filelock has the same call, but takes 70 ms to
load and asks 20 times a second instead of being woken. Its locks by path need files of their own, where we lock the
study's folder and its outbox themselves.
"""

from __future__ import annotations

import fcntl


def lock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open file or folder until it is closed.

    Args:
        descriptor: the file's or folder's.
        wait: until no other process has the lock.

    Returns:
        False if another process has the lock. True if it is ours, and where the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True
