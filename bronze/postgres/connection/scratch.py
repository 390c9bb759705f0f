"""Folders for temporary files that need a name, of which nothing stays when a process is killed.

Whoever makes one holds a lock in it for as long as it lives, which the system takes from a process
that dies. Whoever makes the next one deletes those whose lock nobody holds.
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
# One without a lock may have been made just now.
_OLD = 3600.0


@contextmanager
def folder(prefix: str) -> Iterator[str]:
    """A folder for this user alone, whose name begins with ``prefix``, until the context ends.

    POSIX only. Deletes those of the same prefix that were left by processes that are dead.
    """
    import fcntl

    _sweep(prefix)
    while True:
        made = tempfile.mkdtemp(prefix=prefix)
        lock = os.open(f"{made}/{_LOCK}", os.O_CREAT | os.O_RDWR, 0o600)
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink:
                break
        # Somebody who sweeps was there between the two.
        os.close(lock)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def _sweep(prefix: str) -> None:
    import fcntl

    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError):
            if not (path / _LOCK).exists():
                if time.time() - path.stat().st_mtime > _OLD:
                    path.rmdir()
                continue
            lock = os.open(path / _LOCK, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
