"""Temporary folders that do not outlive their process, even if it is killed.

The process that creates one holds a lock in it, which the system releases when the process dies.
The next process that creates one deletes those that no process has locked.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCK = "lock"
# A younger folder without a lock may just be in creation (seconds).
_UNLOCKED_AGE = 3600.0


@contextmanager
def temporary_folder(prefix: str) -> Iterator[str]:
    """A folder for this user alone, whose name begins with ``prefix``; deleted afterwards.

    POSIX only. Also deletes folders with the same prefix that dead processes left.
    """
    import fcntl

    _delete_abandoned(prefix)
    while True:
        path = tempfile.mkdtemp(prefix=prefix)
        lock = os.open(f"{path}/{_LOCK}", os.O_CREAT | os.O_RDWR, 0o600)
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink:
                break
        # Another process deleted it before it was locked.
        os.close(lock)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _delete_abandoned(prefix: str) -> None:
    import fcntl

    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError):
            if not (path / _LOCK).exists():
                if time.time() - path.stat().st_mtime > _UNLOCKED_AGE:
                    path.rmdir()
                continue
            lock = os.open(path / _LOCK, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
