"""Locks on files, as far as the file system has any: Lustre without `-o flock` and NFS without lockd have none."""

import fcntl
from typing import IO, Any


def lock(file: IO[Any] | int, *, wait: bool = True) -> bool:
    """Locks an open file for this process alone; false where its file system has no locks.

    What is behind it is then not alone: it must come out right twice. Raises BlockingIOError where another process has
    the lock and it is not to be waited for.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
